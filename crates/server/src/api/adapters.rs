//! Adapters that requests choose: loaded under a name while the server runs, used by those requests
//! that say the name, in one batch with the others.
//!
//! What a request says is looked up among the names that are loaded, never opened: files are opened
//! only in [`Adapters::load`], for whoever has the scope admin.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{Adaptation, Scheduler};
use model::{Adapter, AdapterInfo};
use serde_json::{Map, Value, json};

use super::{Body, Model, Served, aside, invalid};
use crate::error::{ApiError, Kind};

/// Most adapters of a model, of one request, and scales of one that are kept at hand.
const MOST_LOADED: usize = 64;
const MOST_CHOSEN: usize = 8;
const MOST_SCALES: usize = 16;
/// Beyond it numbers overflow and texts decay.
const LARGEST_SCALE: f64 = 1000.0;
/// The longest name.
const LONGEST_NAME: usize = 64;

/// Finds what a word names (a name of the store, or a path) and opens it beside the model that a
/// scheduler runs, if it fits in memory. Returns it with its scale.
pub type Opener = Arc<dyn Fn(&Scheduler, &str) -> Result<(Adapter, f32), ApiError> + Send + Sync>;

/// The adapters of one model that requests may choose.
#[derive(Default)]
pub struct Adapters {
    opener: Option<Opener>,
    /// One is opened at a time, so that each sees the memory that is left.
    opening: Mutex<()>,
    next: AtomicU64,
    list: Mutex<Vec<Arc<Named>>>,
    /// What requests use that choose nothing: numbers and scales, as llama.cpp sets them.
    standing: Mutex<Vec<(u64, f32)>>,
    /// A request has changed them: the model loaded anew would not have them.
    changed: AtomicBool,
}

/// An adapter that is loaded.
struct Named {
    /// In llama.cpp's lists; never given twice.
    number: u64,
    id: String,
    created: u64,
    scale: f32,
    info: AdapterInfo,
    adapter: Arc<Adapter>,
    /// The same at other scales: those who ask for one scale share their beginnings.
    scaled: Mutex<VecDeque<(f32, Arc<Adapter>)>>,
}

/// What a request runs with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chosen {
    pub(crate) adaptation: Adaptation,
    /// The names, joined with `+`; empty: none was chosen.
    pub(crate) name: String,
}

/// One of those that a request names.
struct Wanted {
    id: Id,
    scale: Option<f32>,
}

enum Id {
    Name(String),
    Number(u64),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Adapters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = lock(&self.list).iter().map(|a| a.id.clone()).collect();
        f.debug_tuple("Adapters").field(&names).finish()
    }
}

impl Adapters {
    /// None yet; `opener` opens those that are to be loaded.
    #[must_use]
    pub fn new(opener: Opener) -> Adapters {
        Adapters {
            opener: Some(opener),
            ..Adapters::default()
        }
    }

    /// Loads what `word` names under the name `id`; `scale`: what it has for requests that say none
    /// [default: the opener's]. Takes its time.
    ///
    /// # Errors
    /// A name that cannot be, or is taken; and why the adapter cannot be opened.
    pub fn load(
        &self,
        scheduler: &Scheduler,
        id: &str,
        word: &str,
        scale: Option<f32>,
        created: u64,
    ) -> Result<(), ApiError> {
        let opener = self.opener.as_ref().ok_or_else(|| {
            let what = "this server opens no adapters";
            ApiError::new(Kind::Unsupported, what)
        })?;
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let starts = id.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || id.len() > LONGEST_NAME || !id.chars().all(good) {
            let what = "must be 1 to 64 letters, digits and ._-, a letter or digit first";
            return Err(invalid("name", what));
        }
        let _one = lock(&self.opening);
        let (count, taken) = {
            let list = lock(&self.list);
            (list.len(), list.iter().any(|a| a.id == id))
        };
        if taken {
            return Err(invalid(
                "name",
                &format!("{id} is loaded already; unload it first"),
            ));
        }
        if count >= MOST_LOADED {
            let what = format!("{MOST_LOADED} adapters are loaded, which is as many as may");
            return Err(ApiError::new(Kind::Invalid, what));
        }
        let (adapter, own) = opener(scheduler, word)?;
        let scale = scale.unwrap_or(own);
        let adapter = adapter.at(scale).map_err(unfit)?;
        let named = Named {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            id: id.to_owned(),
            created,
            scale,
            info: adapter.about(),
            adapter: Arc::new(adapter),
            scaled: Mutex::default(),
        };
        lock(&self.list).push(Arc::new(named));
        Ok(())
    }

