//! Kept beginnings on their way from the folder to the tree.
//!
//! A request that is about to read its prompt asks for the blocks that the folder has of it, a
//! bounded number of bytes at a time, and waits; the others go on. When they have come, or it took
//! too long, it begins with what is there.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::spill::{Found, Spill, Wanted};

/// Bytes that one request asks for at a time.
pub(crate) const AT_ONCE: usize = 32 << 20;
/// How long it waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a request is with the folder.
#[derive(Debug, Default)]
pub(crate) enum Fetch {
    /// It has yet to ask, perhaps for more.
    #[default]
    Due,
    /// It has asked, for the blocks behind the first `at`. Whoever drops `ask` wants them no more:
    /// an answer that comes for it is another's.
    Asked {
        at: usize,
        since: Instant,
        ask: Arc<()>,
    },
    /// There is nothing more for it.
    Done,
}

impl Fetch {
    /// Behind how many blocks those belong that came for this ask; `None`: they are another's.
    pub(crate) fn place_of(&self, found: &Weak<()>) -> Option<usize> {
        match self {
            Fetch::Asked { at, ask, .. } => found
                .upgrade()
                .filter(|found| Arc::ptr_eq(found, ask))
                .map(|_| *at),
            _ => None,
        }
    }
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
        wanted: impl FnOnce() -> (usize, Vec<Wanted>),
    ) -> bool {
        match fetch {
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
        let ask = Arc::new(());
        let reply = self.sender.clone();
        let asked = !blocks.is_empty() && self.spill.read(Arc::downgrade(&ask), blocks, reply);
        *fetch = match asked {
            true => Fetch::Asked { at, since, ask },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_for_an_earlier_ask_is_not_taken() {
        let (earlier, ask) = (Arc::new(()), Arc::new(()));
        let fetch = Fetch::Asked {
            at: 7,
            since: Instant::now(),
            ask: ask.clone(),
        };
        assert_eq!(fetch.place_of(&Arc::downgrade(&earlier)), None);
        assert_eq!(fetch.place_of(&Arc::downgrade(&ask)), Some(7));
        assert_eq!(Fetch::Done.place_of(&Arc::downgrade(&ask)), None);
        // The address may be another's by now: one that is gone is nobody's.
        let gone = Arc::downgrade(&earlier);
        drop(earlier);
        assert_eq!(fetch.place_of(&gone), None);
    }
}
