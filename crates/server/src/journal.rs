//! The one thread that writes usage and audit while the server runs.
//!
//! A request takes its place in the queue before it begins, so what it will write always has room,
//! and a disk that stalls holds requests back instead of filling memory. What waits together is
//! written together. When a write fails, what was to be written is kept and tried again, and until
//! it works the server takes no new work.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::audit::Event;
use crate::error::{ApiError, Error, Kind};
use crate::metrics::{Metric, Metrics};
use crate::store::Store;

/// Requests that may be under way or waiting to be written.
pub(crate) const QUEUE: usize = 4096;
/// Events in one transaction.
const TOGETHER: usize = 512;
/// From one try to the next.
const AGAIN: Duration = Duration::from_millis(500);
/// Tries after the end was asked for.
const TRIES: usize = 6;
/// How long a request waits for its place.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end waits for what is left to be written.
const LAST: Duration = Duration::from_secs(5);

/// Rows of refused keys in a minute: whoever has no key must not fill the disk.
const REFUSED: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// A request's place in the queue.
pub(crate) type Place = mpsc::OwnedPermit<Event>;

#[derive(Debug)]
pub(crate) struct Journal {
    queue: Mutex<Option<mpsc::Sender<Event>>>,
    trouble: Arc<Mutex<Option<String>>>,
    done: Mutex<Receiver<()>>,
    /// Rows of refused keys since then.
    refused: Mutex<(Instant, u32)>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    pub(crate) fn start(store: Store, metrics: Arc<Metrics>) -> Result<Journal, Error> {
        let (queue, events) = mpsc::channel(QUEUE);
        let (done, when_done) = channel();
        let trouble = Arc::new(Mutex::new(None));
        let shared = trouble.clone();
        std::thread::Builder::new()
            .name("puna-journal".into())
            .spawn(move || {
                write_all(store, events, &shared, &metrics);
                drop::<Sender<()>>(done);
            })
            .map_err(Error::io("start the thread that writes"))?;
        Ok(Journal {
            queue: Mutex::new(Some(queue)),
            trouble,
            done: Mutex::new(when_done),
            refused: Mutex::new((Instant::now(), 0)),
        })
    }

    /// Why nothing can be written now.
    pub(crate) fn trouble(&self) -> Option<ApiError> {
        let why = lock(&self.trouble).clone()?;
        tracing::debug!("refused: {why}");
        let what = "usage and audit cannot be written: see the server's log";
        Some(ApiError::new(Kind::State, what).retry_after(Duration::from_secs(5)))
    }

    /// A place for what a request will write.
    pub(crate) async fn place(&self) -> Result<Place, ApiError> {
        let full =
            || ApiError::new(Kind::State, "too much waits to be written").retry_after(PATIENCE);
        let queue = lock(&self.queue).clone().ok_or_else(full)?;
        match tokio::time::timeout(PATIENCE, queue.reserve_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(full()),
        }
    }

    /// Writes what comes after its request has ended, if there is room.
    pub(crate) fn late(&self, event: Event) {
        let queue = lock(&self.queue).clone();
        if queue.is_none_or(|queue| queue.try_send(event).is_err()) {
            tracing::error!("usage that came late could not be written down");
        }
    }

    /// Writes down that a key was refused, unless there is no room or this minute had its rows: who
    /// has no key is no reason to wait.
    pub(crate) fn refused(&self, event: Event) {
        let mut rows = lock(&self.refused);
        if rows.0.elapsed() >= MINUTE {
            *rows = (Instant::now(), 0);
        }
        let queue = lock(&self.queue).clone().filter(|_| rows.1 < REFUSED);
        if queue.is_some_and(|queue| queue.try_send(event).is_ok()) {
            rows.1 += 1;
        }
    }

    /// Takes nothing new, and waits until what there is has been written.
    pub(crate) fn close(&self) {
        drop(lock(&self.queue).take());
        if lock(&self.done).recv_timeout(LAST) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("usage and audit of the last requests were not written in time");
        }
    }
}

/// The thread: until every sender is gone. It drops its end of `done` with itself.
fn write_all(
    mut store: Store,
    mut events: mpsc::Receiver<Event>,
    trouble: &Mutex<Option<String>>,
    metrics: &Metrics,
) {
    let mut batch = Vec::with_capacity(TOGETHER);
    while events.blocking_recv_many(&mut batch, TOGETHER) > 0 {
        let mut tries = 0;
        while let Err(error) = store.append(&batch) {
            metrics.add(Metric::StateWriteErrors, &[], 1);
            if lock(trouble).replace(error.to_string()).is_none() {
                tracing::error!("usage and audit cannot be written, trying again: {error}");
            }
            tries = if events.is_closed() { tries + 1 } else { 0 };
            if tries > TRIES {
                tracing::error!(
                    "{} rows of usage and audit are lost: {error}",
                    batch.len() + events.len()
                );
                return;
            }
            std::thread::sleep(AGAIN);
        }
        *lock(trouble) = None;
        batch.clear();
    }
}
