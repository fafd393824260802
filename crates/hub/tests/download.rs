//! Downloads from a scripted server: resuming, limits, lies and failures.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use hub::{Error, Hub, PullOptions};

const SIZE: usize = 300_000;

fn model() -> Vec<u8> {
    noise(SIZE, 1)
}

/// Pulls `URL/m.gguf` from a server with this script and gives back what happened.
struct Scene {
    home: tempfile::TempDir,
    server: Server,
    hub: Hub,
    heard: Heard,
}

fn scene(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Scene {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(script);
    let hub = hub(home.path(), &server);
    Scene {
        home,
        server,
        hub,
        heard: Heard::default(),
    }
}

impl Scene {
    fn pull(&mut self) -> Result<hub::PullReport, Error> {
        let url = self.server.url("/dir/m.gguf");
        self.hub.pull(&url, PullOptions::default(), &mut self.heard)
    }

    fn pull_hf(&mut self) -> Result<hub::PullReport, Error> {
        self.hub
            .pull("hf:org/repo", PullOptions::default(), &mut self.heard)
    }

    #[track_caller]
    fn nothing_kept(&self) {
        assert_eq!(kept(self.home.path()), Vec::<String>::new());
    }

    #[track_caller]
    fn whole(&mut self) {
        let report = self.pull().unwrap();
        assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), model());
    }
}

#[test]
fn a_plain_download() {
    let mut scene = scene(|request, _| Reply::file(request, &model(), "\"a\""));
    let report = scene.pull().unwrap();
    assert_eq!(report.name, "m:latest");
    assert_eq!(report.bytes, Some(SIZE as u64));
    assert_eq!(report.files[0].sha256, Some(sha256(&model())));
    assert!(!report.already);
    let path = report.path.unwrap();
    assert_eq!(path.file_name().unwrap(), "m.gguf");
    assert_eq!(std::fs::read(path).unwrap(), model());
    assert_eq!(scene.heard.finishes, 1);
    assert_eq!(scene.heard.advances.last(), Some(&(SIZE as u64)));
    // Compressed bytes would be another file; nothing identifies the user.
    let request = &scene.server.log()[0];
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert_eq!(request.header("authorization"), None);
    // Nothing temporary is left, and the second time nothing is asked.
    assert!(
        tree(scene.home.path())
            .iter()
            .all(|name| !name.starts_with("tmp/"))
    );
    assert!(scene.pull().unwrap().already);
    assert_eq!(scene.server.log().len(), 1);
}

#[test]
fn a_cut_connection_is_resumed() {
    let mut scene = scene(|request, n| {
        let reply = Reply::file(request, &model(), "\"a\"");
        if n < 3 { reply.cut(70_000) } else { reply }
    });
    scene.whole();
    let log = scene.server.log();
    assert_eq!(log.len(), 4);
    assert_eq!(log[0].range_from(), None);
    // hyper may hold back a little of what came before the cut.
    for pair in log[1..].windows(2) {
        assert!(pair[0].range_from() < pair[1].range_from());
    }
    assert!(log[3].range_from().unwrap() > 150_000);
    assert_eq!(log[1].header("if-range"), Some("\"a\""));
    assert_eq!(scene.heard.notes.len(), 3);
}

#[test]
fn a_killed_pull_is_resumed_by_the_next_one() {
    let mut scene = scene(|request, n| match n {
        0 => Reply::file(request, &model(), "\"a\"")
            .header("Content-Length", &SIZE.to_string())
            .body(Body::Stall(model()[..100_000].to_vec())),
        _ => Reply::file(request, &model(), "\"a\""),
    });
    scene.heard.cancel_at = Some(50_000);
    assert!(matches!(scene.pull(), Err(Error::Cancelled)));
    scene.nothing_kept();
    scene.heard = Heard::default();
    scene.whole();
    let log = scene.server.log();
    assert!(log[1].range_from().unwrap() >= 50_000);
    assert_eq!(log.len(), 2);
}

#[test]
fn a_changed_file_is_fetched_from_its_start() {
    // Cut, then the server has another version: If-Range makes it answer 200.
    let mut scene = scene(|request, n| match n {
        0 => Reply::file(request, &noise(SIZE, 9), "\"old\"").cut(70_000),
        _ => Reply::file(request, &model(), "\"new\""),
    });
    scene.whole();
    assert_eq!(scene.server.log().len(), 2);
}

