//! Progress: how the hub tells its caller what it is doing.
//!
//! Knows nothing of terminals: the command line draws bars, a server may log, a test counts.

/// Receives what the hub is doing. All calls come from the thread that called the hub.
///
/// One transfer at a time is under way: `start`, any number of `advance`, `finish`. A transfer
/// that fails ends without `finish`; the next `start` replaces it.
pub trait Progress {
    /// A transfer (or a re-hash) begins; `total` is its size in bytes where that is known.
    fn start(&mut self, label: &str, total: Option<u64>) {
        let _ = (label, total);
    }

    /// `bytes_done` of the transfer are here, counted from its beginning. It can fall: a server
    /// that cannot resume makes a transfer begin again.
    fn advance(&mut self, bytes_done: u64) {
        let _ = bytes_done;
    }

    /// The transfer under way is complete.
    fn finish(&mut self) {}

    /// One line for the log: a source that failed, a wait for another process, a retry.
    fn note(&mut self, line: &str) {
        let _ = line;
    }

    /// Asked at least several times a second; `true` ends the work with [`crate::Error::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// Reports nothing and never cancels.
impl Progress for () {}
