//! Logging: `tracing` to stderr, `RUST_LOG` chooses what is seen (default: warnings).

use tracing_subscriber::EnvFilter;

/// Starts the log. Its lines are plain everywhere: `NO_COLOR` holds without being asked.
pub fn start() {
    let wanted = crate::env::text("RUST_LOG").unwrap_or_else(|| "warn".into());
    let (filter, mended) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("warn"), Some(error)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
    if let Some(error) = mended {
        tracing::warn!("RUST_LOG={wanted} is not a filter ({error}); warnings only");
    }
}
