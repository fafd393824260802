//! What the command line decides about the server.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::Error;
use crate::keys::Key;
use crate::spans::Exporter;
use crate::{journal, run};

/// Takes lines of the log, without their newline.
pub type Sink = Arc<dyn Fn(&str) + Send + Sync>;

/// How the server answers.
#[derive(Clone)]
pub struct Settings {
    /// Where it listens: an address that others can reach needs keys.
    pub address: IpAddr,
    /// Serve everyone who reaches the address.
    pub no_auth: bool,
    /// Keys beside those of the database.
    pub api_keys: Vec<Key>,
    /// What time it is.
    pub clock: Clock,
    /// Keep prompts and answers in the audit log.
    pub audit_content: bool,
    /// Names by which clients may call this machine, beside its addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Origins (`https://chat.example`) whose pages may call this server. Empty: none but its own.
    pub allowed_origins: Vec<String>,
    /// Certificate chain and private key, both PEM. `None`: plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The longest body of a request, in bytes.
    pub max_body: usize,
    /// Connections at once; more wait in the system's queue.
    pub max_connections: usize,
    /// Requests with work for the engine at once; more get 503 and `Retry-After`.
    pub max_requests: usize,
    /// From the first byte to the end of the headers; also how long a connection may be idle.
    pub header_timeout: Duration,
    /// For a whole body.
    pub body_timeout: Duration,
    /// How long a client may read nothing of an answer before its connection is closed.
    pub write_timeout: Duration,
    /// How often a stream says that it lives while there is nothing to say.
    pub ping: Duration,
    /// How long running answers may go on after the server was asked to end.
    pub grace: Duration,
    /// One JSON line a request.
    pub access_log: Option<Sink>,
    /// Sends traces: one span a request.
    pub spans: Option<Exporter>,
    /// End on SIGTERM too.
    pub terminate: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            no_auth: false,
            api_keys: Vec::new(),
            clock: Clock::System,
            audit_content: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            tls: None,
            max_body: 4 << 20,
            max_connections: 1000,
            max_requests: 256,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            ping: Duration::from_secs(10),
            grace: Duration::from_secs(30),
            access_log: None,
            spans: None,
            terminate: false,
        }
    }
}

/// The limits of every server that no option changes, by names like those of options: bytes,
/// numbers, and times as `30s`.
#[must_use]
pub fn limits() -> Vec<(&'static str, String)> {
    let usual = Settings::default();
    let seconds = |time: Duration| format!("{}s", time.as_secs());
    vec![
        ("max-head", run::HEAD.to_string()),
        ("max-headers", run::HEADERS.to_string()),
        ("handshake-timeout", seconds(run::HANDSHAKE)),
        ("header-timeout", seconds(usual.header_timeout)),
        ("body-timeout", seconds(usual.body_timeout)),
        ("write-timeout", seconds(usual.write_timeout)),
        ("audit-queue", journal::QUEUE.to_string()),
        ("audit-timeout", seconds(journal::PATIENCE)),
    ]
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Everyone who reaches the address, but for what needs the scope admin.
    Open,
    /// Those with a key.
    Keys,
}

impl Auth {
    /// Keys are demanded as soon as one was made, even if it was revoked since. Without keys only this machine is served, unless
    /// `no_auth` says otherwise.
    ///
    /// # Errors
    /// [`Error::Unguarded`] for an address that other machines can reach, without keys or `no_auth`.
    pub fn decide(address: IpAddr, keys: bool, no_auth: bool) -> Result<Auth, Error> {
        match (no_auth, keys) {
            (true, _) => Ok(Auth::Open),
            (false, true) => Ok(Auth::Keys),
            (false, false) if address.is_loopback() => Ok(Auth::Open),
            (false, false) => Err(Error::Unguarded { address }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_need_keys() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let everywhere: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(Auth::decide(here, false, false).unwrap(), Auth::Open);
        assert_eq!(Auth::decide(here, true, false).unwrap(), Auth::Keys);
        assert_eq!(Auth::decide(everywhere, true, false).unwrap(), Auth::Keys);
        assert_eq!(Auth::decide(everywhere, true, true).unwrap(), Auth::Open);
        for address in ["0.0.0.0", "::", "192.168.1.7", "2001:db8::1"] {
            let refused = Auth::decide(address.parse().unwrap(), false, false).unwrap_err();
            assert!(refused.is_usage() && refused.hint().is_some(), "{address}");
        }
    }
}
