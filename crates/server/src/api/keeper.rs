//! The thread that loads and unloads models.
//!
//! One model is loaded at a time, so that the memory plan holds: what all loaded models may take
//! together, and a part of what is left, is what the next one gets. If that is too little, idle models give
//! way, the one first that was used longest ago; while too few are idle, requests wait. What nobody
//! has used for its time is unloaded: [`super::ending`] has what becomes of it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::ending::{Due, Ending, Leaver};
use super::served::{Lease, Loaded, OnDemand, Resident, Residents, SOON, unknown};
use crate::error::{ApiError, Kind};
use crate::keep_alive::KeepAlive;
use crate::metrics::Metric;
use crate::state::State;

/// Hears that something is done.
pub(super) type Done = oneshot::Sender<Result<(), ApiError>>;

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// A request needs a model that is not loaded.
    Want(Want),
    /// A model's last request has ended, or an unloaded one has given its memory back.
    Free,
    /// Somebody asks to unload a model.
    Unload {
        id: String,
        until: Instant,
        reply: Done,
    },
}

/// A request that waits for its model.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) id: String,
    pub(crate) keep: Option<KeepAlive>,
    /// When it has waited long enough.
    pub(crate) until: Instant,
    pub(crate) reply: oneshot::Sender<Result<Lease, ApiError>>,
}

/// Why a model is unloaded.
#[derive(Clone, Copy)]
enum Why {
    /// Another one needs its memory.
    Memory,
    /// Nobody used it for its time.
    Idle,
    /// Somebody asked for that.
    Asked,
    /// Its engine has stopped.
    Stopped,
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Why::Memory => "memory",
            Why::Idle => "idle",
            Why::Asked => "asked",
            Why::Stopped => "stopped",
        }
    }
}

/// Why a model is not loaded.
enum Not {
    /// It may be later.
    Now(ApiError),
    /// It will not be.
    Ever(ApiError),
    /// It is no more.
    Gone(ApiError),
}

pub(crate) struct Keeper {
    residents: Arc<Residents>,
    on: Arc<OnDemand>,
    state: State,
    inbox: Receiver<Event>,
    wants: Vec<Want>,
    /// Unloadings that wait for the end of requests: (id, until, reply).
    unloads: Vec<(String, Instant, Done)>,
    /// Models that could not be loaded, and when that was tried.
    failed: HashMap<String, (Instant, ApiError)>,
    /// Unloaded models that end on threads of their own: what they keep may have to be written first.
    ending: Vec<(Arc<Ending>, JoinHandle<()>)>,
    /// What those models take until then.
    due: Due,
}

/// How long a model that could not be loaded is not tried again: each try may cost others theirs.
const AGAIN: Duration = Duration::from_secs(30);

impl Keeper {
    pub(crate) fn new(
        residents: Arc<Residents>,
        on: Arc<OnDemand>,
        state: State,
        inbox: mpsc::Receiver<Event>,
    ) -> Keeper {
        Keeper {
            residents,
            on,
            state,
            inbox,
            wants: Vec::new(),
            unloads: Vec::new(),
            failed: HashMap::new(),
            ending: Vec::new(),
            due: Due::default(),
        }
    }

