//! `puna man`: one manual page for all verbs, in roff. `puna man | man -l -` reads it.

use anyhow::Result;
use clap_mangen::Man;

use crate::args::ManArgs;

pub fn run(_args: &ManArgs) -> Result<()> {
    let mut command = crate::args::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    let whole = Man::new(command.clone());
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    // The verbs in full, one after the other: a page for each would be sixteen files to install.
    for verb in command.get_subcommands() {
        let title = format!(".SH \"PUNA {}\"\n", verb.get_name().to_uppercase());
        page.extend_from_slice(title.as_bytes());
        if let Some(about) = verb.get_about() {
            page.extend_from_slice(format!("{about}\n").as_bytes());
        }
        let part = Man::new(verb.clone());
        let mut options = Vec::new();
        part.render_synopsis_section(&mut options)?;
        part.render_options_section(&mut options)?;
        page.extend_from_slice(&demoted(&options));
    }
    whole.render_extra_section(&mut page)?;
    whole.render_version_section(&mut page)?;
    crate::out::raw(&page)
}

/// What each part of a page defines anew: how an apostrophe is written.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

/// Sections of a verb become subsections of the page.
fn demoted(roff: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(roff)
        .replace(PREAMBLE, "")
        .replace(".SH ", ".SS ")
        .into_bytes()
}
