//! What can be typed: every verb of this release and its options, as clap's derive states them.
//!
//! Names are a contract (docs and other programs rely on them). Nothing here looks at the machine
//! or at a file: a value is checked for its form only.

#![expect(rustdoc::broken_intra_doc_links, reason = "the help texts hold shapes")]

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::{self, Config};

mod making;
mod sampling;
mod serving;

pub use making::{ConfigArgs, ConvertArgs, CreateArgs, ImatrixArgs, QuantizeArgs};
pub use sampling::{DraftArgs, SamplingArgs};
pub use serving::{KeyArgs, KeyAuditArgs, KeyCreateArgs, KeyUsageArgs, KeyVerb, ServeArgs};

/// Shown under `puna --help` and every verb's `--help`.
const ENVIRONMENT: &str = "\
Environment (an empty variable counts as unset; an option beats it, and it beats puna.toml):
  PUNA_CONFIG    the file of settings (default: ./puna.toml, else $XDG_CONFIG_HOME/puna/puna.toml,
                 else ~/.config/puna/puna.toml); `puna config --effective` shows what is in force
  PUNA_HOME      the store of models (default: $XDG_DATA_HOME/puna, else ~/.local/share/puna)
  PUNA_MODEL     the MODEL where none is named (default: smollm2:135m)
  PUNA_THREADS   --threads      PUNA_COMPUTE   --compute
  PUNA_SIMD      --simd         PUNA_OFFLINE   --offline
  PUNA_MEMORY    memory to stay under, as 4G (default: what the machine and its cgroup leave)
  HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE as Hugging Face's own tools read them
  OLLAMA_MODELS  ollama's store (default: where ollama keeps it)
  NO_COLOR, RUST_LOG (what is logged on stderr; default: warn)";

const MODELS: &str = "\
MODEL is a name (smollm2:135m), a .gguf or llama2.c file, a Hugging Face or Meta directory,
hf:ORG/REPO[@REV][:FILE_OR_QUANT], pip:NAME==VERSION[:MEMBER], ollama:NAME[:TAG] (ollama's own
store, used in place) or https://...";

/// The verbs' shared ending: what MODEL may be, and the environment.
fn ending() -> String {
    format!("{MODELS}\n\n{ENVIRONMENT}")
}

/// Llama models on your own machine
#[derive(Parser, Debug)]
#[command(
    name = "puna",
    version,
    after_help = ENVIRONMENT,
    subcommand_required = true,
    arg_required_else_help = false,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Answer a prompt, or hold a conversation on a terminal
    #[command(after_help = ending())]
    Run(Box<RunArgs>),
    /// Text to token ids
    #[command(after_help = ending())]
    Tokenize(TokenizeArgs),
    /// Token ids to text
    #[command(after_help = ending())]
    Detokenize(DetokenizeArgs),
    /// Render a chat template
    #[command(after_help = ending())]
    Template(TemplateArgs),
    /// The most likely next tokens at each position; logits and hidden states to a file
    #[command(after_help = ending())]
    Logits(LogitsArgs),
    /// Perplexity of a text, by llama.cpp's protocol
    #[command(after_help = ending())]
    Perplexity(PerplexityArgs),
    /// Measure speed
    #[command(after_help = ending())]
    Bench(BenchArgs),
    /// A model in another layout, GGUF or a Hugging Face directory; adapters merged
    #[command(after_help = ending())]
    Convert(ConvertArgs),
    /// A smaller file of a model, with the error of each tensor
    #[command(after_help = ending())]
    Quantize(QuantizeArgs),
    /// How much each column of each matrix matters, for quantize
    #[command(after_help = ending())]
    Imatrix(ImatrixArgs),
    /// Serve models over HTTP
    #[command(after_help = ENVIRONMENT)]
    Serve(Box<ServeArgs>),
    /// Keys for the server: make, list, revoke; what they used; the audit log
    #[command(after_help = ENVIRONMENT)]
    Key(KeyArgs),
    /// Look at this machine: CPU, memory, store, sources
    #[command(after_help = ENVIRONMENT)]
    Doctor(DoctorArgs),
    /// Fetch a model into the store
    #[command(after_help = ending())]
    Pull(PullArgs),
    /// List the models in the store
    #[command(after_help = ENVIRONMENT)]
    List(ListArgs),
    /// What a model is: architecture, sizes, licence, source, hash, memory
    #[command(after_help = ending())]
    Show(ShowArgs),
    /// Remove models from the store
    #[command(after_help = ENVIRONMENT)]
    Rm(RmArgs),
    /// Give a model in the store a second name
    #[command(after_help = ENVIRONMENT)]
    Cp(CpArgs),
    /// Make a model out of another one: settings, system message, template, adapter
    #[command(after_help = ending())]
    Create(CreateArgs),
    /// Hash the store's files again and compare
    #[command(after_help = ENVIRONMENT)]
    Verify(VerifyArgs),
    /// The settings in force, and where each came from
    #[command(after_help = ENVIRONMENT)]
    Config(ConfigArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page (roff)
    Man(ManArgs),
}

