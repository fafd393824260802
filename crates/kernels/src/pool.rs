//! The thread pool: one parallel region at a time, indices handed out one by one.
//!
//! Idea: a region is published by one store to `state`, an atomic word of (epoch, open, workers
//! inside). A worker that sees an open epoch it has not served enters it by a compare-and-swap that
//! counts it in; the caller works too, closes the region when the indices have run out, and waits
//! only for workers that are inside. So
//!
//! - a worker that is parked or not scheduled never holds up a region: it finds it closed;
//! - the job may lie on the caller's stack: nobody enters after the closing, and the caller does
//!   not return while anybody is inside;
//! - a worker spins for a bounded time between regions, then sleeps; starting a region costs a
//!   system call only if somebody sleeps.
//!
//! Knows nothing of what is computed. Which thread runs an index never matters to results.

use crate::Error;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Most threads a pool can have.
pub(crate) const MAX_THREADS: usize = 1024;

/// How long a worker looks for a new region before it sleeps: longer than the serial work between
/// two products of a small model, shorter than anybody would notice.
const SPIN: Duration = Duration::from_micros(30);
/// How long the caller spins for the workers' last indices before it sleeps.
const SPIN_END: Duration = Duration::from_micros(20);

/// Workers inside the open region.
const INSIDE: u64 = 0xffff;
/// The region takes workers.
const OPEN: u64 = 1 << 16;
/// The caller sleeps until the last worker leaves.
const WAITING: u64 = 1 << 17;
/// One region more.
const EPOCH: u64 = 1 << 18;

thread_local! {
    /// True while this thread runs an index of some region: a region inside it runs in place.
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// Threads that share the indices of a region with the caller.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose region runs.
    turn: Mutex<()>,
}

struct Shared {
    state: AtomicU64,
    /// The open region's job; read only by threads counted in `INSIDE`.
    job: AtomicPtr<Job>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    bed: Mutex<()>,
    bell: Condvar,
    /// The caller that sleeps until the region is empty.
    caller: Mutex<Option<Thread>>,
}

