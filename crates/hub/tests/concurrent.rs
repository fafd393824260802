//! Several pulls of one thing at once, in threads and in processes, and a process that is killed.

mod common;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::*;
use hub::{Error, Hub, PullOptions};

const SIZE: usize = 300_000;

fn model() -> Vec<u8> {
    noise(SIZE, 1)
}

struct Scene {
    home: tempfile::TempDir,
    server: Server,
    hub: Hub,
}

fn scene(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Scene {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(script);
    let hub = hub(home.path(), &server);
    Scene { home, server, hub }
}

impl Scene {
    fn pull(&self) -> Result<hub::PullReport, Error> {
        self.hub.pull(
            &self.server.url("/dir/m.gguf"),
            PullOptions::default(),
            &mut (),
        )
    }
}

#[test]
fn two_threads_pull_once() {
    let scene = scene(|request, _| {
        std::thread::sleep(Duration::from_millis(150));
        Reply::file(request, &model(), "\"a\"")
    });
    let url = scene.server.url("/m.gguf");
    let barrier = Barrier::new(2);
    let reports = std::thread::scope(|scope| {
        let pull = || {
            barrier.wait();
            let mut heard = Heard::default();
            let report = scene
                .hub
                .pull(&url, PullOptions::default(), &mut heard)
                .unwrap();
            (report, heard.notes)
        };
        let threads = [scope.spawn(pull), scope.spawn(pull)];
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(scene.server.log().len(), 1);
    assert_eq!(
        reports.iter().filter(|(report, _)| report.already).count(),
        1
    );
    let waited = reports.iter().find(|(report, _)| report.already).unwrap();
    assert!(
        waited.1[0].contains("waiting for another process"),
        "{:?}",
        waited.1
    );
}

/// Not a test of its own: what the processes of the next test run.
#[test]
fn child_process() {
    let Ok(home) = std::env::var("HUB_TEST_HOME") else {
        return;
    };
    let url = std::env::var("HUB_TEST_URL").unwrap();
    let mut settings = settings(home.as_ref(), "http://127.0.0.1:1");
    settings.read_timeout = Duration::from_secs(10);
    let hub = Hub::new(settings).unwrap();
    let report = hub.pull(&url, PullOptions::default(), &mut ()).unwrap();
    println!("already={}", report.already);
}

fn child(home: &std::path::Path, url: &str) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_process", "--nocapture"])
        .env("HUB_TEST_HOME", home)
        .env("HUB_TEST_URL", url)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn two_processes_pull_once() {
    let scene = scene(|request, _| {
        std::thread::sleep(Duration::from_millis(500));
        Reply::file(request, &model(), "\"a\"")
    });
    let url = scene.server.url("/m.gguf");
    let children = [
        child(scene.home.path(), &url),
        child(scene.home.path(), &url),
    ];
    let said = children.map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    });
    assert_eq!(scene.server.log().len(), 1);
    assert_eq!(
        said.iter()
            .filter(|text| text.contains("already=true"))
            .count(),
        1
    );
    assert_eq!(scene.hub.list().unwrap().len(), 1);
}

#[test]
fn a_process_killed_in_the_middle_leaves_only_temporary_data() {
    let scene = scene(|request, n| match n {
        0 => Reply::file(request, &model(), "\"a\"")
            .header("Content-Length", &SIZE.to_string())
            .body(Body::Stall(model()[..100_000].to_vec())),
        _ => Reply::file(request, &model(), "\"a\""),
    });
    let mut child = child(scene.home.path(), &scene.server.url("/dir/m.gguf"));
    let part = || {
        let tmp = std::fs::read_dir(scene.home.path().join("tmp"))
            .into_iter()
            .flatten()
            .flatten();
        tmp.filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .max()
            .unwrap_or(0)
    };
    let start = Instant::now();
    while part() < 90_000 && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(part() >= 90_000);
    assert_eq!(kept(scene.home.path()), Vec::<String>::new());
    // Its lock died with it; its bytes are used.
    let report = scene.pull().unwrap();
    assert_eq!(std::fs::read(report.path.unwrap()).unwrap(), model());
    let log = scene.server.log();
    assert!(log.last().unwrap().range_from().unwrap() >= 90_000);
}
