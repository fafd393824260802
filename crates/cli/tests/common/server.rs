//! `puna serve` in a process of its own, and clients that speak bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Home, fixture};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server, ended with its test.
pub struct Server {
    pub child: Child,
    pub address: String,
}

impl Server {
    /// The tiny model, at a free port.
    pub fn start(home: &Home, more: &[&str]) -> Server {
        let model = fixture("models/llama3");
        Server::of(home, &[&["-m", &model], more].concat())
    }

    /// What is asked for, at a free port.
    pub fn of(home: &Home, more: &[&str]) -> Server {
        let args = [&["serve", "--port", "0"], more].concat();
        Server::run(home.command(&args))
    }

    /// Runs a command that serves, until it says where.
    pub fn run(mut command: Command) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut said = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("no address: {said:?}");
            };
            if let Some((_, rest)) = line.split_once("listening at http://") {
                let end = rest.find(' ').expect("a word after the address");
                break rest[..end].to_owned();
            }
            said.push(line);
        };
        // The log goes on; nobody may be held up by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// A request's head and body.
    pub fn request(&self, method: &str, path: &str, key: &str, body: &Value) -> String {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let auth = match key {
            "" => String::new(),
            key => format!("Authorization: Bearer {key}\r\n"),
        };
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{auth}Content-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
    }

    /// Status and body of one request.
    pub fn ask(&self, method: &str, path: &str, key: &str, body: &Value) -> (u16, String) {
        let mut stream = self.connect();
        let request = self.request(method, path, key, body);
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// A request that is answered with 200 and JSON.
    pub fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask("POST", path, "", body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).expect("JSON")
    }

    /// The events of a stream, as they come, without `data: `.
    pub fn stream(&self, key: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
        let mut stream = self.connect();
        let request = self.request("POST", "/v1/completions", key, body);
        stream.write_all(request.as_bytes()).expect("written");
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
    }

    /// Sends bytes and takes the status of the answer, if there is one. What is not a whole request
    /// ends with our side of the connection: the server may not wait for more.
    pub fn raw(&self, bytes: &[u8], whole: bool) -> Option<u16> {
        let mut stream = self.connect();
        // The server may have said no and closed before all was sent.
        let _ = stream.write_all(bytes);
        if !whole {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let text = String::from_utf8_lossy(&all);
        text.split(' ').nth(1).and_then(|s| s.parse().ok())
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let (status, text) = self.ask("GET", "/metrics", "", &Value::Null);
        assert_eq!(status, 200, "{text}");
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let values = lines.filter(|rest| rest.starts_with('{'));
        let values = values.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum()
    }

    /// Waits until nothing runs and no page is held but for kept beginnings.
    pub fn settle(&self) {
        wait_for("all places are free", || {
            let none = ["puna_sequences_running", "puna_queue_depth"];
            none.iter().all(|name| self.metric(name) == 0)
                && self.metric("puna_cache_pages_used") == self.metric("puna_prefix_cache_pages")
        });
    }

    /// Resident memory in bytes.
    #[cfg(target_os = "linux")]
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
        kib.expect("a number of kB") * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A text to go on with, in so many tokens, always the same.
pub fn completion(prompt: &str, tokens: usize) -> Value {
    json!({ "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true })
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// More rounds where everything is tested (`PUNA_TEST_ALL`).
pub fn rounds(quick: usize, all: usize) -> usize {
    match std::env::var_os("PUNA_TEST_ALL") {
        Some(value) if !value.is_empty() => all,
        _ => quick,
    }
}