#[test]
fn a_server_that_ignores_if_range_cannot_mix_versions() {
    let mut scene = scene(|request, n| {
        let mut request = request.clone();
        request
            .headers
            .retain(|(name, _)| !name.eq_ignore_ascii_case("if-range"));
        match n {
            0 => Reply::file(&request, &noise(SIZE, 9), "\"old\"").cut(70_000),
            _ => Reply::file(&request, &model(), "\"new\""),
        }
    });
    scene.whole();
    assert_eq!(scene.server.log().len(), 3);
}

#[test]
fn without_an_etag_and_a_hash_there_is_no_resuming() {
    let mut scene = scene(|request, n| {
        let mut reply = Reply::file(request, &model(), "\"a\"");
        reply.headers.retain(|(name, _)| name != "ETag");
        if n == 0 { reply.cut(70_000) } else { reply }
    });
    scene.whole();
    assert!(
        scene
            .server
            .log()
            .iter()
            .all(|request| request.range_from().is_none())
    );
}

#[test]
fn a_server_that_ignores_ranges_is_read_anew() {
    let mut scene = scene(|_, n| {
        let reply = Reply::status(200)
            .header("ETag", "\"a\"")
            .body(Body::Bytes(model()));
        if n == 0 { reply.cut(70_000) } else { reply }
    });
    scene.whole();
}

#[test]
fn a_part_that_was_not_asked_for_is_not_taken() {
    let mut scene = scene(|request, n| match n {
        0 => Reply::file(request, &model(), "\"a\"").cut(70_000),
        1 => Reply::status(206)
            .header("ETag", "\"a\"")
            .header("Content-Range", &format!("bytes 5-{}/{SIZE}", SIZE - 1))
            .body(Body::Bytes(model()[5..].to_vec())),
        _ => Reply::file(request, &model(), "\"a\""),
    });
    scene.whole();
}

#[test]
fn range_not_satisfiable() {
    // All bytes came, but their number was not known: the next request asks beyond the end.
    let complete = Arc::new(AtomicBool::new(false));
    let flag = complete.clone();
    let mut scene = scene(move |request, n| match n {
        0 => {
            // No length: chunked bodies tell a cut from an end.
            let mut body = format!("{SIZE:x}\r\n").into_bytes();
            body.extend(model());
            Reply::status(200)
                .header("ETag", "\"a\"")
                .header("Transfer-Encoding", "chunked")
                .body(Body::UntilClose(body))
        }
        _ => {
            flag.store(request.range_from() == Some(SIZE), Ordering::Relaxed);
            Reply::file(request, &model(), "\"a\"")
        }
    });
    scene.whole();
    assert!(complete.load(Ordering::Relaxed));
    // A 416 that does not fit to what is here means another file.
    let mut changed = self::scene(|request, n| match n {
        0 => Reply::file(request, &noise(SIZE, 9), "\"old\"").cut(70_000),
        1 => Reply::status(416).header("Content-Range", "bytes */10"),
        _ => Reply::file(request, &model(), "\"a\""),
    });
    changed.whole();
}

#[test]
fn a_stalled_connection_ends_and_is_resumed() {
    let mut scene = scene(|request, n| match n {
        0 => Reply::file(request, &model(), "\"a\"")
            .header("Content-Length", &SIZE.to_string())
            .body(Body::Stall(model()[..70_000].to_vec())),
        _ => Reply::file(request, &model(), "\"a\""),
    });
    let start = Instant::now();
    scene.whole();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(
        scene.heard.notes[0].contains("sent nothing for 1 s"),
        "{:?}",
        scene.heard.notes
    );
    assert!(scene.server.log()[1].range_from().is_some());
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let mut scene = scene(|_, _| {
        std::thread::sleep(Duration::from_secs(3));
        Reply::status(200)
    });
    let start = Instant::now();
    let error = scene.pull().unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(scene.server.log().len(), 4);
    scene.nothing_kept();
}

#[test]
fn nobody_listens() {
    let home = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let hub = Hub::new(settings(home.path(), "http://127.0.0.1:1")).unwrap();
    let url = format!("http://127.0.0.1:{port}/m.gguf");
    let error = hub.pull(&url, PullOptions::default(), &mut ()).unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(
        error.to_string().contains("no connection to 127.0.0.1"),
        "{error}"
    );
    assert!(!error.is_not_found());
}

