//! The models that may be asked for, of which some are loaded.
//!
//! Without a [`Loader`] all of them are loaded at the start, and stay. With one, a model is loaded
//! when a request names it, and unloaded when nobody has used it for a while or another needs its
//! memory: [`super::keeper`] does both, on a thread of its own. Whoever uses a model holds a
//! [`Lease`] of it: what is leased is not unloaded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::keeper::{Event, Keeper, Want};
use super::{Body, Model, aside, invalid};
use crate::error::{ApiError, Error, Kind};
use crate::keep_alive::KeepAlive;
use crate::state::State;

/// Finds models and loads them: the command line knows how. Every method may take its time, but
/// none may wait for the network.
pub trait Loader: Send + Sync {
    /// All models that may be asked for now.
    fn offers(&self) -> Vec<Offer>;
    /// Bytes that all loaded models together may take; `None`: nobody knows.
    fn memory(&self) -> Option<u64>;
    /// Bytes that a model takes at least when it is loaded.
    ///
    /// # Errors
    /// Why it cannot be, for the log.
    fn need(&self, id: &str) -> Result<u64, String>;
    /// Loads a model, in so many bytes at most.
    ///
    /// # Errors
    /// Why it cannot be, for the log.
    fn load(&self, id: &str, room: Option<u64>) -> Result<Loaded, String>;
}

/// A model that may be asked for.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its name in requests.
    pub id: String,
    /// When it was made or fetched, in seconds since 1970; 0: nobody knows.
    pub created: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// The most tokens that it was made for, where that can be read.
    pub context: Option<usize>,
}

/// A model that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// It.
    pub model: Model,
    /// Bytes that it takes when its cache is full.
    pub bytes: u64,
}

/// How models come and go.
pub struct OnDemand {
    /// Who loads them.
    pub loader: Arc<dyn Loader>,
    /// How long an idle one stays, where a request does not say.
    pub keep_alive: KeepAlive,
    /// How long a request waits for its model.
    pub patience: Duration,
}

/// All models that are served.
pub struct Served {
    residents: Arc<Residents>,
    /// Refuse what a request says and no table knows.
    pub(crate) strict: bool,
    /// The model of requests that name none.
    default: Option<String>,
    door: Option<Door>,
}

/// The way to models that are not loaded.
struct Door {
    on: Arc<OnDemand>,
    state: State,
    /// What was offered, and when that was asked.
    offers: tokio::sync::Mutex<Option<(Instant, Arc<Vec<Offer>>)>>,
    keeper: Option<JoinHandle<()>>,
}

/// How long a list of offers is good for.
const FRESH: Duration = Duration::from_secs(1);
/// The longest name that is looked for, and the most that an error lists.
const LONGEST: usize = 512;
const MOST_LISTED: usize = 32;

impl Served {
    /// These models, which stay. `strict`: keys that no table knows are refused instead of logged.
    #[must_use]
    pub fn new(models: Vec<Model>, strict: bool) -> Arc<Served> {
        let default = match &models[..] {
            [only] => Some(only.id.clone()),
            _ => None,
        };
        let residents = Arc::new(Residents::default());
        for model in models {
            residents.add(Loaded { model, bytes: 0 }, KeepAlive::FOREVER);
        }
        Arc::new(Served {
            residents,
            strict,
            default,
            door: None,
        })
    }

    /// Models that are loaded when they are asked for, and these to begin with: the first of them is
    /// the one of requests that name none.
    ///
    /// # Errors
    /// [`Error::Io`] if no thread starts.
    pub fn on_demand(
        state: &State,
        first: Vec<Loaded>,
        on: OnDemand,
        strict: bool,
    ) -> Result<Arc<Served>, Error> {
        let default = first.first().map(|loaded| loaded.model.id.clone());
        let (residents, on) = (Arc::new(Residents::default()), Arc::new(on));
        let (events, inbox) = mpsc::channel();
        *residents.events() = Some(events);
        for loaded in first {
            residents.add(loaded, on.keep_alive);
        }
        let keeper = Keeper::new(residents.clone(), on.clone(), state.clone(), inbox);
        let thread = std::thread::Builder::new().name("models".into());
        let thread = thread
            .spawn(move || keeper.run())
            .map_err(Error::io("start the thread that loads models"))?;
        state.set_revives();
        let offers = Arc::new(on.loader.offers());
        state.set_models(offers.iter().map(|offer| offer.id.clone()).collect());
        Ok(Arc::new(Served {
            residents,
            strict,
            default,
            door: Some(Door {
                on,
                state: state.clone(),
                offers: tokio::sync::Mutex::new(Some((Instant::now(), offers))),
                keeper: Some(thread),
            }),
        }))
    }

