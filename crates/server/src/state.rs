//! What all requests share: settings, keys, quotas, counters, and the ways to the database.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::audit::Event;
use crate::clock::Clock;
use crate::error::{ApiError, Error, Kind};
use crate::journal::Journal;
use crate::keys::Keys;
use crate::metrics::{Metric, Metrics};
use crate::principal::{Principal, REFUSED};
use crate::quota::Meter;
use crate::request::Tracked;
use crate::settings::{Auth, Settings};
use crate::spans::Spans;
use crate::store::Store;

/// The state of one server; a copy is the same state.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    settings: Settings,
    auth: Auth,
    keys: Keys,
    meter: Meter,
    journal: Journal,
    reader: Mutex<Store>,
    metrics: Arc<Metrics>,
    models: RwLock<Vec<String>>,
    ready: AtomicBool,
    /// Models whose engine stopped are loaded again.
    revives: AtomicBool,
    work: Arc<Semaphore>,
    /// Whether what still runs is cut off.
    cut: watch::Sender<bool>,
    spans: Option<Spans>,
}

impl State {
    /// A server that answers by these settings and keeps its database at `path`.
    ///
    /// # Errors
    /// [`Error::Unguarded`] when others could ask without a key, and the database's errors.
    pub fn open(settings: Settings, path: &Path) -> Result<State, Error> {
        let store = Store::open(path)?;
        let now = settings.clock.now();
        let meter = Meter::new(store.tokens_since(crate::time::month_began(now))?, now);
        let keys = Keys::new(settings.api_keys.clone(), Store::open(path)?)?;
        let auth = Auth::decide(settings.address, keys.any(), settings.no_auth)?;
        let metrics = Arc::new(Metrics::default());
        let journal = Journal::start(store, metrics.clone())?;
        let spans = settings.spans.clone();
        let spans = spans
            .map(|to| Spans::start(to, metrics.clone()))
            .transpose()?;
        let reader = Mutex::new(Store::open(path)?);
        let work = Arc::new(Semaphore::new(
            settings.max_requests.min(Semaphore::MAX_PERMITS),
        ));
        Ok(State(Arc::new(Inner {
            settings,
            auth,
            keys,
            meter,
            journal,
            reader,
            metrics,
            models: RwLock::default(),
            ready: AtomicBool::new(true),
            revives: AtomicBool::new(false),
            work,
            cut: watch::Sender::new(false),
            spans,
        })))
    }

