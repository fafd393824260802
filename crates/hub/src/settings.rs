//! Where the store lies, which sources may be asked, and how patiently.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;

/// A secret that no log shows: its `Debug` form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(secret: String) -> Token {
        Token(secret)
    }
}

impl From<&str> for Token {
    fn from(secret: &str) -> Token {
        Token(secret.to_owned())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Everything the hub takes from its surroundings. [`Settings::from_env`] reads the environment;
/// tests fill it in by hand.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store's root: `PUNA_HOME`, else `$XDG_DATA_HOME/puna`, else `~/.local/share/puna`.
    pub home: PathBuf,
    /// Fetch nothing: `--offline`, `PUNA_OFFLINE` or `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub hf_endpoint: String,
    /// `HF_TOKEN`, else the contents of `HF_TOKEN_PATH` or `HF_HOME/token`. Sent to
    /// `hf_endpoint`'s origin only.
    pub hf_token: Option<Token>,
    /// Hugging Face caches to look into, in order: `HF_HUB_CACHE`, else `HF_HOME/hub`.
    pub hf_cache: Vec<PathBuf>,
    /// Ollama's stores to look into, in order: `OLLAMA_MODELS`, else where ollama keeps them.
    pub ollama: Vec<PathBuf>,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// How long a transfer may stand still.
    pub read_timeout: Duration,
    /// How many times in a row a request may fail without a byte of progress.
    pub tries: u32,
    /// The pause after the first failure; doubled after each further one, 8 s at most.
    pub backoff: Duration,
    /// The longest `Retry-After` that is obeyed.
    pub retry_after_max: Duration,
    /// How many connections fetch one large file.
    pub connections: usize,
    /// The size of the pieces in which they fetch it; a file of less than two is fetched at once.
    pub piece: u64,
    /// Commands that run pip, tried in order.
    pub pip: Vec<Vec<OsString>>,
    /// How long pip may go on without writing a byte.
    pub pip_stall: Duration,
}

impl Settings {
    /// Reads the environment; an empty variable counts as unset.
    ///
    /// # Errors
    /// [`Error::NoHome`] if there is no place for a store; [`Error::Spec`] if `HF_ENDPOINT` is no
    /// http(s) URL.
    pub fn from_env(offline: bool) -> Result<Settings, Error> {
        Settings::from_vars(&|name| std::env::var_os(name), offline)
    }

    /// [`Settings::from_env`] with any source of variables.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_vars(
        var: &dyn Fn(&str) -> Option<OsString>,
        offline: bool,
    ) -> Result<Settings, Error> {
        let get = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok());
        let flag = |name: &str| text(name).is_some_and(|value| is_true(&value));
        let user_home = get("HOME").map(PathBuf::from);
        let home = get("PUNA_HOME")
            .map(PathBuf::from)
            .or_else(|| absolute(get("XDG_DATA_HOME")).map(|dir| dir.join("puna")))
            .or_else(|| user_home.as_ref().map(|dir| dir.join(".local/share/puna")))
            .ok_or(Error::NoHome)?;
        let hf_home = get("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| absolute(get("XDG_CACHE_HOME")).map(|dir| dir.join("huggingface")))
            .or_else(|| user_home.as_ref().map(|dir| dir.join(".cache/huggingface")));
        let hf_cache = get("HF_HUB_CACHE")
            .or_else(|| get("HUGGINGFACE_HUB_CACHE"))
            .map(PathBuf::from)
            .or_else(|| hf_home.as_ref().map(|dir| dir.join("hub")));
        let token_file = get("HF_TOKEN_PATH")
            .map(PathBuf::from)
            .or_else(|| hf_home.as_ref().map(|dir| dir.join("token")));
        let ollama = match get("OLLAMA_MODELS") {
            Some(dir) => vec![PathBuf::from(dir)],
            None => ollama_homes(user_home.as_deref()),
        };
        let hf_token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| token_file.as_deref().and_then(read_token))
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty());
        Ok(Settings {
            offline: offline || flag("PUNA_OFFLINE") || flag("HF_HUB_OFFLINE"),
            hf_endpoint: endpoint(text("HF_ENDPOINT"))?,
            hf_token: hf_token.map(Token::from),
            hf_cache: hf_cache.into_iter().collect(),
            ollama,
            ..Settings::new(home)
        })
    }

    /// The defaults around a store at `home`: no token, no cache, online.
    #[must_use]
    pub fn new(home: impl Into<PathBuf>) -> Settings {
        Settings {
            home: home.into(),
            offline: false,
            hf_endpoint: HF_ENDPOINT.to_owned(),
            hf_token: None,
            hf_cache: Vec::new(),
            ollama: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            tries: 5,
            backoff: Duration::from_millis(500),
            retry_after_max: Duration::from_secs(30),
            connections: 4,
            piece: 16 << 20,
            pip: PIP
                .iter()
                .map(|words| words.iter().map(OsString::from).collect())
                .collect(),
            pip_stall: Duration::from_secs(240),
        }
    }
}

/// Where Hugging Face is when `HF_ENDPOINT` does not say otherwise.
const HF_ENDPOINT: &str = "https://huggingface.co";

/// Ways to call pip. A Python that has it as a module comes first: a bare `pip` may belong to
/// another Python than the one on the PATH.
const PIP: [&[&str]; 4] = [
    &["python3", "-m", "pip"],
    &["pip3"],
    &["pip"],
    &["python", "-m", "pip"],
];

/// Where ollama keeps models: of the user, and of the service.
fn ollama_homes(home: Option<&Path>) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = home.iter().map(|dir| dir.join(".ollama/models")).collect();
    dirs.extend(
        [
            "/usr/share/ollama/.ollama/models",
            "/var/lib/ollama/.ollama/models",
            "/var/lib/ollama/models",
        ]
        .map(PathBuf::from),
    );
    dirs
}

fn is_true(value: &str) -> bool {
    matches!(
        value.to_ascii_lowercase().as_str(),
        "1" | "true" | "yes" | "on"
    )
}

/// The XDG rules say that a relative path in these variables is to be ignored.
fn absolute(value: Option<OsString>) -> Option<PathBuf> {
    value.map(PathBuf::from).filter(|path| path.is_absolute())
}

fn endpoint(value: Option<String>) -> Result<String, Error> {
    let Some(value) = value else {
        return Ok(HF_ENDPOINT.to_owned());
    };
    let good = reqwest::Url::parse(&value).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    });
    if !good {
        return Err(Error::Spec {
            word: value,
            why: "HF_ENDPOINT must be an http(s) URL without user name or password".into(),
        });
    }
    Ok(value.trim_end_matches('/').to_owned())
}

/// The first line of a token file, if it is there and small.
fn read_token(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    if !meta.is_file() || meta.len() > 4096 {
        return None;
    }
    std::fs::read_to_string(path).ok()
}
