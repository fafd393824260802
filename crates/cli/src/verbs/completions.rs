//! `puna completions SHELL`: the script that makes the shell complete verbs and options.

use anyhow::Result;

use crate::args::CompletionsArgs;

pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::command(), "puna", &mut script);
    crate::out::raw(&script)
}