    /// Until nobody can ask for anything any more.
    pub(crate) fn run(mut self) {
        loop {
            self.count();
            let event = match self.next_due() {
                None => self.inbox.recv().map_err(RecvTimeoutError::from),
                Some(at) => {
                    let wait = at.saturating_duration_since(Instant::now());
                    self.inbox.recv_timeout(wait)
                }
            };
            match event {
                Ok(event) => self.enter(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.take_in();
            self.ending.retain(|(_, thread)| !thread.is_finished());
            self.unload_asked();
            self.unload_idle();
            self.load_wanted();
        }
        let all = std::mem::take(&mut *self.residents.list());
        drop(all);
        for (_, thread) in self.ending {
            // A panic there was said already.
            let _ = thread.join();
        }
    }

    fn enter(&mut self, event: Event) {
        match event {
            Event::Want(want) => self.wants.push(want),
            Event::Free => {}
            Event::Unload { id, until, reply } => self.unloads.push((id, until, reply)),
        }
    }

    /// Takes in what was told meanwhile.
    fn take_in(&mut self) {
        while let Ok(event) = self.inbox.try_recv() {
            self.enter(event);
        }
    }

    /// When something is to be done even if nobody says anything.
    fn next_due(&self) -> Option<Instant> {
        let idle = self.residents.list().iter().filter_map(Resident::due).min();
        let wants = self.wants.iter().map(|want| want.until);
        let unloads = self.unloads.iter().map(|unload| unload.1);
        wants.chain(unloads).chain(idle).min()
    }

    /// Unloads what somebody asked for, if its requests have ended; it takes no new ones until then,
    /// or until that took too long.
    fn unload_asked(&mut self) {
        for (id, until, reply) in std::mem::take(&mut self.unloads) {
            let busy = {
                let mut list = self.residents.list();
                let own = list.iter_mut().find(|r| r.model.id == id);
                let patient = Instant::now() < until && !reply.is_closed();
                own.map_or(0, |own| {
                    own.leaving = patient || own.leases == 0;
                    own.leases
                })
            };
            if busy == 0 {
                let fits = |r: &Resident| r.model.id == id && r.leases == 0;
                // Another may have asked before, or its time was over.
                let ending = self.unload(fits, Why::Asked).or_else(|| self.ending(&id));
                match ending {
                    Some(ending) => ending.tell(reply),
                    None => drop(reply.send(Ok(()))),
                }
            } else if Instant::now() < until && !reply.is_closed() {
                self.unloads.push((id, until, reply));
            } else {
                let what = format!("{id} is still in use by {busy} requests");
                let error = ApiError::new(Kind::Unready, what).retry_after(SOON);
                let _ = reply.send(Err(error));
            }
        }
    }

    fn unload_idle(&mut self) {
        let now = Instant::now();
        let over = |r: &Resident| r.due().is_some_and(|at| at <= now);
        while self.unload(over, Why::Idle).is_some() {}
    }

    /// Loads what requests wait for, one model after the other.
    fn load_wanted(&mut self) {
        let mut tried: Vec<String> = Vec::new();
        loop {
            self.wants.retain(|want| !want.reply.is_closed());
            let next = self.wants.iter().find(|want| !tried.contains(&want.id));
            let Some(id) = next.map(|want| want.id.clone()) else {
                return;
            };
            let loaded = self.load(&id);
            // Whoever asked while it was being loaded gets the same answer.
            self.take_in();
            self.answer(&id, &loaded);
            tried.push(id);
        }
    }

    /// Tells those that wait for a model what became of it. Those that can wait longer do.
    fn answer(&mut self, id: &str, loaded: &Result<(), Not>) {
        let now = Instant::now();
        for want in std::mem::take(&mut self.wants) {
            let answer = match loaded {
                _ if want.id != id => None,
                Ok(()) => self.residents.take(id, want.keep).map(Ok),
                Err(Not::Ever(error) | Not::Gone(error)) => Some(Err(error.clone())),
                Err(Not::Now(error)) => (want.until <= now).then(|| Err(error.clone())),
            };
            match answer {
                // If nobody waits any more, the lease ends here.
                Some(answer) => drop(want.reply.send(answer)),
                None => self.wants.push(want),
            }
        }
    }

    /// Sees to it that a model is loaded.
    fn load(&mut self, id: &str) -> Result<(), Not> {
        self.unload(
            |r| r.model.id == id && !r.model.scheduler.is_alive(),
            Why::Stopped,
        );
        let there = self
            .residents
            .list()
            .iter()
            .find(|r| r.model.id == id)
            .map(|r| r.leaving);
        match there {
            Some(false) => return Ok(()),
            Some(true) => return Err(Not::Now(later(format!("{id} is being unloaded")))),
            None => {}
        }
        self.failed.retain(|_, (at, _)| at.elapsed() < AGAIN);
        if let Some((_, error)) = self.failed.get(id) {
            return Err(self.or_gone(id, Not::Ever(error.clone())));
        }
        let loader = self.on.loader.clone();
        let need = guarded(id, || loader.need(id)).map_err(|not| self.or_gone(id, not))?;
        let room = self.make_room(id, need)?;
        let began = Instant::now();
        let loaded: Result<Loaded, Not> = guarded(id, || loader.load(id, room));
        let loaded = loaded.map_err(|not| self.or_gone(id, not));
        if let Err(Not::Ever(error)) = &loaded {
            let failed = (Instant::now(), error.clone());
            self.failed.insert(id.to_owned(), failed);
        }
        let loaded = loaded?;
        let seconds = began.elapsed().as_secs_f64();
        self.state
            .metrics()
            .observe(Metric::ModelLoad, &[id], seconds);
        self.residents.add(loaded, self.on.keep_alive);
        self.count();
        Ok(())
    }

    /// Bytes for a model that takes `need` at least: idle ones give way if that is enough. The model
    /// gets half of what is left beyond its need: others may be loaded after it.
    fn make_room(&mut self, id: &str, need: u64) -> Result<Option<u64>, Not> {
        let Some(all) = self.on.loader.memory() else {
            return Ok(None);
        };
        if need > all {
            let what = format!(
                "{id} needs {} of memory, and there are {}",
                mb(need),
                mb(all)
            );
            tracing::warn!("{what}");
            return Err(Not::Ever(ApiError::new(Kind::Unready, what)));
        }
        let residents = self.residents.clone();
        let sum = |idle: bool| -> u64 {
            let list = residents.list();
            let those = list.iter().filter(|r| !idle || r.spare());
            those.fold(0, |sum, r| sum.saturating_add(r.taken()))
        };
        let (taken, idle) = (sum(false), sum(true));
        if need > all.saturating_sub(taken.saturating_sub(idle)) {
            return Err(Not::Now(later(format!(
                "{id} needs {} of memory; of {} models that are in use take {}",
                mb(need),
                mb(all),
                mb(taken.saturating_sub(idle))
            ))));
        }
        loop {
            let free = all.saturating_sub(sum(false));
            let now = free.saturating_sub(self.due.bytes());
            if need <= now {
                return Ok(Some(need + (now - need) / 2));
            }
            if need <= free {
                // Its place is being cleared: the keeper hears of that, and tries again.
                return Err(Not::Now(later(format!("{id} waits for memory"))));
            }
            let oldest = {
                let list = residents.list();
                let idle = list.iter().filter(|r| r.spare());
                idle.min_by_key(|r| r.used).map(|r| r.model.id.clone())
            };
            // A request may have come to an idle one meanwhile.
            let gone = oldest.is_some_and(|oldest| {
                let fits = |r: &Resident| r.model.id == oldest && r.spare();
                self.unload(fits, Why::Memory).is_some()
            });
            if !gone {
                return Err(Not::Now(later(format!("{id} waits for memory"))));
            }
        }
    }

    /// An error of the loader; another if the model is not offered any more: it was removed.
    fn or_gone(&self, id: &str, not: Not) -> Not {
        let offers = catch_unwind(AssertUnwindSafe(|| self.on.loader.offers()));
        let Ok(offers) = offers else {
            return not;
        };
        let names: Vec<String> = offers.into_iter().map(|offer| offer.id).collect();
        match names.iter().any(|name| name == id) {
            true => not,
            false => Not::Gone(unknown(id, names)),
        }
    }

    /// Unloads the first model that fits, if one does.
    fn unload(&mut self, fits: impl Fn(&Resident) -> bool, why: Why) -> Option<Arc<Ending>> {
        let gone = self.residents.remove(fits)?;
        let id = gone.model.id.clone();
        tracing::info!("{id} is unloaded ({})", why.name());
        let metrics = self.state.metrics();
        metrics.add(Metric::ModelUnloads, &[&id, why.name()], 1);
        self.count();
        let ending = Arc::new(Ending::new(id));
        let share = self.due.share(gone.taken());
        let mut leaver = Leaver::new(gone, ending.clone(), share, &self.residents, &self.state);
        let thread = std::thread::Builder::new().name("unload".into());
        match thread.spawn(move || leaver.leave()) {
            Ok(thread) => self.ending.push((ending.clone(), thread)),
            // What it was given is dropped, and the model with it: that is its end, too.
            Err(error) => tracing::warn!("no thread to unload a model: {error}"),
        }
        Some(ending)
    }

    /// A model of this name that was unloaded, and has not ended yet.
    fn ending(&self, id: &str) -> Option<Arc<Ending>> {
        let mut last = self.ending.iter().rev().map(|(ending, _)| ending);
        last.find(|ending| ending.id == id).cloned()
    }

    fn count(&self) {
        let n = i64::try_from(self.residents.list().len()).unwrap_or(i64::MAX);
        self.state.metrics().set(Metric::ModelsLoaded, &[], n);
    }
}

/// What the loader says. What is wrong with a model's files is for the log, and ends nothing else.
fn guarded<T>(id: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, Not> {
    let why = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(why)) => why,
        Err(_) => "a bug".to_owned(),
    };
    tracing::error!("{id} cannot be loaded: {why}");
    let what = format!("{id} cannot be loaded: the server's log says why");
    Err(Not::Ever(ApiError::new(Kind::Internal, what)))
}

fn later(what: String) -> ApiError {
    ApiError::new(Kind::Unready, what).retry_after(SOON)
}

/// Bytes for people.
fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
