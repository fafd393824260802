//! How fast text becomes ids and ids become text, in MB/s on one thread: `cargo bench -p text`.
//!
//! For each vocabulary in turns: Puna from the file that carries it, Puna from a `tokenizer.json` of the same
//! vocabulary, and the `tokenizers` crate from that. The three must give the same ids. Medians of several rounds.
//!
//! SmolLM2's vocabulary is a fixture; those of Llama 2, 3 and 4 come from the folder that `PUNA_LLAMA_TOKENIZERS`
//! names (`.ci/fetch-llama-tokenizers`). The text is the file that `PUNA_BENCH_TEXT` names, else the fixture of the
//! perplexity tests, which is short. It is cut into documents of some kilobytes. `scripts/bench-tokenizers` brings a
//! longer text and compares with Python's libraries.

use std::path::{Path, PathBuf};
use std::time::Instant;

use files::gguf::Gguf;
use text::{Decoder, Special, Tokenizer};

/// Unless `PUNA_BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 7;
/// A document ends at the first line end after so many bytes.
const DOCUMENT: usize = 4000;

struct Case {
    name: &'static str,
    file: PathBuf,
    /// A tokenizer.json of the same vocabulary.
    json: Option<Vec<u8>>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = match std::env::var_os("PUNA_BENCH_TEXT") {
        Some(file) => std::fs::read_to_string(file)?,
        None => std::fs::read_to_string(fixture("reference/smollm2/ppl.txt"))?,
    };
    let rounds = std::env::var("PUNA_BENCH_ROUNDS").unwrap_or_default();
    let rounds = rounds.parse().unwrap_or(ROUNDS);
    let documents = documents(&text);
    println!(
        "{:.1} MB in {} documents; MB/s, median of {rounds} rounds\n",
        text.len() as f64 / 1e6,
        documents.len()
    );
    println!(
        "| vocabulary | load, ms | encode | from tokenizer.json | tokenizers crate | times faster | decode |"
    );
    println!("|---|---|---|---|---|---|---|");
    for case in cases()? {
        measure(&case, &documents, rounds)?;
    }
    Ok(())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

fn cases() -> Result<Vec<Case>, Box<dyn std::error::Error>> {
    let mut cases = vec![Case {
        name: "SmolLM2",
        file: fixture("tokenizers/smollm2-vocab.gguf"),
        json: Some(std::fs::read(fixture("reference/smollm2/tokenizer.json"))?),
    }];
    let Some(folder) = std::env::var_os("PUNA_LLAMA_TOKENIZERS").map(PathBuf::from) else {
        return Ok(cases);
    };
    // Meta's file has no merges; a GGUF of the same vocabulary has.
    let written = text::hf_files(&Gguf::open(folder.join("llama-bpe.gguf"))?.metadata)?;
    let llama3 = written
        .into_iter()
        .find(|(name, _)| *name == "tokenizer.json");
    cases.push(Case {
        name: "Llama 3",
        file: folder.join("llama3.model"),
        json: llama3.map(|(_, bytes)| bytes),
    });
    cases.push(Case {
        name: "Llama 4",
        file: folder.join("llama4.model"),
        json: None,
    });
    cases.push(Case {
        name: "Llama 2",
        file: folder.join("llama-spm.gguf"),
        json: Some(std::fs::read(folder.join("llama2.json"))?),
    });
    Ok(cases)
}

fn documents(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let mut rest = text;
    while let Some(end) = rest
        .get(DOCUMENT.min(rest.len())..)
        .map_or(Some(0), |r| r.find('\n'))
    {
        let (document, after) = rest.split_at((DOCUMENT + end + 1).min(rest.len()));
        documents.push(document);
        rest = after;
    }
    documents.push(rest);
    documents.retain(|d| !d.is_empty());
    documents
}

/// Runs every way once a round, in turns.
fn measure(
    case: &Case,
    documents: &[&str],
    rounds: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let begin = Instant::now();
    let ours = Tokenizer::open(&case.file)?;
    let load = begin.elapsed().as_secs_f64() * 1e3;
    let json = case
        .json
        .as_ref()
        .map(|bytes| Tokenizer::from_json(bytes))
        .transpose()?;
    let theirs = case.json.as_ref().map(tokenizers::Tokenizer::from_bytes);
    let theirs = theirs.transpose().map_err(|e| e.to_string())?;
    let bytes: usize = documents.iter().map(|d| d.len()).sum();

    let puna = |tokenizer: &Tokenizer| -> Vec<Vec<u32>> {
        let encode = |d: &&str| tokenizer.encode(d, Special::Parse).expect("a text encodes");
        documents.iter().map(encode).collect()
    };
    let peer = |tokenizer: &tokenizers::Tokenizer| -> Vec<Vec<u32>> {
        let encode = |d: &&str| tokenizer.encode_fast(*d, false).expect("a text encodes");
        documents
            .iter()
            .map(|d| encode(d).get_ids().to_vec())
            .collect()
    };
    let decode = |ids: &[Vec<u32>]| -> usize {
        let stream = |ids: &Vec<u32>| {
            let mut decoder = Decoder::new(&ours, false);
            ids.iter().map(|&id| decoder.push(id).len()).sum::<usize>()
        };
        ids.iter().map(stream).sum()
    };

    let mut speeds: [Vec<f64>; 4] = Default::default();
    let time = |run: &mut dyn FnMut(), speeds: &mut Vec<f64>| {
        let start = Instant::now();
        run();
        speeds.push(bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
    };
    for _ in 0..rounds {
        let (mut ids, mut others, mut back) = (Vec::new(), Vec::new(), 0);
        time(&mut || ids = puna(&ours), &mut speeds[0]);
        if let Some(json) = &json {
            time(&mut || others.push(puna(json)), &mut speeds[1]);
        }
        if let Some(theirs) = &theirs {
            time(&mut || others.push(peer(theirs)), &mut speeds[2]);
        }
        time(&mut || back = decode(&ids), &mut speeds[3]);
        assert!(
            others.iter().all(|o| *o == ids),
            "{}: the ids differ",
            case.name
        );
        assert_eq!(back, bytes, "{}: the text comes back", case.name);
    }
    let ratios = speeds[0]
        .iter()
        .zip(&speeds[2])
        .map(|(a, b)| a / b)
        .collect();
    let [encode, json, theirs, decode] = speeds.map(median);
    println!(
        "| {} | {load:.0} | {encode} | {json} | {theirs} | {} | {decode} |",
        case.name,
        median(ratios)
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2);
    middle.map_or("-".into(), |v| format!("{v:.1}"))
}