    /// As the command line decided.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What is measured.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The time.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.settings.clock
    }

    /// Who may ask.
    #[must_use]
    pub fn auth(&self) -> Auth {
        self.0.auth
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// The ids of the models that are served.
    #[must_use]
    pub fn models(&self) -> Vec<String> {
        let models = self.0.models.read().unwrap_or_else(PoisonError::into_inner);
        models.clone()
    }

    /// Sets the ids of the models that are served.
    pub fn set_models(&self, models: Vec<String>) {
        *self
            .0
            .models
            .write()
            .unwrap_or_else(PoisonError::into_inner) = models;
    }

    pub(crate) fn spans(&self) -> Option<&Spans> {
        self.0.spans.as_ref()
    }

    /// Whether `/ready` says so: a server that loads its models says no until it has.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::SeqCst);
    }

    /// Models whose engine stops are loaded again when they are asked for.
    pub(crate) fn set_revives(&self) {
        self.0.revives.store(true, Ordering::SeqCst);
    }

    /// An engine has stopped: where its model does not come back, whoever routes requests should
    /// know.
    pub(crate) fn engine_stopped(&self) {
        if !self.0.revives.load(Ordering::SeqCst) {
            self.set_ready(false);
        }
    }

    /// Cuts off what still runs.
    pub(crate) fn cut(&self) {
        self.0.cut.send_replace(true);
    }

    /// Waits until what still runs is cut off, and says so.
    pub(crate) fn when_cut(&self) -> impl Future<Output = ApiError> + use<> {
        let mut cut = self.0.cut.subscribe();
        async move {
            // Its sender is the state's: who waits for it holds that as well.
            let _ = cut.wait_for(|cut| *cut).await;
            let what = "the server is ending, and the answer needed longer than it could wait";
            ApiError::new(Kind::Unready, what)
        }
    }

    /// Why it is not ready to work.
    pub(crate) fn unready(&self) -> Option<ApiError> {
        if !self.0.ready.load(Ordering::SeqCst) {
            let what = "models are being loaded, or the server is ending";
            return Some(ApiError::new(Kind::Unready, what).retry_after(Duration::from_secs(2)));
        }
        self.0.journal.trouble()
    }

    /// Gives a request its place in the journal.
    pub(crate) async fn begin(&self, tracked: &Tracked) -> Result<(), ApiError> {
        let place = self.0.journal.place().await?;
        tracked.notes().place = Some(place);
        Ok(())
    }

    /// A key was presented that opens nothing. It is counted, and where keys that open something
    /// are written down, so is this one; never the key itself.
    pub(crate) fn refused(&self, tracked: &Tracked, kept: bool) {
        self.metrics().add(Metric::RefusedKeys, &[], 1);
        if kept {
            let mut event = tracked.event(&tracked.notes(), 401);
            REFUSED.clone_into(&mut event.key);
            self.0.journal.refused(event);
        }
    }

    /// Lets a request to the engine, if its key has something left and there is room. The room is
    /// its own until it has ended.
    pub(crate) fn begin_work(&self, who: &Principal) -> Result<(), ApiError> {
        if let Some(error) = self.unready() {
            return Err(error);
        }
        // The room first: who finds none has used up nothing of the key's quota. It is given back
        // if the quota refuses.
        let room = self.0.work.clone().try_acquire_owned().map_err(|_| {
            let what = format!(
                "{} requests are being answered already",
                self.0.settings.max_requests
            );
            ApiError::new(Kind::Busy, what).retry_after(Duration::from_secs(1))
        })?;
        let (result, left) = self
            .0
            .meter
            .admit(&who.key, &who.quotas, self.clock().now());
        who.request.notes().left = left;
        result?;
        let mut notes = who.request.notes();
        (notes.room, notes.billed) = (Some(room), true);
        Ok(())
    }

    /// Holds tokens for a request until [`Held`] is dropped: `most`, or what the principal has left
    /// if that is less, but `least` at least. A handler asks when it knows the prompt's length,
    /// before any work, and accounts what was used before it lets go.
    ///
    /// # Errors
    /// 429, with the time to come again.
    pub fn hold(&self, who: &Principal, least: u64, most: u64) -> Result<Held, ApiError> {
        let (meter, now) = (&self.0.meter, self.clock().now());
        let (key, quotas) = (&who.key, &who.quotas);
        let held = meter.hold(key, quotas, (least, most), now);
        who.request.notes().left = meter.left(key, quotas, now);
        Ok(Held {
            tokens: held?,
            state: self.clone(),
            who: who.clone(),
        })
    }

    /// Tokens that a key has used in this calendar month.
    #[must_use]
    pub fn month_tokens(&self, key: &str) -> u64 {
        self.0.meter.month_tokens(key, self.clock().now())
    }

    /// Handlers say what a request used: its model, the adapter (empty: none), and tokens, which
    /// are added to those of earlier calls; beside them what was said, which is kept for the audit
    /// log if the settings want that. May be called while the answer streams, and also after the
    /// client has left.
    pub fn account(
        &self,
        who: &Principal,
        model: &str,
        adapter: &str,
        prompt_tokens: u64,
        completion_tokens: u64,
        said: Option<String>,
    ) {
        let said = said.filter(|_| self.0.settings.audit_content);
        let values = [model, &who.key];
        self.metrics()
            .add(Metric::PromptTokens, &values, prompt_tokens);
        self.metrics()
            .add(Metric::CompletionTokens, &values, completion_tokens);
        let tokens = prompt_tokens.saturating_add(completion_tokens);
        self.0
            .meter
            .spend(&who.key, &who.quotas, tokens, self.clock().now());
        let mut notes = who.request.notes();
        model.clone_into(&mut notes.model);
        adapter.clone_into(&mut notes.adapter);
        if notes.ended {
            let mut event = who.request.event(&notes, 0);
            (event.prompt_tokens, event.completion_tokens) = (prompt_tokens, completion_tokens);
            event.counted = false;
            event.content = said;
            return self.0.journal.late(event);
        }
        notes.prompt_tokens = notes.prompt_tokens.saturating_add(prompt_tokens);
        notes.completion_tokens = notes.completion_tokens.saturating_add(completion_tokens);
        if let Some(said) = said {
            notes.content.get_or_insert_default().push_str(&said);
        }
    }

    /// Keeps what was asked for the audit log, if the settings want that.
    pub fn keep_content(&self, who: &Principal, text: impl FnOnce() -> String) {
        if self.0.settings.audit_content {
            let mut notes = who.request.notes();
            notes.content.get_or_insert_default().push_str(&text());
        }
    }

    /// A request has ended: what it did is written down, and its room is another's.
    pub(crate) fn ended(&self, tracked: &Tracked, status: u16) {
        let mut notes = tracked.notes();
        (notes.ended, notes.room, notes.lease) = (true, None, None);
        if let Some(place) = notes.place.take() {
            let mut event: Event = tracked.event(&notes, status);
            event.content = notes.content.take();
            drop(place.send(event));
        }
    }

    /// Asks the database, on a thread that may wait for it.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, ApiError> {
        let state = self.clone();
        let work = move || {
            ask(&state
                .0
                .reader
                .lock()
                .unwrap_or_else(PoisonError::into_inner))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ApiError::new(
                Kind::Internal,
                "the database was asked in vain",
            )),
        }
    }

    /// Writes what is left to be written. Nothing can be asked of the server after that.
    pub(crate) fn close(&self) {
        self.0.journal.close();
        if let Some(spans) = self.spans() {
            spans.close();
        }
    }
}

/// Tokens that are held for a request; what is left of them is free again when this is dropped.
pub struct Held {
    state: State,
    who: Principal,
    tokens: u64,
}

impl Held {
    /// How many.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Takes some of them apart, to be freed at their own time.
    #[must_use]
    pub fn part(&mut self, tokens: u64) -> Held {
        let tokens = tokens.min(self.tokens);
        self.tokens -= tokens;
        Held {
            state: self.state.clone(),
            who: self.who.clone(),
            tokens,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.tokens > 0 {
            let (meter, now) = (&self.state.0.meter, self.state.clock().now());
            let (key, quotas) = (&self.who.key, &self.who.quotas);
            meter.release(key, quotas, self.tokens, now);
            self.who.request.notes().left = meter.left(key, quotas, now);
        }
    }
}