    /// The names of those that are loaded.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let list = self.residents.list();
        list.iter().map(|r| r.model.id.clone()).collect()
    }

    /// Those that are loaded and fit.
    pub(crate) fn loaded(&self, fits: impl Fn(&Model) -> bool) -> Vec<Arc<Model>> {
        let list = self.residents.list();
        let models = list.iter().map(|r| &r.model);
        models.filter(|m| fits(m)).cloned().collect()
    }

    /// The names of a model and of an adapter, if a word is the two of them: `MODEL:ADAPTER`.
    pub(crate) async fn with_adapter(&self, word: &str) -> Option<(String, String)> {
        let (base, adapter) = word.rsplit_once(':')?;
        // Steady use asks for no new list.
        let has = |m: &Model| m.id == base && m.adapters.has(adapter);
        if !self.residents.has(word) && !self.loaded(has).is_empty() {
            let offers = self.offers(false).await.ok()?;
            if offers.iter().all(|offer| offer.id != word) {
                return Some((base.to_owned(), adapter.to_owned()));
            }
        }
        let two = self.check(word).await.is_err() && self.check(base).await.is_ok();
        two.then(|| (base.to_owned(), adapter.to_owned()))
    }

    /// The model of this name if it is loaded; without a name the default or only one.
    pub(crate) fn there(&self, id: Option<&str>) -> Option<Arc<Model>> {
        let id = id.or(self.default.as_deref());
        match &self.loaded(|m| id.is_none_or(|id| m.id == id))[..] {
            [only] => Some(only.clone()),
            _ => None,
        }
    }

    /// The model that a body names, loaded; the default one if it names none. `keeps`: whether its
    /// `keep_alive` counts.
    pub(crate) async fn of(&self, body: &Body, keeps: bool) -> Result<Lease, ApiError> {
        let keep = match body.get("keep_alive").filter(|v| !v.is_null()) {
            None => None,
            Some(value) => Some(KeepAlive::of_json(value).ok_or_else(|| {
                let what = "must be seconds or a time like \"5m\"; 0: unload at once, -1: never";
                invalid("keep_alive", what)
            })?),
        };
        let keep = keep.filter(|_| keeps);
        match (body.get("model"), &self.default) {
            (Some(Value::String(id)), _) => self.lend(id, keep).await,
            (None | Some(Value::Null), Some(id)) => self.lend(id, keep).await,
            _ => Err(invalid("model", "must be the name of a model")),
        }
    }

    /// A model to use, loaded first if it must be.
    pub(crate) async fn lend(&self, id: &str, keep: Option<KeepAlive>) -> Result<Lease, ApiError> {
        let lease = self.residents.take(id, keep);
        let Some(door) = &self.door else {
            return match lease {
                Some(lease) => Ok(lease),
                None => Err(unknown(id, self.ids())),
            };
        };
        if let Some(lease) = lease.filter(|l| l.model.scheduler.is_alive()) {
            return Ok(lease);
        }
        self.check(id).await?;
        let (reply, answer) = oneshot::channel();
        let want = Want {
            id: id.to_owned(),
            keep,
            until: Instant::now() + door.on.patience,
            reply,
        };
        self.residents.tell(Event::Want(want));
        // The thread may be busy with another model.
        match tokio::time::timeout(door.on.patience + LATE, answer).await {
            Ok(Ok(answer)) => answer,
            _ => {
                let what = format!("{id} is still being loaded");
                Err(ApiError::new(Kind::Unready, what).retry_after(SOON))
            }
        }
    }

    /// Unloads a model when its requests have ended; new ones wait meanwhile.
    pub(crate) async fn unload(&self, id: &str) -> Result<(), ApiError> {
        self.check(id).await?;
        let Some(door) = &self.door else {
            let what = "models stay loaded: this server was started without --on-demand";
            return Err(ApiError::new(Kind::Invalid, what));
        };
        let (reply, answer) = oneshot::channel();
        self.residents.tell(Event::Unload {
            id: id.to_owned(),
            until: Instant::now() + door.on.patience,
            reply,
        });
        match tokio::time::timeout(door.on.patience + LATE, answer).await {
            Ok(Ok(answer)) => answer,
            _ => {
                let what = format!("{id} is still being unloaded");
                Err(ApiError::new(Kind::Unready, what).retry_after(SOON))
            }
        }
    }

    /// Is it a model that may be asked for? Nothing but a name on the list is.
    async fn check(&self, id: &str) -> Result<(), ApiError> {
        let has = |list: &[Offer]| list.iter().any(|offer| offer.id == id);
        let known = id.len() <= LONGEST
            && (self.residents.has(id) || has(&self.offers(false).await?) || {
                let fresh = self.offers(true).await?;
                has(&fresh)
            });
        match known {
            true => Ok(()),
            false => Err(unknown(id, self.names().await?)),
        }
    }

    /// What is offered; asked anew if that is wanted and not done lately, or was never done.
    async fn offers(&self, anew: bool) -> Result<Arc<Vec<Offer>>, ApiError> {
        let Some(door) = &self.door else {
            return Ok(Arc::default());
        };
        let mut kept = door.offers.lock().await;
        if let Some((at, offers)) = &*kept
            && (!anew || at.elapsed() < FRESH)
        {
            return Ok(offers.clone());
        }
        let loader = door.on.loader.clone();
        let offers = Arc::new(aside(move || Ok(loader.offers())).await?);
        let ids = offers.iter().map(|offer| offer.id.clone());
        door.state.set_models(ids.collect());
        *kept = Some((Instant::now(), offers.clone()));
        Ok(offers)
    }

    /// All names, those of the offers first.
    async fn names(&self) -> Result<Vec<String>, ApiError> {
        let offers = self.offers(true).await?;
        let mut names: Vec<String> = offers.iter().map(|offer| offer.id.clone()).collect();
        for id in self.ids() {
            if !names.contains(&id) {
                names.push(id);
            }
        }
        Ok(names)
    }

    /// All models that may be asked for, as a client sees them.
    pub(crate) async fn list(&self) -> Result<Vec<Value>, ApiError> {
        let (names, offers) = (self.names().await?, self.offers(false).await?);
        let list = self.residents.list();
        let each = names.iter().map(|id| {
            let resident = list.iter().find(|r| r.model.id == *id);
            let offer = offers.iter().find(|offer| offer.id == *id);
            about(id, resident, offer)
        });
        let mut all: Vec<Value> = each.collect();
        // By the word that requests name both with; a model of that name comes first.
        for model in list.iter().map(|r| &r.model) {
            let adapters = model.adapters.as_models(&model.id).into_iter();
            all.extend(adapters.filter(|a| names.iter().all(|name| a["id"] != **name)));
        }
        Ok(all)
    }

    /// One of them.
    pub(crate) async fn one(&self, id: &str) -> Result<Value, ApiError> {
        let list = self.list().await?;
        let found = list.into_iter().find(|model| model["id"] == id);
        match found {
            Some(found) => Ok(found),
            None => Err(unknown(id, self.names().await?)),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The keeper ends when nobody can tell it anything any more.
        *self.residents.events() = None;
        let keeper = self.door.as_mut().and_then(|door| door.keeper.take());
        if let Some(keeper) = keeper {
            let _ = keeper.join();
        }
    }
}