struct Job {
    /// Lifetime erased; valid until the caller of `run` returns.
    task: *const (dyn Fn(usize) + Sync),
    next: AtomicUsize,
    count: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller among them: `threads - 1` are started.
    pub(crate) fn new(threads: usize) -> Result<Pool, Error> {
        if threads == 0 || threads > MAX_THREADS {
            return Err(Error::Threads {
                given: threads,
                max: MAX_THREADS,
            });
        }
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            bed: Mutex::new(()),
            bell: Condvar::new(),
            caller: Mutex::new(None),
        });
        // Built first, so that its Drop ends the workers already started if a later one fails.
        let mut pool = Pool {
            shared,
            workers: Vec::new(),
            turn: Mutex::new(()),
        };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("kernels-{i}"))
                .spawn(move || work(&shared))
                .map_err(|e| Error::Spawn {
                    reason: e.to_string(),
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that take part, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i < count`, in any order on any of the pool's threads, and
    /// returns when all are done. A region inside a region, or beside another caller's, runs on the
    /// calling thread alone. If a task panics, the remaining indices are dropped and the (first)
    /// panic goes on in the caller.
    pub(crate) fn run(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = || (0..count).for_each(task);
        if count <= 1 || self.workers.is_empty() || IN_REGION.get() {
            return alone();
        }
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(std::sync::TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return alone(),
        };
        let mut job = Job {
            // SAFETY: only the lifetime changes. The pointer is used by threads counted in the
            // region, and `leave` below waits for all of them before `task`'s borrow ends.
            task: unsafe {
                std::mem::transmute::<
                    *const (dyn Fn(usize) + Sync + '_),
                    *const (dyn Fn(usize) + Sync + 'static),
                >(std::ptr::from_ref(task))
            },
            next: AtomicUsize::new(0),
            count,
            panic: Mutex::new(None),
        };
        self.shared.open(&job);
        job.take_part();
        self.shared.close();
        let panic = job
            .panic
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(lock(&self.shared.bed));
        self.shared.bell.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics; there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads())
            .finish()
    }
}

impl Job {
    /// Runs indices until none is left. Never unwinds.
    fn take_part(&self) {
        IN_REGION.set(true);
        // SAFETY: this thread is counted in the region (or is its caller), so the caller's borrow
        // of the task is still alive.
        let task = unsafe { &*self.task };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Relaxed);
                if i >= self.count {
                    break;
                }
                task(i);
            }
        }));
        IN_REGION.set(false);
        if let Err(panic) = result {
            self.next.store(self.count, Relaxed);
            lock(&self.panic).get_or_insert(panic);
        }
    }
}

impl Shared {
    /// Publishes a region and wakes the sleepers.
    fn open(&self, job: &Job) {
        self.job.store(std::ptr::from_ref(job).cast_mut(), Relaxed);
        // Only the turn's holder changes anything but the count, and the count is zero here.
        let closed = self.state.load(Relaxed);
        debug_assert_eq!(closed & (INSIDE | OPEN | WAITING), 0);
        self.state.store(closed.wrapping_add(EPOCH) | OPEN, SeqCst);
        // SeqCst on both sides: either this load sees the sleeper, or the sleeper, which counts
        // itself first and looks at `state` after, sees the region.
        if self.sleepers.load(SeqCst) > 0 {
            drop(lock(&self.bed));
            self.bell.notify_all();
        }
    }

    /// Lets nobody in any more and waits until the last worker has left.
    fn close(&self) {
        let mut inside = self.state.fetch_and(!OPEN, AcqRel) & INSIDE;
        let start = Instant::now();
        while inside > 0 && start.elapsed() < SPIN_END {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
            inside = self.state.load(Acquire) & INSIDE;
        }
        if inside > 0 {
            *lock(&self.caller) = Some(std::thread::current());
            self.state.fetch_or(WAITING, AcqRel);
            while self.state.load(Acquire) & INSIDE > 0 {
                std::thread::park();
            }
            *lock(&self.caller) = None;
            self.state.fetch_and(!WAITING, AcqRel);
        }
    }

    /// Enters the open region if it is another than `served`; the new epoch.
    fn enter(&self, served: u64) -> Option<u64> {
        let mut state = self.state.load(SeqCst);
        loop {
            let epoch = state / EPOCH;
            if state & OPEN == 0 || epoch == served {
                return None;
            }
            match self
                .state
                .compare_exchange_weak(state, state + 1, AcqRel, Acquire)
            {
                Ok(_) => return Some(epoch),
                Err(now) => state = now,
            }
        }
    }

    /// Leaves the region; the last one out wakes a sleeping caller.
    fn leave(&self) {
        let before = self.state.fetch_sub(1, AcqRel);
        if before & INSIDE == 1
            && before & WAITING != 0
            && let Some(caller) = lock(&self.caller).as_ref()
        {
            caller.unpark();
        }
    }

    /// Spins, then sleeps, until there is a region to enter (its epoch) or the pool ends (`None`).
    fn await_region(&self, served: u64) -> Option<u64> {
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..16 {
                if let Some(epoch) = self.enter(served) {
                    return Some(epoch);
                }
                std::hint::spin_loop();
            }
        }
        let mut bed = lock(&self.bed);
        self.sleepers.fetch_add(1, SeqCst);
        let entered = loop {
            if self.stop.load(SeqCst) {
                break None;
            }
            if let Some(epoch) = self.enter(served) {
                break Some(epoch);
            }
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        entered
    }
}

/// A worker's life.
fn work(shared: &Shared) {
    let mut served = 0;
    while let Some(epoch) = shared.await_region(served) {
        served = epoch;
        // SAFETY: `enter` counted this thread into the open region, after the caller had published
        // the job (release store of `state`, acquired by the compare-and-swap); the caller keeps
        // the job alive until the count is zero again.
        unsafe { &*shared.job.load(Relaxed) }.take_part();
        shared.leave();
    }
}

/// No state of ours is ever left half-changed by a panic, so poison means nothing here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
