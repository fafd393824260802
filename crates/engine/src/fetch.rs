//! Kept beginnings on their way from the folder to the tree.
//!
//! A request that is about to read its prompt asks for the blocks that the folder has of it, a
//! bounded number of bytes at a time, and waits; the others go on. When they have come, or it took
//! too long, it begins with what is there.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::spill::{Found, Spill, Wanted};

/// Bytes that one request asks for at a time.
pub(crate) const AT_ONCE: usize = 32 << 20;
/// How long it waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a request is with the folder.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Fetch {
    /// It has yet to ask, perhaps for more.
    #[default]
    Due,
    /// It has asked, for the blocks behind the first `at`.
    Asked { at: usize, since: Instant },
    /// There is nothing more for it.
    Done,
}

/// The way to the folder and back.
#[derive(Debug)]
pub(crate) struct Fetches {
    spill: Arc<Spill>,
    sender: Sender<Found>,
    inbox: Receiver<Found>,
}

impl Fetches {
    pub(crate) fn new(spill: Arc<Spill>) -> Fetches {
        let (sender, inbox) = channel();
        Fetches {
            spill,
            sender,
            inbox,
        }
    }

    /// Whether a request has to wait; asks for what `wanted` says, the first time. That is how many
    /// blocks are here, and those behind them that the folder has.
    pub(crate) fn due(
        &self,
        fetch: &mut Fetch,
        ticket: u64,
        wanted: impl FnOnce() -> (usize, Vec<Wanted>),
    ) -> bool {
        match *fetch {
            Fetch::Done => return false,
            Fetch::Asked { since, .. } if since.elapsed() < PATIENCE => return true,
            Fetch::Asked { .. } => {
                *fetch = Fetch::Done;
                return false;
            }
            Fetch::Due => {}
        }
        let (at, blocks) = wanted();
        let since = Instant::now();
        let asked = !blocks.is_empty() && self.spill.read(ticket, blocks, self.sender.clone());
        *fetch = match asked {
            true => Fetch::Asked { at, since },
            false => Fetch::Done,
        };
        asked
    }

    /// What has come.
    pub(crate) fn next(&self) -> Option<Found> {
        self.inbox.try_recv().ok()
    }

    /// Reads and writes of the folder that failed.
    pub(crate) fn errors(&self) -> u64 {
        self.spill.errors()
    }
}
