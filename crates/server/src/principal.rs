//! Who asks: the [`Principal`] that the middleware puts into a request's extensions and that
//! handlers read, with its scopes and quotas.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::request::Tracked;

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Answers, embeddings, lists of models.
    Inference,
    /// Usage and audit of everyone.
    Admin,
    /// `/metrics`.
    Metrics,
}

/// Scopes by the name that people type.
const SCOPES: [(&str, Scope); 3] = [
    ("inference", Scope::Inference),
    ("admin", Scope::Admin),
    ("metrics", Scope::Metrics),
];

impl Scope {
    /// The name that people type.
    #[must_use]
    pub fn name(self) -> &'static str {
        SCOPES[self as usize].0
    }

    /// The scopes in a list like `inference,metrics`, each once, in their order.
    ///
    /// # Errors
    /// [`Error::Value`] for an unknown name and for an empty list.
    pub fn parse(list: &str) -> Result<Vec<Scope>, Error> {
        let bad = |why: &str| Error::Value {
            what: "scopes",
            value: list.to_owned(),
            why: why.to_owned(),
        };
        let mut scopes = Vec::new();
        for word in list.split([',', ' ']).filter(|word| !word.is_empty()) {
            let found = SCOPES.iter().find(|(name, _)| *name == word);
            let found = found.ok_or_else(|| bad("scopes are inference, admin and metrics"))?;
            scopes.push(found.1);
        }
        scopes.sort_unstable();
        scopes.dedup();
        match scopes.is_empty() {
            true => Err(bad("there must be one at least")),
            false => Ok(scopes),
        }
    }
}

/// What a key may use. `None`: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Quotas {
    /// Requests a minute.
    pub rpm: Option<u32>,
    /// Tokens a minute, of prompts and answers.
    pub tpm: Option<u32>,
    /// Tokens a calendar month (UTC), of prompts and answers.
    pub monthly_tokens: Option<u64>,
}

/// Who sent a request: a key, or the one who needs none.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The key's id; [`LOCAL`] without a key. Caches that must not be shared by tenants take it as
    /// their tenant.
    pub key: Arc<str>,
    /// The key's name.
    pub name: Arc<str>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// How much of it.
    pub quotas: Quotas,
    /// The request that it sent.
    pub request: Arc<Tracked>,
}

/// The id of the one who needs no key.
pub const LOCAL: &str = "local";

/// The key's id in the audit log for a key that opens nothing.
pub(crate) const REFUSED: &str = "refused";

impl Principal {
    /// May it?
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_typed() {
        for (name, scope) in SCOPES {
            assert_eq!(scope.name(), name);
            assert_eq!(Scope::parse(name).unwrap(), [scope]);
        }
        let both = [Scope::Inference, Scope::Metrics];
        assert_eq!(Scope::parse("metrics, inference,metrics").unwrap(), both);
        assert!(Scope::parse("").is_err() && Scope::parse("root").is_err());
    }
}
