//! `puna run`.

use anyhow::Result;

use crate::args::RunArgs;

pub fn run(_args: &RunArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
