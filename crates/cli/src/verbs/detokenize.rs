//! `puna detokenize`.

use anyhow::Result;

use crate::args::DetokenizeArgs;

pub fn run(_args: &DetokenizeArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