    /// The same for a request: the model stays loaded from then on.
    pub(crate) fn load_asked(
        &self,
        scheduler: &Scheduler,
        id: &str,
        word: &str,
        scale: Option<f32>,
        created: u64,
    ) -> Result<(), ApiError> {
        self.load(scheduler, id, word, scale, created)?;
        self.changed.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Whether they are others than those that the model began with.
    pub(crate) fn changed(&self) -> bool {
        self.changed.load(Ordering::SeqCst)
    }

    /// Bytes of memory that they take.
    pub(crate) fn bytes(&self) -> u64 {
        lock(&self.list).iter().map(|a| a.info.bytes).sum()
    }

    /// Forgets one. Requests that run with it go on with it.
    pub(crate) fn unload(&self, id: &str) -> Result<(), ApiError> {
        let mut list = lock(&self.list);
        let place = list.iter().position(|a| a.id == id);
        let place = place.ok_or_else(|| unknown(id, &list))?;
        let gone = list.remove(place);
        lock(&self.standing).retain(|(number, _)| *number != gone.number);
        self.changed.store(true, Ordering::SeqCst);
        Ok(())
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        lock(&self.list).iter().any(|a| a.id == id)
    }

    /// All of them, as lists of models have them, with the word that requests say.
    pub(crate) fn as_models(&self, model: &str) -> Vec<Value> {
        let list = lock(&self.list);
        let about = list.iter().map(|a| {
            json!({
                "id": format!("{model}:{}", a.id), "object": "model", "owned_by": "puna",
                "created": a.created, "parent": model, "adapter": a.id, "loaded": true,
                "size": a.info.bytes,
            })
        });
        about.collect()
    }

    /// All of them, as lists have them.
    pub(crate) fn about(&self, model: &str) -> Vec<Value> {
        let list = lock(&self.list);
        let about = list.iter().map(|a| {
            json!({
                "id": a.id, "object": "adapter", "created": a.created, "model": model,
                "kind": if a.info.dora { "dora" } else { "lora" }, "rank": a.info.rank,
                "bytes": a.info.bytes, "scale": a.scale,
            })
        });
        about.collect()
    }

    /// All of them as llama.cpp lists them: the scale is what requests get that choose nothing.
    pub(crate) fn numbered(&self) -> Vec<Value> {
        let standing = lock(&self.standing).clone();
        let list = lock(&self.list);
        let one = |a: &Arc<Named>| {
            let stands = standing.iter().find(|(number, _)| *number == a.number);
            json!({ "id": a.number, "path": a.id, "scale": stands.map_or(0.0, |s| s.1) })
        };
        list.iter().map(one).collect()
    }

    /// Sets what requests use that choose nothing: these, and none else.
    pub(crate) fn stand(&self, list: &[Value]) -> Result<(), ApiError> {
        let found = self.find(&wanted("scales", list)?)?;
        let all = found.iter().map(|(a, scale)| (a.number, *scale));
        *lock(&self.standing) = all.collect();
        self.changed.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn find(&self, wanted: &[Wanted]) -> Result<Vec<(Arc<Named>, f32)>, ApiError> {
        let list = lock(&self.list);
        let mut found: Vec<(Arc<Named>, f32)> = Vec::new();
        for w in wanted {
            let (is, said) = match &w.id {
                Id::Name(name) => (list.iter().find(|a| a.id == *name), name.clone()),
                Id::Number(n) => (list.iter().find(|a| a.number == *n), n.to_string()),
            };
            let is = is.ok_or_else(|| unknown(&said, &list))?;
            if found.iter().any(|(other, _)| other.number == is.number) {
                return Err(invalid("adapters", &format!("name {} twice", is.id)));
            }
            found.push((is.clone(), w.scale.unwrap_or(is.scale)));
        }
        Ok(found)
    }

    fn standing(&self) -> Vec<(Arc<Named>, f32)> {
        let standing = lock(&self.standing).clone();
        let list = lock(&self.list);
        let one = |(number, scale): &(u64, f32)| {
            let is = list.iter().find(|a| a.number == *number)?;
            Some((is.clone(), *scale))
        };
        standing.iter().filter_map(one).collect()
    }
}

impl Named {
    /// At a scale, the same object for all who ask for the same.
    fn at(&self, scale: f32) -> Result<Arc<Adapter>, ApiError> {
        if scale == self.scale {
            return Ok(self.adapter.clone());
        }
        let mut scaled = lock(&self.scaled);
        let place = scaled.iter().position(|(s, _)| *s == scale);
        let found = match place.and_then(|i| scaled.remove(i)) {
            Some(found) => found,
            None => (scale, Arc::new(self.adapter.at(scale).map_err(unfit)?)),
        };
        scaled.truncate(MOST_SCALES - 1);
        scaled.push_front(found.clone());
        Ok(found.1)
    }
}

fn unfit(error: model::Error) -> ApiError {
    ApiError::new(Kind::Invalid, error.to_string()).param("adapters")
}

fn unknown(id: &str, list: &[Arc<Named>]) -> ApiError {
    let id: String = id.chars().take(LONGEST_NAME).collect();
    let names: Vec<&str> = list.iter().map(|a| &*a.id).collect();
    let there = match names.is_empty() {
        true => "none is loaded".to_owned(),
        false => format!("there are: {}", names.join(", ")),
    };
    let what = format!("there is no adapter {id:?}; {there}");
    ApiError::new(Kind::Adapter, what).param("adapters")
}

/// A list of `{"id", "scale"}`.
fn wanted(param: &str, list: &[Value]) -> Result<Vec<Wanted>, ApiError> {
    if list.len() > MOST_CHOSEN {
        return Err(invalid(
            param,
            &format!("may have {MOST_CHOSEN} entries at most"),
        ));
    }
    let one = |entry: &Value| {
        let wrong = || {
            let what = format!(
                "must be a list of {{\"id\", \"scale\"}}: an adapter's name or number, and a number \
                 from -{LARGEST_SCALE} to {LARGEST_SCALE}"
            );
            invalid(param, &what)
        };
        let entry: &Map<String, Value> = entry.as_object().ok_or_else(wrong)?;
        if entry.keys().any(|name| name != "id" && name != "scale") {
            return Err(wrong());
        }
        let id = match entry.get("id") {
            Some(Value::String(name)) => Id::Name(name.clone()),
            Some(number) => Id::Number(number.as_u64().ok_or_else(wrong)?),
            None => return Err(wrong()),
        };
        let scale = match entry.get("scale") {
            None | Some(Value::Null) => None,
            Some(scale) => {
                let scale = scale.as_f64().filter(|s| s.abs() <= LARGEST_SCALE);
                Some(scale.ok_or_else(wrong)? as f32)
            }
        };
        Ok(Wanted { id, scale })
    };
    list.iter().map(one).collect()
}

/// Those that a body names under either of its two names; `None`: it says nothing.
fn named(body: &Body) -> Result<Option<Vec<Wanted>>, ApiError> {
    let given = |name| body.get(name).filter(|v| !v.is_null()).map(|v| (name, v));
    let (name, value) = match (given("adapters"), given("lora")) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(invalid("lora", "is the same as adapters: say one of them"));
        }
        (Some(one), None) | (None, Some(one)) => one,
    };
    let list = value
        .as_array()
        .ok_or_else(|| invalid(name, "must be a list"))?;
    wanted(name, list).map(Some)
}

