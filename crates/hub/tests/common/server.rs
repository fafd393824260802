//! A small HTTP/1.1 server whose answers a test scripts: also wrong ones, cut ones, endless ones.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request's head.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers
            .iter()
            .find(same)
            .map(|(_, value)| value.as_str())
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// The N of `Range: bytes=N-` and of `bytes=N-M`.
    pub fn range_from(&self) -> Option<usize> {
        self.range()?.0.parse().ok()
    }

    /// The M of `Range: bytes=N-M`.
    pub fn range_to(&self) -> Option<usize> {
        self.range()?.1.parse().ok()
    }

    fn range(&self) -> Option<(&str, &str)> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')
    }
}

/// What follows the head of an answer.
pub enum Body {
    /// These bytes, with their length announced unless the script did.
    Bytes(Vec<u8>),
    /// These bytes, then the connection ends, though more was announced.
    Cut(Vec<u8>),
    /// These bytes, then nothing, with the connection open.
    Stall(Vec<u8>),
    /// Bytes without end, no length announced.
    Endless,
    /// These bytes, no length announced: the connection's end is the body's.
    UntilClose(Vec<u8>),
}

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Body::Bytes(Vec::new()),
        }
    }

    pub fn json(value: &serde_json::Value) -> Reply {
        Reply::status(200).body(Body::Bytes(serde_json::to_vec(value).unwrap()))
    }

    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: Body) -> Reply {
        self.body = body;
        self
    }

    /// A file with Range and If-Range as a good server does them.
    pub fn file(request: &Request, bytes: &[u8], etag: &str) -> Reply {
        let same = request.header("if-range").is_none_or(|given| given == etag);
        let reply = match request.range_from().filter(|_| same) {
            Some(from) if from >= bytes.len() => {
                Reply::status(416).header("Content-Range", &format!("bytes */{}", bytes.len()))
            }
            Some(from) => {
                let to = request
                    .range_to()
                    .map_or(bytes.len(), |to| (to + 1).min(bytes.len()));
                Reply::status(206)
                    .header(
                        "Content-Range",
                        &format!("bytes {from}-{}/{}", to - 1, bytes.len()),
                    )
                    .body(Body::Bytes(bytes[from..to].to_vec()))
            }
            None => Reply::status(200).body(Body::Bytes(bytes.to_vec())),
        };
        reply.header("ETag", etag)
    }

    /// The same answer, but the connection ends after `at` bytes of its body.
    pub fn cut(self, at: usize) -> Reply {
        let Body::Bytes(bytes) = &self.body else {
            panic!("only whole bodies can be cut")
        };
        let (length, part) = (bytes.len(), bytes[..at.min(bytes.len())].to_vec());
        self.header("Content-Length", &length.to_string())
            .body(Body::Cut(part))
    }

    fn write(self, head_only: bool, stop: &AtomicBool, mut to: TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let announced = self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if let Body::Bytes(bytes) = &self.body
            && !announced
        {
            head.push_str(&format!("Content-Length: {}\r\n", bytes.len()));
        }
        head.push_str("\r\n");
        to.write_all(head.as_bytes())?;
        if head_only {
            return Ok(());
        }
        match self.body {
            Body::Bytes(bytes) | Body::Cut(bytes) | Body::UntilClose(bytes) => to.write_all(&bytes),
            Body::Stall(bytes) => {
                to.write_all(&bytes)?;
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }
            Body::Endless => {
                while !stop.load(Ordering::Relaxed) {
                    to.write_all(&[7; 65536])?;
                }
                Ok(())
            }
        }
    }
}

/// A running server. It ends when this is dropped.
pub struct Server {
    port: u16,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// `script` gets each request and how many came before it.
    pub fn start(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let script = Arc::new(script);
        let (log_too, stop_too) = (log.clone(), stop.clone());
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop_too.load(Ordering::Relaxed) {
                    return;
                }
                let (script, log, stop) = (script.clone(), log_too.clone(), stop_too.clone());
                std::thread::spawn(move || {
                    let Ok(stream) = stream else { return };
                    let Some(request) = read_request(&stream) else {
                        return;
                    };
                    let number = {
                        let mut log = log.lock().unwrap();
                        log.push(request.clone());
                        log.len() - 1
                    };
                    let reply = script(&request, number);
                    let _ = reply.write(request.method == "HEAD", &stop, stream);
                });
            }
        });
        Server {
            port,
            log,
            stop,
            accepting: Some(accepting),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The same server under another origin.
    pub fn other_url(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.port)
    }

    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// Requests for files, without those of the API.
    pub fn downloads(&self) -> Vec<Request> {
        let mut log = self.log();
        log.retain(|request| !request.target.starts_with("/api/"));
        log
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Some(Request {
        method,
        target,
        headers,
    })
}
