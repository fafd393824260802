//! `puna doctor`.

use anyhow::Result;

use crate::args::DoctorArgs;

pub fn run(_args: &DoctorArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