#[test]
fn busy_and_broken_servers_are_asked_again() {
    let mut scene = scene(|request, n| match n {
        0 => Reply::status(429).header("Retry-After", "3600"),
        1 => Reply::status(503).header("Retry-After", "0"),
        2 => Reply::status(500),
        _ => Reply::file(request, &model(), "\"a\""),
    });
    let start = Instant::now();
    scene.whole();
    // The hour is not waited for.
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(scene.heard.notes[0].contains("HTTP 429"));
}

#[test]
fn a_server_that_stays_broken_is_given_up() {
    for status in [429, 500, 502, 503] {
        let mut scene = scene(move |_, _| Reply::status(status));
        let error = scene.pull().unwrap_err();
        assert!(matches!(error, Error::Network { .. }), "{error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!(scene.server.log().len(), 4);
    }
}

#[test]
fn a_trickle_of_progress_is_bounded_too() {
    // Ten bytes a connection: progress each time, but not without end.
    let mut scene = scene(|request, _| Reply::file(request, &model(), "\"a\"").cut(10));
    let error = scene.pull().unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert_eq!(scene.server.log().len(), 50);
}

#[test]
fn final_answers_are_not_asked_again() {
    for (status, not_found) in [(404, true), (410, true), (400, false), (451, false)] {
        let mut scene = scene(move |_, _| Reply::status(status));
        let error = scene.pull().unwrap_err();
        assert_eq!(error.is_not_found(), not_found, "{error}");
        assert_eq!(scene.server.log().len(), 1);
        scene.nothing_kept();
    }
}

#[test]
fn an_encoded_answer_is_refused() {
    let mut scene = scene(|request, _| {
        Reply::file(request, &model(), "\"a\"").header("Content-Encoding", "gzip")
    });
    let error = scene.pull().unwrap_err();
    assert!(error.to_string().contains("gzip"), "{error}");
}

#[test]
fn redirects_are_followed_up_to_a_point() {
    let mut good = scene(|request, _| match request.path() {
        "/dir/m.gguf" => Reply::status(301).header("Location", "../other/x"),
        _ => Reply::file(request, &model(), "\"a\""),
    });
    good.whole();
    assert_eq!(good.server.log()[1].target, "/other/x");
    let mut looping = scene(|_, _| Reply::status(302).header("Location", "/dir/m.gguf"));
    let error = looping.pull().unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert_eq!(looping.server.log().len(), 11);
    for bad in [
        "http://example.org/x",
        "ftp://127.0.0.1/x",
        "http://",
        "http://u:p@127.0.0.1/",
    ] {
        let mut leaving = scene(move |_, _| Reply::status(302).header("Location", bad));
        let error = leaving.pull().unwrap_err();
        assert!(matches!(error, Error::Remote { .. }), "{bad}: {error}");
        assert_eq!(leaving.server.log().len(), 1);
    }
}

#[test]
fn plain_http_to_another_machine_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::new(settings(home.path(), "http://127.0.0.1:1")).unwrap();
    let error = hub
        .pull("http://192.0.2.1/m.gguf", PullOptions::default(), &mut ())
        .unwrap_err();
    assert!(error.to_string().contains("only https"), "{error}");
}

