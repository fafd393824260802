//! `puna completions`.

use anyhow::Result;

use crate::args::CompletionsArgs;

pub fn run(_args: &CompletionsArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
