//! `puna bench`.

use anyhow::Result;

use crate::args::BenchArgs;

pub fn run(_args: &BenchArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
