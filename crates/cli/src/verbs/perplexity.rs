//! `puna perplexity`.

use anyhow::Result;

use crate::args::PerplexityArgs;

pub fn run(_args: &PerplexityArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
