//! Posting to a URL that the one who runs Puna named, such as a collector of traces.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Url};

use crate::Error;
use crate::http::{is_loopback, tls};

/// For a connection, and for the whole request.
const CONNECT: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(10);

/// A client for one URL. It follows no redirects and reads no answers; proxies named in the
/// environment are used, except for loopback hosts.
pub struct Poster {
    runtime: tokio::runtime::Runtime,
    client: Client,
    url: Url,
}

impl Poster {
    /// For this http or https URL; a bare origin gets the path.
    ///
    /// # Errors
    /// [`Error::Remote`] for what is no such URL; [`Error::Network`] when no client can be built.
    pub fn new(url: &str, path: &str) -> Result<Poster, Error> {
        let refuse = |why: String| Error::Remote {
            what: url.to_owned(),
            why,
        };
        let mut url = Url::parse(url).map_err(|e| refuse(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("not an http or https URL".into()));
        }
        if url.path() == "/" {
            url.set_path(path);
        }
        let failed = |why: String| Error::Network {
            what: "the HTTP client".into(),
            why,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let (tls, _) = tls().map_err(|e| failed(e.to_string()))?;
        let builder = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("puna/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .connect_timeout(CONNECT)
            .timeout(WHOLE);
        let builder = match is_loopback(&url) {
            true => builder.no_proxy(),
            false => builder,
        };
        // The clock of the runtime is needed from the start.
        let client = {
            let _inside = runtime.enter();
            builder.build().map_err(|e| failed(e.to_string()))?
        };
        Ok(Poster {
            runtime,
            client,
            url,
        })
    }

    /// Posts one JSON document; blocks until it was taken, or not. Not for async code.
    ///
    /// # Errors
    /// Why it was not taken, for a log.
    pub fn json(&self, body: Vec<u8>) -> Result<(), String> {
        let host = self.url.host_str().unwrap_or_default();
        let request = self.client.post(self.url.clone());
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        // Sending looks for the runtime's clock at once.
        match self.runtime.block_on(async { request.send().await }) {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("{host} answered HTTP {}", answer.status())),
            Err(error) => Err(format!("{host}: {}", error.without_url())),
        }
    }
}