/// How much later than the thread a request gives up: the thread knows why.
const LATE: Duration = Duration::from_secs(1);
/// When to come again.
pub(crate) const SOON: Duration = Duration::from_secs(5);

pub(crate) fn unknown(id: &str, mut names: Vec<String>) -> ApiError {
    let shown: String = id.chars().take(64).collect();
    let more = names.len().saturating_sub(MOST_LISTED);
    names.truncate(MOST_LISTED);
    let more = match more {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let names = names.join(", ");
    let what = format!("there is no model {shown:?}; there are: {names}{more}");
    ApiError::new(Kind::Model, what).param("model")
}

/// A model as a client sees it.
fn about(id: &str, resident: Option<&Resident>, offer: Option<&Offer>) -> Value {
    let made = offer.map(|offer| offer.created).filter(|at| *at > 0);
    let mut about = json!({
        "id": id, "object": "model", "owned_by": "puna", "created": made.unwrap_or(0),
        "loaded": false, "size": offer.map(|offer| offer.bytes),
        "context": offer.and_then(|offer| offer.context),
    });
    let Some(resident) = resident else {
        return about;
    };
    let scheduler = &resident.model.scheduler;
    let params = scheduler.params();
    about["created"] = json!(made.unwrap_or(resident.model.created));
    about["loaded"] = json!(scheduler.is_alive());
    if offer.is_none() {
        about["size"] = json!(scheduler.weights().bytes());
    }
    about["context"] = json!(params.context);
    about["parallel"] = json!(params.parallel);
    about["requests"] = json!(resident.leases);
    if resident.bytes > 0 {
        let left = resident
            .due()
            .map(|at| at.saturating_duration_since(Instant::now()));
        about["memory"] = json!(resident.taken());
        about["unloads_in"] = json!(left.map(|left| left.as_secs()));
    }
    about
}

/// Those that are loaded.
#[derive(Debug, Default)]
pub(crate) struct Residents {
    list: Mutex<Vec<Resident>>,
    /// Numbers given so far.
    serials: AtomicU64,
    /// The way to the keeper; `None`: there is none.
    events: Mutex<Option<mpsc::Sender<Event>>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) model: Arc<Model>,
    /// The same model loaded again is another.
    serial: u64,
    /// What it takes of the memory for models, without its adapters.
    bytes: u64,
    pub(crate) leases: usize,
    /// When its last lease began or ended.
    pub(crate) used: Instant,
    pub(crate) keep: KeepAlive,
    /// To be unloaded: it takes no more requests.
    pub(crate) leaving: bool,
}