/// The form of what is printed on stdout.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// `--format`, in every verb that prints data.
#[derive(Args, Debug, Clone, Copy)]
pub struct FormatArgs {
    /// Form of what is printed on stdout
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub format: Format,
}

/// Storage of keys and values.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub enum CacheType {
    F16,
    Bf16,
    F32,
    #[value(name = "q8_0")]
    Q8_0,
}

/// The precision of activations.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    Fast,
    F32,
}

/// Levels of vector instructions.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
#[value(rename_all = "lower")]
pub enum Simd {
    Scalar,
    Avx2,
    Avx2vnni,
    Avx512,
    Avx512vnni,
    Avx512bf16,
}

/// The options of every verb that loads a model.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Loading")]
pub struct LoadArgs {
    /// Context in tokens [default: the smaller of the model's and what fits in memory]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub ctx: Option<usize>,
    /// Storage of keys and values [default: f16; f32 with --compute f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub cache_type: Option<CacheType>,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// A LoRA adapter: a directory of PEFT's, or a GGUF; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]")]
    pub adapter: Vec<String>,
    /// A control vector, a GGUF; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]")]
    pub control_vector: Vec<String>,
    /// Layers that control vectors act on, both ends included [default: all]
    #[arg(long, value_name = "A:B", requires = "control_vector")]
    pub control_vector_layers: Option<String>,
    #[command(flatten)]
    pub net: NetArgs,
}

/// How this machine computes.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Loading")]
pub struct MachineArgs {
    /// Threads [default: the smallest of physical cores, CPU affinity and cgroup quota]
    #[arg(long, value_name = "N", env = "PUNA_THREADS", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Activations in the kernels' own precision, or all in f32: the reference [default: fast]
    #[arg(long, value_enum, value_name = "MODE", env = "PUNA_COMPUTE")]
    pub compute: Option<Compute>,
    /// Force a level of vector instructions [default: the best this machine has]
    #[arg(long, value_enum, value_name = "LEVEL", env = "PUNA_SIMD")]
    pub simd: Option<Simd>,
}

/// May the network be used?
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct NetArgs {
    /// Never use the network
    #[arg(long, env = "PUNA_OFFLINE", value_parser = BoolishValueParser::new())]
    pub offline: bool,
}

