//! A server on a port of its own, and a client that sends bytes as they are.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file includes this module and uses its own part"
)]

pub mod models;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use server::{Error, Route, Settings, Shutdown, State, Store};
use tempfile::TempDir;

pub struct Server {
    pub address: SocketAddr,
    pub state: State,
    pub folder: TempDir,
    shutdown: Shutdown,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Server {
    pub fn start(settings: Settings, routes: Vec<Route>) -> Server {
        Server::start_with(settings, |_| routes)
    }

    /// With routes that know the state.
    pub fn start_with(settings: Settings, routes: impl FnOnce(&State) -> Vec<Route>) -> Server {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let state =
            State::open(settings, &folder.path().join("server.sqlite")).expect("a new database");
        let routes = routes(&state);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (shutdown, shared) = (Shutdown::default(), state.clone());
        let asked = shutdown.clone();
        let thread =
            std::thread::spawn(move || server::run(listener, shared, routes, &asked, || ()));
        Server {
            address,
            state,
            folder,
            shutdown,
            thread: Some(thread),
        }
    }

    /// Its database, as another process sees it.
    pub fn store(&self) -> Store {
        Store::open(&self.folder.path().join("server.sqlite")).expect("the database is sound")
    }

    /// Asks it to end.
    pub fn end(&self) {
        self.shutdown.ask();
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> Result<(), Error> {
        let thread = self.thread.take().expect("it was started");
        thread.join().expect("the server does not panic")
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the server listens");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("a timeout");
        stream.set_write_timeout(patience).expect("a timeout");
        stream
    }

    /// Sends the bytes and reads until the server closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        // The server may have said no and closed before all was sent.
        let _ = stream.write_all(bytes);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        all
    }

    /// A request of its own connection: `GET /path`, headers as lines, body.
    pub fn ask(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        let mut text = format!("{line} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|h| h.starts_with("Host:")) {
            text.push_str(&format!("Host: {}\r\n", self.address));
        }
        for header in headers {
            text.push_str(&format!("{header}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        Answer::of(&self.raw(format!("{text}\r\n{body}").as_bytes()))
    }

    pub fn get(&self, path: &str, key: &str) -> Answer {
        self.ask(&format!("GET {path}"), &bearer(key), "")
    }
}

/// The header for a key; none for an empty one.
pub fn bearer(key: &str) -> Vec<&'static str> {
    match key.is_empty() {
        true => Vec::new(),
        false => vec![format!("Authorization: Bearer {key}").leak()],
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.ask();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn of(bytes: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Answer {
            status: status.unwrap_or_else(|| panic!("no answer: {text:?}")),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1);
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let mut found = pairs.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The status, and the code of an error in OpenAI's shape.
    pub fn refused(&self, status: u16, code: &str) -> &Answer {
        assert_eq!(self.status, status, "{self:?}");
        let error = &self.json()["error"];
        assert_eq!(error["code"], code, "{self:?}");
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{self:?}"
        );
        assert!(error.get("param").is_some(), "{self:?}");
        self
    }
}

/// Settings that keep the access log.
pub fn logged() -> (Settings, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    let sink = move |line: &str| kept.lock().unwrap().push(line.to_owned());
    let settings = Settings {
        access_log: Some(Arc::new(sink)),
        grace: Duration::from_secs(5),
        ..Settings::default()
    };
    (settings, lines)
}
