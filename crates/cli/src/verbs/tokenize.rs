//! `puna tokenize`.

use anyhow::Result;

use crate::args::TokenizeArgs;

pub fn run(_args: &TokenizeArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
