//! The verbs, one file each. A verb is a function from its arguments to a result; this table is
//! the only place that lists them all.

mod answer;
mod bench;
mod completions;
mod config;
mod convert;
mod detokenize;
mod doctor;
mod imatrix;
mod key;
mod line;
mod logits;
mod man;
mod perplexity;
mod quantize;
mod repl;
mod run;
pub mod sampling;
mod serve;
mod store;
mod template;
mod tokenize;
mod words;

use anyhow::Result;

use crate::args::Verb;

/// Does what was asked.
pub fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Run(args) => run::run(&args),
        Verb::Tokenize(args) => tokenize::run(&args),
        Verb::Detokenize(args) => detokenize::run(&args),
        Verb::Template(args) => template::run(&args),
        Verb::Logits(args) => logits::run(&args),
        Verb::Perplexity(args) => perplexity::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Imatrix(args) => imatrix::run(&args),
        Verb::Quantize(args) => quantize::run(&args),
        Verb::Serve(args) => serve::run(&args),
        Verb::Key(args) => key::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Pull(args) => store::pull(&args),
        Verb::List(args) => store::list(&args),
        Verb::Show(args) => store::show(&args),
        Verb::Rm(args) => store::rm(&args),
        Verb::Cp(args) => store::cp(&args),
        Verb::Create(args) => store::create(&args),
        Verb::Verify(args) => store::verify(&args),
        Verb::Config(args) => config::run(&args),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
    }
}