#[derive(Args, Debug, Clone)]
#[command(override_usage = "puna run [OPTIONS] [MODEL] [PROMPT...]")]
pub struct RunArgs {
    /// The first word is the MODEL if it is one; the others are the prompt; `-` is stdin
    #[arg(value_name = "WORD", allow_negative_numbers = true)]
    pub words: Vec<String>,
    /// The MODEL, so that all words are the prompt [env: PUNA_MODEL] [default: smollm2:135m]
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<String>,
    /// System message
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "raw"
    )]
    pub system: Option<String>,
    /// Use this chat template; also chatml, llama2, llama3, llama-guard-1, llama-guard-2,
    /// llama-guard-3
    #[arg(long, value_name = "FILE.jinja", conflicts_with_all = ["raw", "suffix"])]
    pub template: Option<PathBuf>,
    /// Continue the prompt as it is: no chat template
    #[arg(long)]
    pub raw: bool,
    /// Fill in between the prompt and this text (models trained for it)
    #[arg(
        long,
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "system"
    )]
    pub suffix: Option<String>,
    /// Tokens to generate at most [default: until the context ends]
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// End the answer before this text (repeatable)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Report the log-probability of each token and of the K likeliest
    #[arg(long, value_name = "K")]
    pub logprobs: Option<usize>,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub draft: DraftArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Args, Debug)]
pub struct TokenizeArgs {
    /// MODEL, tokenizer.json, tokenizer.model or a vocabulary-only GGUF
    pub model: String,
    /// The text; `-` or nothing: stdin
    #[arg(
        value_name = "TEXT",
        allow_hyphen_values = true,
        conflicts_with = "jsonl"
    )]
    pub text: Option<String>,
    /// Leave out the begin-of-text token that the model adds
    #[arg(long)]
    pub no_bos: bool,
    /// Special tokens' names in the text become those tokens
    #[arg(long)]
    pub parse_special: bool,
    /// One {"text": ..} a line in (`-`: stdin), one answer a line out, in ASCII
    #[arg(long, value_name = "FILE")]
    pub jsonl: Option<PathBuf>,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct DetokenizeArgs {
    /// MODEL, tokenizer.json, tokenizer.model or a vocabulary-only GGUF
    pub model: String,
    /// Token ids; `-` or nothing: from stdin, separated by spaces, commas or lines
    #[arg(value_name = "ID", conflicts_with = "jsonl")]
    pub ids: Vec<String>,
    /// One {"ids": [..]} a line in (`-`: stdin), one answer a line out, in ASCII
    #[arg(long, value_name = "FILE")]
    pub jsonl: Option<PathBuf>,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct TemplateArgs {
    /// The MODEL whose template (and tokenizer) it is; not needed with --template
    pub model: Option<String>,
    /// A JSON list of messages, or an object with "messages" (`-`: stdin)
    #[arg(long, value_name = "FILE")]
    pub messages: PathBuf,
    /// Use this template; also chatml, llama2, llama3, llama-guard-1, llama-guard-2, llama-guard-3
    #[arg(long, value_name = "FILE.jinja")]
    pub template: Option<PathBuf>,
    /// The template's bos_token [default: the MODEL's]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub bos_token: Option<String>,
    /// The template's eos_token [default: the MODEL's]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub eos_token: Option<String>,
    /// A JSON list of tools
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,
    /// A JSON object of further variables
    #[arg(long, value_name = "JSON")]
    pub vars: Option<String>,
    /// Do not open the assistant's turn
    #[arg(long)]
    pub no_generation_prompt: bool,
    /// The day that the template sees [default: today]
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<String>,
    /// Add the ids that `run` feeds to the model (needs MODEL)
    #[arg(long)]
    pub ids: bool,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["ids", "text"]))]
