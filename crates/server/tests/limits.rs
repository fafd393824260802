//! Many connections, stalled ones, TLS, and requests that make no sense.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::response::Response;
use axum::routing::MethodFilter;
use common::{Answer, Server};
use server::{Access, Json, Principal, Scope, Settings, route, routes};

async fn echo(
    Extension(_): Extension<Principal>,
    Json(value): Json<serde_json::Value>,
) -> axum::Json<serde_json::Value> {
    axum::Json(value)
}

/// An answer without end.
async fn endless() -> Response {
    struct Endless;
    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            let piece = Bytes::from_static(&[b'x'; 4096]);
            std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(piece))))
        }
    }
    Response::new(Body::new(Endless))
}

fn start(settings: Settings) -> Server {
    let mut all = routes();
    let needs = Access::Needs(Scope::Inference);
    all.push(route(
        MethodFilter::POST,
        "/echo",
        needs,
        "Says it again",
        echo,
    ));
    all.push(route(
        MethodFilter::GET,
        "/endless",
        needs,
        "Does not end",
        endless,
    ));
    Server::start(settings, all)
}

/// A gauge or counter as `/metrics` says it.
fn value(server: &Server, line: &str) -> i64 {
    let text = server.state.metrics().text();
    let found = text
        .lines()
        .find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{line} in {text}"))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_who_does_not_read_is_cut() {
    let server = start(Settings {
        write_timeout: Duration::from_millis(300),
        ..Settings::default()
    });
    let mut stalled = server.connect();
    stalled
        .write_all(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let in_flight =
        |n| move |server: &Server| value(server, "puna_http_requests_in_flight{} ") == n;
    wait_for("it begins", || in_flight(1)(&server));
    wait_for("it is cut", || in_flight(0)(&server));
}

#[test]
fn more_connections_than_places_wait() {
    let server = start(Settings {
        max_connections: 2,
        ..Settings::default()
    });
    let first = server.connect();
    let second = server.connect();
    wait_for("both are there", || {
        value(&server, "puna_http_connections{} ") == 2
    });
    let mut third = server.connect();
    third
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    third
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(
        third.read(&mut [0; 8]).is_err(),
        "it was answered beyond the limit"
    );
    drop((first, second));
    third
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut all = Vec::new();
    third.read_to_end(&mut all).unwrap();
    assert_eq!(Answer::of(&all).status, 200);
}

/// Resident memory in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the next test runs it, with room for more files"]
fn child_with_a_thousand_connections() {
    if std::env::var_os("PUNA_TEST_IDLE").is_none() {
        return;
    }
    let server = start(Settings::default());
    assert_eq!(server.get("/health", "").status, 200);
    let before = resident();
    let mut idle: Vec<TcpStream> = Vec::new();
    for _ in 0..999 {
        let mut stream = server.connect();
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        let mut some = [0; 512];
        assert!(stream.read(&mut some).unwrap() > 0);
        idle.push(stream);
    }
    let used = resident().saturating_sub(before);
    assert_eq!(value(&server, "puna_http_connections{} "), 999);
    assert_eq!(
        server.get("/health", "").status,
        200,
        "the last place works"
    );
    assert!(used < 50 << 20, "{used} bytes");
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_idle_connections_are_cheap() {
    let ran = Command::new("sh")
        .args([
            "-c",
            "ulimit -n 4096 && exec \"$0\" --exact child_with_a_thousand_connections --ignored",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("PUNA_TEST_IDLE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

#[test]
fn https() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let server = start(Settings {
        tls: Some((folder.join("cert.pem"), folder.join("key.pem"))),
        ..Settings::default()
    });
    let cert = std::fs::read(folder.join("cert.pem")).unwrap();
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(&cert).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(roots)
    .with_no_client_auth();
    let client =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(client, server.connect());
    stream
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert_eq!(Answer::of(&all).body, "{\"status\":\"ok\"}");
    // Plain HTTP at the same port is no HTTP.
    assert!(
        !server
            .raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .starts_with(b"HTTP/1.1 200")
    );
    // And files that are no certificate are named.
    let mut bad = start(Settings {
        tls: Some((folder.join("README.md"), folder.join("key.pem"))),
        ..Settings::default()
    });
    let refused = bad.ended().unwrap_err().to_string();
    assert!(refused.contains("README.md"), "{refused}");
}

/// A stream of numbers that is the same every time (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }
}

/// A request of which mostly something is wrong.
fn nonsense(dice: &mut Dice) -> Vec<u8> {
    const METHODS: [&str; 10] = [
        "GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD", "CONNECT", "get", "", "P\u{fc}T",
    ];
    const PATHS: [&str; 18] = [
        "/",
        "/health",
        "/echo",
        "/metrics",
        "/admin/usage",
        "/admin/usage?from=%ff",
        "/admin/audit?after=-9e9",
        "/docs",
        "//",
        "/%00",
        "/../../etc/passwd",
        "*",
        "http://localhost/health",
        "http://evil.example/",
        "",
        "/echo?a=b&a=%zz",
        "/openapi.json#x",
        "?",
    ];
    const HEADERS: [&str; 24] = [
        "Host: localhost",
        "Host: localhost",
        "Host: evil.example",
        "Host: [::1]:x",
        "Host: \u{7f}",
        "Origin: null",
        "Origin: http://localhost",
        "Origin: ://",
        "Content-Type: application/json",
        "Content-Type: application/json",
        "Content-Type: \u{e9}",
        "Content-Length: 5",
        "Content-Length: 99999999999999999999",
        "Content-Length: -1",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Authorization: Bearer",
        "Authorization: Bearer \u{1}",
        "X-Api-Key: \u{ff}",
        "X-Request-Id: \u{80}",
        "Expect: 100-continue",
        "Upgrade: h2c",
        "Connection: upgrade",
        ": no name",
    ];
    const BODIES: [&str; 10] = [
        "",
        "{}",
        "{\"a\":",
        "[1e999]",
        "\"\\ud800\"",
        "5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
        "-1\r\n\r\n",
        "{\"a\":1}{\"b\":2}",
        "\u{feff}{}",
    ];
    const VERSIONS: [&str; 5] = ["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTQ"];
    let mut text = format!(
        "{} {} {}\r\n",
        dice.one(&METHODS),
        dice.one(&PATHS),
        dice.one(&VERSIONS)
    );
    for _ in 0..dice.roll(7) {
        text.push_str(dice.one(&HEADERS));
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.push_str(dice.one(&BODIES));
    let mut bytes = text.into_bytes();
    for _ in 0..dice.roll(4).saturating_sub(1) {
        let at = dice.roll(bytes.len());
        match dice.roll(3) {
            0 => bytes[at] = dice.roll(256) as u8,
            1 => bytes.truncate(at.max(1)),
            _ => bytes.insert(at, dice.roll(256) as u8),
        }
    }
    bytes
}

#[test]
fn ten_thousand_senseless_requests_break_nothing() {
    let server = start(Settings {
        body_timeout: Duration::from_millis(500),
        header_timeout: Duration::from_millis(500),
        ..Settings::default()
    });
    let mut dice = Dice(0x5eed);
    let (mut answers, mut kinds) = (0, std::collections::BTreeMap::new());
    for n in 0..10_000 {
        let bytes = nonsense(&mut dice);
        let mut stream = server.connect();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        for line in String::from_utf8_lossy(&all).lines() {
            let status = line
                .strip_prefix("HTTP/1.1 ")
                .or(line.strip_prefix("HTTP/1.0 "));
            let Some(status) = status.and_then(|rest| rest.get(..3)?.parse::<u16>().ok()) else {
                continue;
            };
            assert!(
                status < 500,
                "request {n}: {status} to {:?}",
                String::from_utf8_lossy(&bytes)
            );
            answers += 1;
            *kinds.entry(status).or_insert(0) += 1;
        }
    }
    assert!(answers > 5000 && kinds.len() >= 6, "{kinds:?}");
    assert_eq!(server.get("/health", "").status, 200);
    wait_for("all have ended", || {
        value(&server, "puna_http_requests_in_flight{} ") == 0
    });
}
