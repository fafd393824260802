//! Logging: `tracing` to stderr, `RUST_LOG` chooses what is seen (default: warnings).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts the log. Lines are plain on a pipe, under `NO_COLOR` and on a dumb terminal.
pub fn start() {
    let wanted = crate::env::text("RUST_LOG").unwrap_or_else(|| "warn".into());
    let (filter, mended) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("warn"), Some(error)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(crate::env::colour() && std::io::stderr().is_terminal())
        .init();
    if let Some(error) = mended {
        tracing::warn!("RUST_LOG={wanted} is not a filter ({error}); warnings only");
    }
}