pub struct LogitsArgs {
    pub model: String,
    /// Token ids, separated by commas
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    pub ids: Option<Vec<u32>>,
    /// A text, tokenised as `puna tokenize` does
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub text: Option<String>,
    /// Write `ids` i64 [n] and `logits` f32 [n, vocab] to this file
    #[arg(long, value_name = "F.safetensors")]
    pub out: Option<PathBuf>,
    /// Add `hidden.0`..`hidden.L` f32 [n, hidden], all before the final norm (needs --out)
    #[arg(long, requires = "out")]
    pub hidden: bool,
    /// Add `attention.0`.. f32 [heads, n, n] (needs --out)
    #[arg(long, requires = "out")]
    pub attention: bool,
    /// Tokens a forward pass takes at once [default: 512, fewer for a large vocabulary]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub chunk: Option<usize>,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

/// `--ctx` is 512 here unless given: the protocol's chunk.
#[derive(Args, Debug)]
pub struct PerplexityArgs {
    pub model: String,
    /// The text
    pub file: PathBuf,
    /// Write the logits, for another model's --kl
    #[arg(long, value_name = "BASE")]
    pub save_logits: Option<PathBuf>,
    /// Compare with the run that wrote BASE
    #[arg(long, value_name = "BASE")]
    pub kl: Option<PathBuf>,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// MODEL [env: PUNA_MODEL] [default: smollm2:135m]
    pub model: Option<String>,
    /// Random weights of this shape, made in memory (smollm2-135m, llama-3.2-1b, ...)
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub shape: Option<String>,
    /// Storage of those weights [default: q8_0]
    #[arg(long = "type", value_name = "TYPE", requires = "shape")]
    pub ty: Option<String>,
    /// Tokens of the prompt test; 0: no such test
    #[arg(short = 'p', value_name = "N", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens of the generation test; 0: no such test
    #[arg(short = 'n', value_name = "N", default_value_t = 128)]
    pub generate: usize,
    /// Tokens in the cache before a test starts
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// Sequences decoded together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub parallel: usize,
    /// Timed repetitions
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub repeat: usize,
    /// Measure this machine's limits too, and the fraction of them that is reached
    #[arg(long)]
    pub limits: bool,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct PullArgs {
    pub model: String,
    /// Fetch nothing: list files, sizes, licence and the memory needed
    #[arg(long)]
    pub dry_run: bool,
    /// Fetch again what is already here
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    pub model: String,
    /// Print it as a Modelfile, as `puna create` reads it
    #[arg(long)]
    pub modelfile: bool,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct RmArgs {
    /// Names in the store
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Args, Debug)]
pub struct CpArgs {
    /// A name in the store
    pub from: String,
    /// The new name
    pub to: String,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Names in the store [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub format: FormatArgs,
}

#[derive(Args, Debug)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub struct ManArgs {}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

/// The command as clap knows it; empty environment variables are forgotten.
pub fn command() -> clap::Command {
    without_empty_env(Cli::command())
}

fn without_empty_env(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let Some(name) = arg.get_env().map(|n| n.to_string_lossy().into_owned()) else {
                return arg;
            };
            let arg = arg.hide_env_values(true);
            if crate::env::os(&name).is_some() {
                return arg;
            }
            let help = format!(
                "{} [env: {name}]",
                arg.get_help().cloned().unwrap_or_default()
            );
            arg.env(None).help(help)
        })
        .mut_subcommands(without_empty_env)
}

/// Settings of the machine from puna.toml stand where an option's default would.
fn with_settings(command: clap::Command, config: &'static Config) -> clap::Command {
    command.mut_subcommands(|verb| {
        let serves = verb.get_name() == "serve";
        verb.mut_args(|arg| {
            let long = arg.get_long();
            let machine = long.filter(|long| config::MACHINE.contains(long));
            let serve = long.filter(|long| serves && config::RESIDENCE.contains(long));
            let said = machine.and_then(|long| config.general(long));
            match said.or_else(|| config.serve(serve?)) {
                // A switch shows no default.
                Some(value) => match arg.get_action().takes_values() {
                    true => arg.default_value(value).hide_default_value(true),
                    false => arg.default_value(value),
                },
                None => arg,
            }
        })
    })
}

/// What was typed, over the environment, over puna.toml. Help is given even if that is broken.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Verb> {
    let config = config::load();
    let command = match &config {
        Ok(config) => with_settings(command(), config),
        Err(_) => command(),
    };
    let matches = command.try_get_matches_from(words)?;
    config?;
    crate::machine::memory_limit()?;
    Ok(Cli::from_arg_matches(&matches)?.verb)
}
