//! The verbs that make one model file from another.

use std::path::PathBuf;

use clap::Args;

use super::{FormatArgs, LoadArgs, NetArgs, at_least_one};

#[derive(Args, Debug)]
pub struct QuantizeArgs {
    /// The MODEL to start from: f32, f16 or bf16
    #[arg(value_name = "IN")]
    pub input: String,
    /// The new file, a GGUF
    pub out: PathBuf,
    /// Q4_K_M, Q8_0, IQ4_XS, ... : any type or mix of llama-quantize; COPY changes nothing
    #[arg(value_name = "TYPE")]
    pub ty: String,
    /// How much each column matters: a file of `puna imatrix` or llama-imatrix
    #[arg(long, value_name = "FILE")]
    pub imatrix: Option<PathBuf>,
    /// A type for the tensors whose names match; the first that matches holds
    #[arg(long, value_name = "REGEX=TYPE")]
    pub tensor_type: Vec<String>,
    /// The type's base for every tensor: no mix
    #[arg(long)]
    pub pure: bool,
    /// A type for the head (output.weight)
    #[arg(long, value_name = "TYPE")]
    pub output_tensor_type: Option<String>,
    /// A type for the embedding table (token_embd.weight)
    #[arg(long, value_name = "TYPE")]
    pub token_embedding_type: Option<String>,
    /// Leave the head as it is
    #[arg(long)]
    pub leave_output_tensor: bool,
    /// Start from tensors that are quantised already: worse than from the original
    #[arg(long)]
    pub allow_requantize: bool,
    /// Only tell what would become of each tensor
    #[arg(long)]
    pub dry_run: bool,
    /// Threads [default: the smallest of physical cores, CPU affinity and cgroup quota]
    #[arg(long, value_name = "N", env = "PUNA_THREADS", value_parser = at_least_one)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// The MODEL to convert
    #[arg(value_name = "IN")]
    pub input: String,
    /// NAME.gguf: a GGUF; any other name: a new Hugging Face directory
    pub out: PathBuf,
    /// Number type of the matrices: f32, f16, bf16, q8_0 [default: as they are; in a directory
    /// quantised ones become f16]
    #[arg(long = "type", value_name = "TYPE")]
    pub ty: Option<String>,
    /// A LoRA adapter to merge: a directory of PEFT's, or a GGUF; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]")]
    pub adapter: Vec<String>,
    /// Threads [default: the smallest of physical cores, CPU affinity and cgroup quota]
    #[arg(long, value_name = "N", env = "PUNA_THREADS", value_parser = at_least_one)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct ImatrixArgs {
    pub model: String,
    /// The text to run through it
    pub text: PathBuf,
    /// The new file: NAME.dat in the old binary form, any other name a GGUF
    pub out: PathBuf,
    /// At most so many chunks of --ctx tokens (512)
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub chunks: Option<usize>,
    /// The head (output.weight) too
    #[arg(long)]
    pub process_output: bool,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub load: LoadArgs,
}

#[derive(Args, Debug)]
pub struct CreateArgs {
    /// The new model's name
    pub name: String,
    /// What it is made of, in ollama's form (`-`: stdin)
    #[arg(short, long, value_name = "MODELFILE", default_value = "Modelfile")]
    pub file: PathBuf,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub net: NetArgs,
}

#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// Also what this model says, and puna.toml of it
    pub model: Option<String>,
    /// With where each setting came from (what this verb always does)
    #[arg(long)]
    pub effective: bool,
    #[command(flatten)]
    pub format: FormatArgs,
}
