//! The verbs of the server: `serve` and `key`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand, value_parser};
use server::KeepAlive;

use super::{DraftArgs, Format, LoadArgs, at_least_one};

#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The address to listen at; any but this machine's own needs keys or --no-auth [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "PUNA_SERVE_HOST")]
    pub host: Option<IpAddr>,
    /// The port; 0: any that is free [default: 7862]
    #[arg(long, value_name = "N", env = "PUNA_SERVE_PORT")]
    pub port: Option<u16>,
    /// A MODEL to serve, repeatable [default: PUNA_MODEL, else smollm2:135m]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Vec<String>,
    /// Serve all models of this machine: load the first --model now, others when they are asked for
    #[arg(long, env = "PUNA_SERVE_ON_DEMAND", value_parser = BoolishValueParser::new())]
    pub on_demand: bool,
    /// With --on-demand, how long an idle model stays loaded: 90s, 5m, 1h; 0: not at all, -1: for ever
    #[arg(
        long,
        value_name = "TIME",
        env = "PUNA_SERVE_KEEP_ALIVE",
        default_value = "5m",
        allow_hyphen_values = true,
        value_parser = str::parse::<KeepAlive>
    )]
    pub keep_alive: KeepAlive,
    /// An adapter that requests may choose as NAME, repeatable: a name of the store or a path, with [:SCALE] behind it
    #[arg(long, value_name = "NAME=ADAPTER")]
    pub named_adapter: Vec<String>,
    /// Sequences that run at once, of each model
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    pub parallel: usize,
    /// A folder for cached prefixes that memory has no room for, and across restarts
    #[arg(long, value_name = "DIR", env = "PUNA_SERVE_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most that it may hold, in bytes: 10 GiB
    #[arg(long, value_name = "BYTES", default_value_t = 10 << 30)]
    pub cache_dir_size: u64,
    /// Refuse requests that say what Puna does not know, instead of logging it
    #[arg(long)]
    pub strict: bool,
    /// The database of keys, usage and audit [default: server.sqlite in PUNA_HOME]
    #[arg(long, value_name = "FILE", env = "PUNA_SERVE_STATE")]
    pub state: Option<PathBuf>,
    /// Send traces there: an OTLP/HTTP collector, one span a request, without prompts and answers
    #[arg(long, value_name = "URL", env = "PUNA_SERVE_OTLP")]
    pub otlp: Option<String>,
    /// Keep prompts and answers in the audit log
    #[arg(long)]
    pub audit_content: bool,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub guard: GuardArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// Who may ask.
#[derive(Args, Debug)]
#[command(next_help_heading = "Who may ask")]
pub struct GuardArgs {
    /// Keys, one a line: KEY [NAME [SCOPES]]
    #[arg(long, value_name = "FILE", env = "PUNA_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Serve everyone who reaches the address; admin routes still need a key
    #[arg(long, env = "PUNA_SERVE_NO_AUTH", value_parser = BoolishValueParser::new())]
    pub no_auth: bool,
    /// A name that clients may call this machine by (repeatable)
    #[arg(
        long,
        value_name = "NAME",
        env = "PUNA_SERVE_ALLOWED_HOST",
        value_delimiter = ','
    )]
    pub allowed_host: Vec<String>,
    /// An origin whose pages may call this server, with its scheme (repeatable)
    #[arg(
        long,
        value_name = "ORIGIN",
        env = "PUNA_SERVE_ALLOWED_ORIGIN",
        value_delimiter = ','
    )]
    pub allowed_origin: Vec<String>,
    /// The certificate chain (PEM): serve HTTPS
    #[arg(
        long,
        value_name = "FILE",
        env = "PUNA_SERVE_TLS_CERT",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "PUNA_SERVE_TLS_KEY",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
}

/// How much of it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests for answers at once; more get 503
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_requests: usize,
    /// Connections at once; more wait
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
    pub max_connections: usize,
    /// The longest body of a request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = at_least_one)]
    pub max_body: usize,
    /// Seconds that running answers have when the server ends
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub grace: u64,
    /// No line on stderr for each request
    #[arg(long)]
    pub no_access_log: bool,
}

/// `puna key VERB`.
#[derive(Args, Debug)]
pub struct KeyArgs {
    #[command(subcommand)]
    pub verb: KeyVerb,
    /// The server's database [default: server.sqlite in PUNA_HOME]
    #[arg(long, value_name = "FILE", env = "PUNA_SERVE_STATE", global = true)]
    pub state: Option<PathBuf>,
    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t, value_name = "FORM", global = true)]
    pub format: Format,
}

#[derive(Subcommand, Debug)]
pub enum KeyVerb {
    /// Make a key and show it, this once
    Create(KeyCreateArgs),
    /// List the keys, without their secrets
    List,
    /// Make a key open nothing from now on
    Revoke {
        /// The key's id or name
        key: String,
    },
    /// What the keys used, for billing
    Usage(KeyUsageArgs),
    /// Print the audit log, one JSON object a line
    Audit(KeyAuditArgs),
}

#[derive(Args, Debug)]
pub struct KeyCreateArgs {
    /// What to call it: letters, digits, spaces and ._-@
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// What it is for: inference, admin, metrics, separated by commas
    #[arg(long, value_name = "LIST", default_value = "inference")]
    pub scopes: String,
    /// Requests a minute [default: any number]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub rpm: Option<u32>,
    /// Tokens a minute, of prompts and answers [default: any number]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub tpm: Option<u32>,
    /// Tokens a calendar month (UTC) [default: any number]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    pub monthly_tokens: Option<u64>,
    /// When it ends: YYYY-MM-DD or 2026-01-31T12:00:00Z [default: never]
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
}

#[derive(Args, Debug)]
pub struct KeyUsageArgs {
    /// From this day or hour on (UTC) [default: the month's first day]
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Up to this day or hour, which is not in it [default: now]
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
}

#[derive(Args, Debug)]
pub struct KeyAuditArgs {
    /// Check that no row was changed, and print the last hash
    #[arg(long)]
    pub verify: bool,
    /// Check too that the log goes through this hash, noted earlier
    #[arg(long, value_name = "HASH")]
    pub head: Option<String>,
    /// Rows after this number
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub after: i64,
}
