//! The binary `puna`: what was typed, what it means, the work, the exit code.
//!
//! Knows every room below it and wires them together. Nothing below this crate prints, exits or
//! reads the process environment on its own account; nothing in this crate does arithmetic.

#![expect(
    unreachable_pub,
    reason = "a binary has no door: `pub` means what the other modules may use"
)]

mod adapt;
mod args;
mod config;
mod env;
mod exit;
mod identity;
mod input;
mod interrupt;
mod lend;
mod load;
mod log;
mod lower;
mod machine;
mod memory;
mod out;
mod progress;
mod verbs;
mod wrap;

use std::process::ExitCode;

fn main() -> ExitCode {
    log::start();
    interrupt::install();
    match args::parse(std::env::args_os()).and_then(verbs::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}
