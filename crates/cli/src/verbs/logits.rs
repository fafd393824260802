//! `puna logits`.

use anyhow::Result;

use crate::args::LogitsArgs;

pub fn run(_args: &LogitsArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
