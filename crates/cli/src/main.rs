//! The binary `puna`: what was typed, what it means, the work, the exit code.
//!
//! Knows every room below it and wires them together. Nothing below this crate prints, exits or
//! reads the process environment on its own account; nothing in this crate does arithmetic.

mod args;
mod env;
mod exit;
mod load;
mod log;
mod out;
mod progress;
mod verbs;

use std::process::ExitCode;

fn main() -> ExitCode {
    log::start();
    match args::parse(std::env::args_os()).and_then(verbs::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}