impl Resident {
    /// Whether it may give way: nobody uses it, and loaded anew it is the same.
    pub(crate) fn spare(&self) -> bool {
        self.leases == 0 && !self.model.adapters.changed()
    }

    /// What it takes of the memory for models, with its adapters.
    pub(crate) fn taken(&self) -> u64 {
        self.bytes.saturating_add(self.model.adapters.bytes())
    }

    /// When it is to be unloaded, if nobody uses it until then.
    pub(crate) fn due(&self) -> Option<Instant> {
        let span = self.keep.span().filter(|_| self.spare())?;
        self.used.checked_add(span)
    }
}

impl Residents {
    // Nothing panics while it holds a lock.
    pub(crate) fn list(&self) -> MutexGuard<'_, Vec<Resident>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn events(&self) -> MutexGuard<'_, Option<mpsc::Sender<Event>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, event: Event) {
        if let Some(events) = &*self.events() {
            let _ = events.send(event);
        }
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.list().iter().any(|r| r.model.id == id)
    }

    pub(crate) fn add(&self, loaded: Loaded, keep: KeepAlive) {
        let mut list = self.list();
        list.push(Resident {
            model: Arc::new(loaded.model),
            serial: self.serials.fetch_add(1, Ordering::Relaxed),
            bytes: loaded.bytes,
            leases: 0,
            used: Instant::now(),
            keep,
            leaving: false,
        });
    }

    /// A lease of a model that is loaded and stays so.
    pub(crate) fn take(self: &Arc<Self>, id: &str, keep: Option<KeepAlive>) -> Option<Lease> {
        let mut list = self.list();
        let found = list.iter_mut().find(|r| r.model.id == id && !r.leaving)?;
        found.leases += 1;
        found.used = Instant::now();
        found.keep = keep.unwrap_or(found.keep);
        Some(Lease {
            model: found.model.clone(),
            serial: found.serial,
            residents: self.clone(),
        })
    }

    /// Takes a model off the list.
    pub(crate) fn remove(&self, fits: impl Fn(&Resident) -> bool) -> Option<Resident> {
        let mut list = self.list();
        let at = list.iter().position(fits)?;
        Some(list.remove(at))
    }
}

/// A model in use: it stays until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) model: Arc<Model>,
    serial: u64,
    residents: Arc<Residents>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut list = self.residents.list();
        let Some(own) = list.iter_mut().find(|r| r.serial == self.serial) else {
            return;
        };
        own.leases -= 1;
        own.used = Instant::now();
        let free = own.leases == 0;
        drop(list);
        if free {
            self.residents.tell(Event::Free);
        }
    }
}