/// A repository whose listing promises `model()`, and whose file downloads are scripted.
fn promised(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Scene {
    let repo = Repo::gguf(&model());
    let count = std::sync::atomic::AtomicUsize::new(0);
    scene(
        move |request, _| match request.target.starts_with("/api/") {
            true => repo.answer("org/repo", request),
            false => script(request, count.fetch_add(1, Ordering::Relaxed)),
        },
    )
}

#[test]
fn a_wrong_hash_leaves_nothing_under_a_name() {
    let mut wrong = model();
    wrong[1000] ^= 1;
    let mut scene = promised(move |request, _| Reply::file(request, &wrong, "\"a\""));
    let error = scene.pull_hf().unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Mismatch {
                which: "SHA-256",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(scene.server.downloads().len(), 1);
    scene.nothing_kept();
    assert!(
        tree(scene.home.path())
            .iter()
            .all(|name| !name.starts_with("tmp/"))
    );
    assert!(scene.hub.list().unwrap().is_empty());
}

#[test]
fn lies_about_the_size_are_found() {
    // Announced longer or shorter than the listing says: refused before the body is read.
    for size in [SIZE - 1, SIZE + 1] {
        let mut scene = promised(move |_, _| Reply::status(200).body(Body::Bytes(noise(size, 1))));
        let error = scene.pull_hf().unwrap_err();
        assert!(
            matches!(&error, Error::Mismatch { which: "size", .. }),
            "{error}"
        );
        scene.nothing_kept();
    }
    // Announced right, but shorter: a cut connection, never a shorter file.
    let mut short = promised(|_, _| {
        Reply::status(200)
            .header("Content-Length", &SIZE.to_string())
            .body(Body::Cut(model()[..1000].to_vec()))
    });
    assert!(matches!(short.pull_hf(), Err(Error::Network { .. })));
    short.nothing_kept();
    // Not announced, and shorter.
    let mut close =
        promised(|_, _| Reply::status(200).body(Body::UntilClose(model()[..9].to_vec())));
    assert!(matches!(close.pull_hf(), Err(Error::Network { .. })));
    close.nothing_kept();
}

#[test]
fn an_endless_body_ends_where_the_promise_does() {
    let mut scene = promised(|_, _| Reply::status(200).body(Body::Endless));
    let error = scene.pull_hf().unwrap_err();
    assert!(
        matches!(&error, Error::Mismatch { which: "size", .. }),
        "{error}"
    );
    assert!(
        scene
            .heard
            .advances
            .iter()
            .all(|bytes| *bytes <= SIZE as u64)
    );
    scene.nothing_kept();
}

#[test]
fn bytes_lost_after_a_crash_cost_a_restart() {
    let mut scene = promised(|request, n| {
        let reply = Reply::file(request, &model(), "\"a\"");
        if n == 0 {
            return reply
                .header("Content-Length", &SIZE.to_string())
                .body(Body::Stall(model()[..100_000].to_vec()));
        }
        reply
    });
    scene.heard.cancel_at = Some(50_000);
    assert!(matches!(scene.pull_hf(), Err(Error::Cancelled)));
    let tmp = scene.home.path().join("tmp");
    let part = std::fs::read_dir(&tmp)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "part"))
        .unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    scene.heard = Heard::default();
    let report = scene.pull_hf().unwrap();
    assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), model());
    assert!(
        scene
            .heard
            .notes
            .iter()
            .any(|note| note.contains("starting anew"))
    );
    let downloads = scene.server.downloads();
    assert!(downloads[1].range_from().is_some());
    assert_eq!(downloads[2].range_from(), None);
}

#[test]
fn a_part_longer_than_the_file_is_dropped() {
    let mut scene = promised(|request, n| {
        let reply = Reply::file(request, &model(), "\"a\"");
        if n == 0 { reply.cut(1000) } else { reply }
    });
    scene.pull_hf().unwrap();
    let mut second = promised(|request, _| Reply::file(request, &model(), "\"a\""));
    // A full-length part with a known hash needs no request at all; a longer one is no good.
    let url = second
        .server
        .url(&format!("/org/repo/resolve/{COMMIT}/m-Q4_K_M.gguf"));
    let key = sha256(format!("{url}\n{}", sha256(&model())).as_bytes());
    let part = second.home.path().join("tmp").join(format!("{key}.part"));
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, noise(SIZE + 5, 3)).unwrap();
    second.pull_hf().unwrap();
    assert_eq!(second.server.downloads().len(), 1);
    second.hub.rm("org/repo").unwrap();
    std::fs::write(&part, model()).unwrap();
    second.pull_hf().unwrap();
    assert_eq!(second.server.downloads().len(), 1);
}

#[test]
fn a_hub_inside_an_asynchronous_task_says_so() {
    let scene = scene(|request, _| Reply::file(request, &model(), "\"a\""));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let url = scene.server.url("/m.gguf");
    let result = runtime.block_on(async { scene.hub.pull(&url, PullOptions::default(), &mut ()) });
    assert!(matches!(result, Err(Error::InsideAsync)));
}

#[test]
fn a_dry_run_fetches_nothing() {
    let scene = scene(|request, _| Reply::file(request, &model(), "\"a\""));
    let url = scene.server.url("/m.gguf");
    let dry = PullOptions {
        dry_run: true,
        ..Default::default()
    };
    let report = scene.hub.pull(&url, dry, &mut ()).unwrap();
    assert_eq!((report.bytes, report.dry_run), (Some(SIZE as u64), true));
    assert_eq!(report.memory_bytes, Some(SIZE as u64));
    assert_eq!(scene.server.log()[0].method, "HEAD");
    assert_eq!(tree(scene.home.path()), Vec::<String>::new());
}
