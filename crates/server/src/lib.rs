//! HTTP, above the engine: who may ask what and how much of it, what is written down about it, and
//! what is measured.
//!
//! Knows requests, keys, quotas, OpenAI's names for things and the one database of the server. Must
//! not know how an answer is computed, nor print anything: the log goes to a
//! [`Settings::access_log`]. [`run()`] is the server's life; [`routes()`] the table of its routes.
//!
//! A handler takes `axum::Extension<Principal>` to know who asks, [`Json`] for the body, answers
//! with an [`ApiError`] where it cannot, and says with [`State::account`] what was used.

mod admin;
pub mod api;
mod audit;
mod auth;
mod clock;
mod error;
pub mod guard;
mod journal;
mod json;
mod keep_alive;
mod keys;
pub mod metrics;
mod openapi;
mod pages;
mod principal;
mod quota;
mod request;
mod router;
mod run;
mod settings;
mod spans;
mod stall;
mod state;
mod store;
pub mod time;
mod tls;

pub use admin::as_csv;
pub use api::{Adapters, Loaded, Loader, Model, Offer, OnDemand, Opener, Served, api};
pub use audit::{Entry, Event, Verified};
pub use auth::{Access, presented};
pub use clock::Clock;
pub use error::{ApiError, Error, KINDS, Kind};
pub use json::Json;
pub use keep_alive::KeepAlive;
pub use keys::{Key, NewKey, parse_file, read_file};
pub use metrics::{METRICS, Metric, Metrics};
pub use openapi::{all, document};
pub use principal::{LOCAL, Principal, Quotas, Scope};
pub use request::{REQUEST_ID, Tracked};
pub use router::{Route, route, routes};
pub use run::{Shutdown, run};
pub use settings::{Auth, Settings, Sink, limits};
pub use spans::Exporter;
pub use state::{Held, State};
pub use store::{Store, Usage};

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `N` random bytes as hexadecimal digits.
///
/// Without randomness there are no secrets: a system that has none ends the request or the command.
fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    hex(&bytes)
}
