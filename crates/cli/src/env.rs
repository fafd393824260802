//! The process environment as Puna reads it: an empty variable counts as unset.
//!
//! `PUNA_PORT` is never read: Kubernetes sets it to `tcp://...` for a service named `puna`.

use std::ffi::OsString;

/// The variable's value; `None` when it is unset or empty.
pub fn os(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The variable's value as text; `None` when it is unset, empty or not UTF-8.
pub fn text(name: &str) -> Option<String> {
    os(name)?.into_string().ok()
}

/// The verb that was typed, where it stands first.
pub fn verb() -> Option<String> {
    std::env::args_os().nth(1)?.into_string().ok()
}

/// May escape sequences colour the output? `NO_COLOR` (no-color.org) and `TERM=dumb` say no.
pub fn colour() -> bool {
    os("NO_COLOR").is_none() && !dumb()
}

/// A terminal that understands no escape sequences.
pub fn dumb() -> bool {
    // Windows' own terminals set no TERM and understand escape sequences.
    text("TERM").map_or(cfg!(unix), |term| term == "dumb")
}
