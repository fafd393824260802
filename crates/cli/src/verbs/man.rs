//! `puna man`.

use anyhow::Result;

use crate::args::ManArgs;

pub fn run(_args: &ManArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
