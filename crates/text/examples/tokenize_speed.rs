//! How fast tokenizers load, encode and decode English text, in MB/s on one thread.
//!
//!     cargo run --release -p text --example tokenize_speed [TOKENIZER...]
//!
//! TOKENIZER is anything that `Tokenizer::open` takes; without one, the SmolLM2 vocabulary of the fixtures.
//! The text is the King James Bible's beginning (100 KB, the fixture of the perplexity tests), repeated.

use std::path::{Path, PathBuf};
use std::time::Instant;

use text::{Decoder, Special, Tokenizer};

const REPEATS: usize = 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let text = std::fs::read_to_string(fixtures.join("reference/smollm2/ppl.txt"))?.repeat(REPEATS);
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        paths.push(fixtures.join("tokenizers/smollm2-vocab.gguf"));
    }
    let megabytes = text.len() as f64 / 1e6;
    println!("{megabytes:.1} MB of English");
    for path in paths {
        let begin = Instant::now();
        let tokenizer = Tokenizer::open(&path)?;
        let load = begin.elapsed();

        let mut best = f64::INFINITY;
        let mut ids = Vec::new();
        for _ in 0..3 {
            let begin = Instant::now();
            ids = tokenizer.encode(&text, Special::Parse)?;
            best = best.min(begin.elapsed().as_secs_f64());
        }

        let begin = Instant::now();
        let mut decoder = Decoder::new(&tokenizer, false);
        let streamed: usize = ids.iter().map(|&id| decoder.push(id).len()).sum();
        let decode = begin.elapsed().as_secs_f64();
        assert_eq!(streamed, text.len(), "the text comes back");

        println!(
            "{}: load {:.0} ms, encode {:.1} MB/s, decode {:.1} MB/s, {:.2} bytes a token",
            path.display(),
            load.as_secs_f64() * 1e3,
            megabytes / best,
            megabytes / decode,
            text.len() as f64 / ids.len() as f64
        );
    }
    Ok(())
}
