//! The end of a model that was unloaded: it gives its memory back on a thread of its own, and those
//! who asked hear of it, however it ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Model;
use super::keeper::{Done, Event};
use super::served::{Resident, Residents};
use crate::error::{ApiError, Kind};
use crate::state::State;

/// How long a model that nobody holds a lease of may still be held by what is just ending.
const LINGER: Duration = Duration::from_secs(10);

/// Bytes that models on their way out take until they have ended.
#[derive(Debug, Default)]
pub(super) struct Due(Arc<AtomicU64>);

impl Due {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// One model's part, counted until it is dropped.
    pub(super) fn share(&self, bytes: u64) -> Share {
        self.0.fetch_add(bytes, Ordering::SeqCst);
        Share {
            all: self.0.clone(),
            bytes,
        }
    }
}

/// See [`Due::share`].
#[derive(Debug)]
pub(super) struct Share {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// What is known of a model on its way out.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) id: String,
    stage: Mutex<Stage>,
}

#[derive(Debug)]
enum Stage {
    /// It ends; these wait for that.
    Going(Vec<Done>),
    /// How it ended.
    Over(Result<(), ApiError>),
}

impl Ending {
    pub(super) fn new(id: String) -> Ending {
        Ending {
            id,
            stage: Mutex::new(Stage::Going(Vec::new())),
        }
    }

    // Nothing panics while it holds the lock.
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells somebody when the model has ended; at once if it has.
    pub(super) fn tell(&self, done: Done) {
        match &mut *self.stage() {
            Stage::Going(waiting) => waiting.push(done),
            Stage::Over(how) => drop(done.send(how.clone())),
        }
    }

    fn over(&self, how: &Result<(), ApiError>) {
        let before = std::mem::replace(&mut *self.stage(), Stage::Over(how.clone()));
        if let Stage::Going(waiting) = before {
            for done in waiting {
                // Who has left need not know.
                let _ = done.send(how.clone());
            }
        }
    }
}

/// A model on its way out. Whatever becomes of its thread: when this is dropped, the model is gone,
/// and all hear of it.
pub(super) struct Leaver {
    model: Option<Arc<Model>>,
    /// Whether nobody holds a lease of it.
    free: bool,
    share: Option<Share>,
    ending: Arc<Ending>,
    residents: Arc<Residents>,
    state: State,
}

impl Leaver {
    pub(super) fn new(
        gone: Resident,
        ending: Arc<Ending>,
        share: Share,
        residents: &Arc<Residents>,
        state: &State,
    ) -> Leaver {
        Leaver {
            model: Some(gone.model),
            free: gone.leases == 0,
            share: Some(share),
            ending,
            residents: residents.clone(),
            state: state.clone(),
        }
    }

    /// Ends the model, with its memory, if it has no leases.
    pub(super) fn leave(&mut self) {
        if let Some(model) = self.model.take()
            && self.free
        {
            end(model);
        }
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        self.model = None;
        // After its end: who looked just before may have set them.
        if !self.residents.has(&self.ending.id) {
            for gauge in super::watch::GAUGES {
                self.state.metrics().set(gauge, &[&self.ending.id], 0);
            }
        }
        self.share = None;
        let how = match std::thread::panicking() {
            false => Ok(()),
            true => Err(ApiError::new(
                Kind::Internal,
                "the server met a bug; its log says more",
            )),
        };
        self.ending.over(&how);
        self.residents.tell(Event::Free);
    }
}

/// What still holds a model without leases is about to let go.
fn end(mut model: Arc<Model>) {
    let until = Instant::now() + LINGER;
    while Instant::now() < until {
        match Arc::try_unwrap(model) {
            Ok(model) => return drop(model),
            Err(held) => model = held,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    tracing::warn!("{} is unloaded, but still held", model.id);
}
