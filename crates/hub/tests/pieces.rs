//! One large file over several connections: whole, cut short, gone on with, and lied to.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::*;
use hub::{Error, Hub, PullOptions};

const SIZE: usize = 300_000;
const PIECE: usize = 50_000;

fn model() -> Vec<u8> {
    noise(SIZE, 1)
}

struct Scene {
    home: tempfile::TempDir,
    server: Server,
    hub: Hub,
}

/// A repository that promises `model()`; its files come from the script.
fn scene(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Scene {
    let repo = Repo::gguf(&model());
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(
        move |request, _| match request.target.starts_with("/api/") {
            true => repo.answer("org/repo", request),
            false => script(request),
        },
    );
    let mut settings = settings(home.path(), &server.url(""));
    settings.connections = 3;
    settings.piece = PIECE as u64;
    Scene {
        hub: Hub::new(settings).unwrap(),
        home,
        server,
    }
}

impl Scene {
    fn pull(&self, heard: &mut Heard) -> Result<hub::PullReport, Error> {
        self.hub.pull("hf:org/repo", PullOptions::default(), heard)
    }

    #[track_caller]
    fn whole(&self) {
        let report = self.pull(&mut Heard::default()).unwrap();
        assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), model());
        let left = tree(self.home.path());
        assert!(
            left.iter().all(|name| !name.starts_with("tmp/")),
            "{left:?}"
        );
    }

    /// Where the ranges began that were asked for, from this request on.
    fn starts(&self, from: usize) -> Vec<usize> {
        let all = self.server.downloads();
        all[from..].iter().filter_map(Request::range_from).collect()
    }
}

fn honest(request: &Request) -> Reply {
    Reply::file(request, &model(), "\"a\"")
}

#[test]
fn a_large_file_comes_in_pieces() {
    let scene = scene(honest);
    let mut heard = Heard::default();
    let report = scene.pull(&mut heard).unwrap();
    assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), model());
    let starts: BTreeSet<usize> = scene.starts(0).into_iter().collect();
    let all: BTreeSet<usize> = (0..SIZE).step_by(PIECE).collect();
    assert_eq!((scene.starts(0).len(), starts), (6, all));
    assert_eq!(heard.advances.last(), Some(&(SIZE as u64)));
    assert_eq!(heard.finishes, 1);
}

/// Killed at any moment, the next pull asks for the pieces that are missing, and no other.
#[test]
fn a_killed_pull_goes_on_with_what_is_missing() {
    let stuck = Arc::new(AtomicBool::new(true));
    let (flag, served) = (stuck.clone(), Arc::new(AtomicUsize::new(0)));
    let scene = scene(move |request| {
        let reply = honest(request);
        match flag.load(Ordering::Relaxed) && served.fetch_add(1, Ordering::Relaxed) >= 3 {
            true => reply
                .header("Content-Length", &PIECE.to_string())
                .body(Body::Stall(Vec::new())),
            false => reply,
        }
    });
    let mut heard = Heard {
        cancel_at: Some(3 * PIECE as u64),
        ..Heard::default()
    };
    assert!(matches!(scene.pull(&mut heard), Err(Error::Cancelled)));
    assert_eq!(kept(scene.home.path()), Vec::<String>::new());
    let side = tree(scene.home.path());
    let side = side.iter().find(|name| name.ends_with(".json")).unwrap();
    let side = std::fs::read_to_string(scene.home.path().join(side)).unwrap();
    let side: serde_json::Value = serde_json::from_str(&side).unwrap();
    let done = side["pieces"]["done"].as_array().unwrap();
    let done: BTreeSet<usize> = done
        .iter()
        .map(|n| n.as_u64().unwrap() as usize * PIECE)
        .collect();
    assert!(!done.is_empty());
    stuck.store(false, Ordering::Relaxed);
    let before = scene.server.downloads().len();
    scene.whole();
    let asked = scene.starts(before);
    let missing: BTreeSet<usize> = (0..SIZE)
        .step_by(PIECE)
        .filter(|at| !done.contains(at))
        .collect();
    assert_eq!(asked.len(), missing.len());
    assert_eq!(asked.into_iter().collect::<BTreeSet<_>>(), missing);
}

#[test]
fn a_cut_piece_goes_on_where_it_was_cut() {
    let cuts = AtomicUsize::new(0);
    let scene = scene(move |request| match cuts.fetch_add(1, Ordering::Relaxed) {
        0 => honest(request).cut(20_000),
        _ => honest(request),
    });
    scene.whole();
    let odd: Vec<usize> = scene
        .starts(0)
        .into_iter()
        .filter(|at| at % PIECE != 0)
        .collect();
    assert_eq!(odd.len(), 1);
    assert_eq!(odd[0] % PIECE, 20_000);
}

#[test]
fn a_server_without_ranges_is_read_at_once() {
    let scene = scene(|_| Reply::status(200).body(Body::Bytes(model())));
    scene.whole();
}

#[test]
fn a_wrong_piece_costs_a_restart() {
    let scene = scene(|request| {
        let mut bytes = model();
        if request.range_from() == Some(2 * PIECE) {
            bytes[2 * PIECE + 7] ^= 1;
        }
        Reply::file(request, &bytes, "\"a\"")
    });
    let mut heard = Heard::default();
    let report = scene.pull(&mut heard).unwrap();
    assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), model());
    assert!(
        heard
            .notes
            .iter()
            .any(|note| note.contains("starting anew"))
    );
    // One that stays wrong is not kept.
    let scene = self::scene(|request| Reply::file(request, &noise(SIZE, 5), "\"a\""));
    let error = scene.pull(&mut heard).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_eq!(
        tree(scene.home.path())
            .iter()
            .filter(|n| n.starts_with("tmp/"))
            .count(),
        0
    );
}

#[test]
fn lies_about_ranges_are_found() {
    for lie in [
        "bytes 0-49999/300000",
        "bytes 50000-99999/300001",
        "bytes 5/6",
        "",
    ] {
        let scene = scene(move |request| {
            let from = request.range_from().unwrap_or(0);
            Reply::status(206)
                .header("Content-Range", lie)
                .body(Body::Bytes(vec![7; if from == 0 { 60_000 } else { PIECE }]))
        });
        let error = scene.pull(&mut Heard::default()).unwrap_err();
        assert!(matches!(error, Error::Network { .. }), "{lie}: {error}");
        assert_eq!(kept(scene.home.path()), Vec::<String>::new());
    }
}
