//! The store: `puna pull`, `list`, `show`, `rm`, `cp`, `verify`.

use anyhow::Result;

use crate::args::{CpArgs, ListArgs, PullArgs, RmArgs, ShowArgs, VerifyArgs};

pub fn pull(_args: &PullArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}

pub fn list(_args: &ListArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}

pub fn show(_args: &ShowArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}

pub fn rm(_args: &RmArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}

pub fn cp(_args: &CpArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}

pub fn verify(_args: &VerifyArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
