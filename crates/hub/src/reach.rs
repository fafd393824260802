//! Whether the sources can be reached, for `doctor`.

use std::time::Instant;

use reqwest::Method;

use crate::http::{Ask, Http};
use crate::hub::{Hub, Reach};
use crate::patience::Fault;
use crate::spec::without_query;
use crate::{Error, Progress, pip};

impl Hub {
    /// Asks the endpoint for its first page and pip for its version. Never fails as a whole; in
    /// offline mode nothing is asked.
    #[must_use]
    pub fn sources_reachable(&self, progress: &mut dyn Progress) -> Vec<Reach> {
        let endpoint = without_query(&self.settings.hf_endpoint).to_owned();
        if self.settings.offline {
            return vec![Reach {
                source: endpoint,
                ok: false,
                detail: "offline mode".into(),
                millis: 0,
            }];
        }
        let mut timed =
            |source: &str, ask: &mut dyn FnMut(&mut dyn Progress) -> Result<String, Error>| {
                let start = Instant::now();
                let answer = ask(progress);
                Reach {
                    source: source.to_owned(),
                    ok: answer.is_ok(),
                    detail: answer.unwrap_or_else(|e| e.to_string()),
                    millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
                }
            };
        vec![
            timed(&endpoint, &mut |progress| self.endpoint_answers(progress)),
            timed("pip", &mut |_| {
                let (command, version) = pip::version(&self.settings)?;
                Ok(format!("{version} ({command})"))
            }),
        ]
    }

    /// One request, not repeated: any answer means that the way is open.
    fn endpoint_answers(&self, progress: &mut dyn Progress) -> Result<String, Error> {
        let http = Http::new(&self.settings)?;
        let url = format!("{}/", self.settings.hf_endpoint);
        let ask = Ask {
            method: Method::HEAD,
            url: &url,
            what: "the endpoint",
            headers: Vec::new(),
        };
        match http.block_on(http.send(&ask, progress)) {
            Ok(answer) => Ok(format!("HTTP {}", answer.response.status())),
            Err(Fault::Final(e)) => Err(e),
            Err(Fault::Again { why, .. }) => Err(Error::Network {
                what: ask.what.to_owned(),
                why,
            }),
        }
    }
}
