//! When to try again, and how to wait without being deaf to a cancellation.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use crate::{Error, Progress, Settings};

/// The longest pause between two tries, apart from an obeyed `Retry-After`.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// A host that cannot be connected to is tried this often, whatever [`Settings::tries`] says.
const CONNECTS_MAX: u32 = 2;
/// Tries in all, however much progress each one makes.
const TRIES_IN_ALL: u32 = 50;

/// Why a request gave nothing.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Trying again is no use.
    Final(Error),
    /// It may work later.
    Again {
        /// What went wrong.
        why: String,
        /// The pause that the server asked for.
        after: Option<Duration>,
        /// Whether no connection could be opened.
        connect: bool,
    },
}

impl Fault {
    pub(crate) fn again(why: impl Into<String>) -> Fault {
        Fault::Again {
            why: why.into(),
            after: None,
            connect: false,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Final(error)
    }
}

/// How many more times a thing is tried, and after which pause.
pub(crate) struct Patience {
    tries: u32,
    left: u32,
    connects: u32,
    in_all: u32,
    first_pause: Duration,
    pause: Duration,
    after_max: Duration,
}

impl Patience {
    pub(crate) fn new(settings: &Settings) -> Patience {
        Patience {
            tries: settings.tries.max(1),
            left: settings.tries.max(1),
            connects: CONNECTS_MAX,
            in_all: TRIES_IN_ALL,
            first_pause: settings.backoff,
            pause: settings.backoff,
            after_max: settings.retry_after_max,
        }
    }

    /// Waits before the next try, or gives the fault back as an error. Progress since the last
    /// fault renews the patience, within an overall bound.
    pub(crate) async fn wait(
        &mut self,
        fault: Fault,
        progressed: bool,
        what: &str,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let (why, after, connect) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Again {
                why,
                after,
                connect,
            } => (why, after, connect),
        };
        if progressed {
            (self.left, self.pause) = (self.tries, self.first_pause);
        }
        self.left -= 1;
        self.in_all = self.in_all.saturating_sub(1);
        self.connects -= u32::from(connect);
        if self.left == 0 || self.in_all == 0 || self.connects == 0 {
            return Err(Error::Network {
                what: what.to_owned(),
                why,
            });
        }
        // A server that wants a longer pause than we are willing to make is asked once more, later.
        let pause = after.map_or(self.pause, |after| after.min(self.after_max));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        progress.note(&format!(
            "{what}: {why}; trying again in {:.1} s",
            pause.as_secs_f32()
        ));
        patiently(tokio::time::sleep(pause), progress).await
    }
}

/// Awaits while asking, several times a second, whether to go on.
pub(crate) async fn patiently<F: Future>(
    future: F,
    progress: &mut dyn Progress,
) -> Result<F::Output, Error> {
    let mut future = pin!(future);
    loop {
        if let Ok(output) = tokio::time::timeout(Duration::from_millis(200), future.as_mut()).await
        {
            return Ok(output);
        }
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
    }
}