/// What a request runs with: what the model always has, then what it names.
pub(crate) async fn chosen(model: &Arc<Model>, body: &Body) -> Result<Chosen, ApiError> {
    let found = match named(body)? {
        Some(wanted) => model.adapters.find(&wanted)?,
        None => model.adapters.standing(),
    };
    // A low-rank product of scale 0 adds nothing; DoRA sets lengths of rows at any scale.
    let found: Vec<_> = found
        .into_iter()
        .filter(|(a, scale)| *scale != 0.0 || a.info.dora)
        .collect();
    let mut adaptation = model.adaptation.clone();
    if found.is_empty() {
        return Ok(Chosen {
            adaptation,
            name: String::new(),
        });
    }
    // A new scale of DoRA is worked out over all rows.
    aside(move || {
        let names: Vec<&str> = found.iter().map(|(a, _)| &*a.id).collect();
        let name = names.join("+");
        for (adapter, scale) in &found {
            adaptation.adapters.push(adapter.at(*scale)?);
        }
        Adapter::check_order(&adaptation.adapters).map_err(unfit)?;
        Ok(Chosen { adaptation, name })
    })
    .await
}

/// `"model": "MODEL:ADAPTER"` says the same as a model and one adapter.
pub(crate) async fn unfold(served: &Served, body: &mut Body) -> Result<(), ApiError> {
    let Some(Value::String(word)) = body.get("model") else {
        return Ok(());
    };
    let Some((base, adapter)) = served.with_adapter(word).await else {
        return Ok(());
    };
    if named(body)?.is_some() {
        return Err(invalid(
            "model",
            "names an adapter, and adapters or lora as well",
        ));
    }
    body.insert("model".into(), base.into());
    body.insert("adapters".into(), json!([{ "id": adapter }]));
    Ok(())
}
