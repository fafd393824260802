//! `puna template`.

use anyhow::Result;

use crate::args::TemplateArgs;

pub fn run(_args: &TemplateArgs) -> Result<()> {
    Err(crate::exit::usage("this verb is being written", ""))
}
