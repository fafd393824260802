//! How models end, over real sockets: slowly, and with a panic.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::models::{made, send, tiny};
use common::{Answer, Server, logged};
use serde_json::json;
use server::{Adapters, Loaded, Loader, Model, Offer, OnDemand, Served};

const ADMIN: &str = "admin-key-0123456789abcdef";
const EACH: u64 = 100;
const LONG: Duration = Duration::from_secs(20);

/// Models without end, of which one fits; their memory is as large as it is.
struct Shelf;

impl Loader for Shelf {
    fn offers(&self) -> Vec<Offer> {
        let offer = |id: &str| Offer {
            id: id.into(),
            created: 7,
            bytes: 11,
            context: None,
        };
        ["first", "other"].map(offer).into()
    }

    fn memory(&self) -> Option<u64> {
        Some(EACH)
    }

    fn need(&self, _: &str) -> Result<u64, String> {
        Ok(EACH)
    }

    fn load(&self, id: &str, _: Option<u64>) -> Result<Loaded, String> {
        let model = Model {
            id: id.into(),
            ..tiny(64)
        };
        Ok(Loaded { model, bytes: EACH })
    }
}

/// Runs when its model is dropped.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A server whose first model does this when it ends.
fn serve(at_end: impl Fn() + Send + Sync + 'static) -> Server {
    let at_end = AtEnd(at_end);
    let adapters = Adapters::new(Arc::new(move |scheduler, word| {
        let _with = &at_end;
        made(scheduler, word)
    }));
    let on = OnDemand {
        loader: Arc::new(Shelf),
        keep_alive: "-1".parse().unwrap(),
        patience: LONG / 4,
    };
    let mut settings = logged().0;
    settings.api_keys = server::parse_file(&format!("{ADMIN} admin inference,admin"), 0).unwrap();
    Server::start_with(settings, |state| {
        let model = Model {
            id: "first".into(),
            adapters,
            ..tiny(64)
        };
        let first = Loaded { model, bytes: EACH };
        let served = Served::on_demand(state, vec![first], on, false).unwrap();
        let mut routes = server::routes();
        routes.extend(server::api(&served));
        routes
    })
}

fn unload(server: &Server) -> Answer {
    send(server, "POST /v1/models/first/unload", ADMIN, &json!({}))
}

fn complete(server: &Server, model: &str) -> Answer {
    let body = json!({ "model": model, "prompt": "Hi", "max_tokens": 1 });
    send(server, "POST /v1/completions", ADMIN, &body)
}

/// Whoever asks to unload a model that is ending hears of its end, not before.
#[test]
fn unloaded_is_said_when_it_is_true() {
    let (begins, began) = channel();
    let (open, gate): (Sender<()>, Receiver<()>) = channel();
    let gate = Mutex::new(gate);
    let server = serve(move || {
        begins.send(()).unwrap();
        let _ = gate.lock().unwrap().recv();
    });
    std::thread::scope(|scope| {
        let first = scope.spawn(|| unload(&server));
        began.recv_timeout(LONG).unwrap();
        let second = scope.spawn(|| unload(&server));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!first.is_finished() && !second.is_finished());
        drop(open);
        assert_eq!(first.join().unwrap().status, 200);
        assert_eq!(second.join().unwrap().status, 200);
    });
    assert_eq!(unload(&server).status, 200);
}

/// A panic while a model ends is an error of those who wait for that, and holds no memory.
#[test]
fn a_panic_at_the_end_gives_the_memory_back() {
    let server = serve(|| panic!("a bug at the end of a model"));
    unload(&server).refused(500, "internal_error");
    let other = complete(&server, "other");
    assert_eq!(other.status, 200, "{other:?}");
    assert_eq!(unload(&server).status, 200);
}
