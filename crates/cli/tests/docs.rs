//! `docs/cli.md` is made of the help texts, `docs/models.md` of the code's tables: plain files, renewed
//! with `PUNA_BLESS=1`.

mod common;

use std::path::Path;

use common::{VERBS, puna};

const HEAD: &str = "# The command line\n\n\
    Made from `puna --help` and each verb's `--help`; `PUNA_BLESS=1 cargo test -p puna --test docs` renews it.\n";

#[test]
fn the_page_of_the_command_line() {
    let mut page = HEAD.to_owned();
    let mut add = |title: &str, args: &[&str]| {
        let help = puna(args).succeeded().text();
        page.push_str(&format!(
            "\n## {title}\n\n```text\n{}\n```\n",
            help.trim_end()
        ));
    };
    add("puna", &["--help"]);
    for verb in VERBS {
        add(&format!("puna {verb}"), &[verb, "--help"]);
    }
    is_the_page("cli.md", &page);
}

/// A page of `docs`: renewed if that is asked for, then compared.
fn is_the_page(name: &str, page: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let file = docs.join(name);
    if std::env::var_os("PUNA_BLESS").is_some() {
        std::fs::write(&file, page).expect("the page can be written");
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        page == there,
        "docs/{name} differs from what it is made of; PUNA_BLESS=1 renews it"
    );
}

/// Formats of model files: what is read of them, and what that is compared with.
const FORMATS: [(&str, &str, &str); 6] = [
    (
        "GGUF 2 and 3, split or whole",
        "one file, or all parts beside the first; nothing is copied but norms and biases",
        "llama.cpp's own conversions; hostile files",
    ),
    (
        "Hugging Face directory",
        "config.json, safetensors or pytorch_model.bin (one file or shards), tokenizer and template",
        "transformers' checkpoints, in the configurations of versions 4 and 5; hostile files",
    ),
    (
        "8-bit floats, GPTQ, AWQ, bitsandbytes",
        "safetensors of such a directory (8-bit floats also of the experts of Llama 4), repacked when they are opened where that loses nothing; `convert` and `quantize` start from them too",
        "files made by the published layouts, against a computation in double precision; hostile files",
    ),
    (
        "Meta's directory",
        "params.json, any number of consolidated.*.pth, tokenizer.model of both kinds; parts cut by columns are copied",
        "transformers' logits (Llama 1 in two parts), a computation in double precision; hostile files",
    ),
    (
        "PyTorch's file",
        "the zip of version 1.6 and later: closed lists of opcodes and of names, nothing is run",
        "as above; files of other programs, by hand",
    ),
    (
        "llama2.c",
        "versions 0, 1 and 2, with tokenizer.bin beside",
        "a computation in double precision; a real checkpoint, by hand; hostile files",
    ),
];

/// Files with a tokenizer: what is read, what the ids are compared with, and by which tests of `crates/text`.
const TOKENIZERS: [(&str, &str, &str, &[&str]); 7] = [
    (
        "GGUF, `gpt2`",
        "byte-level BPE with the splitting of Llama 3, Llama 4, SmolLM, GPT-2 or llama.cpp's default",
        "tokenizers, tiktoken, llama.cpp's vectors; the splitting: the published patterns run by a regex engine",
        &[
            "smollm2_from_gguf",
            "smollm2_sample",
            "llama3_from_gguf",
            "llama_cpp_vectors",
            "splitters_equal_the_published_patterns",
        ],
    ),
    (
        "GGUF, `llama`",
        "SentencePiece BPE with its bytes",
        "sentencepiece, llama.cpp's vectors",
        &["llama2_from_gguf", "llama_samples", "llama_cpp_vectors"],
    ),
    (
        "tokenizer.model, SentencePiece",
        "BPE models; user-defined and unused pieces",
        "sentencepiece",
        &[
            "tiny_spm_from_tokenizer_model",
            "llama2_from_tokenizer_model",
        ],
    ),
    (
        "tokenizer.model, tiktoken",
        "the rank files of Llama 3 and 4, with their special tokens",
        "llama-models (tiktoken)",
        &[
            "llama3_from_tokenizer_model",
            "llama4_from_tokenizer_model",
            "llama_samples",
        ],
    ),
    (
        "tokenizer.json, byte-level BPE",
        "what Llama 3 and 4, SmolLM2 and GPT-2 say in it, by Puna's own encoder",
        "the tokenizers crate on random text, tokenizers' ids",
        &[
            "random_text",
            "smollm2_from_tokenizer_json",
            "tiny_bpe_from_tokenizer_json",
        ],
    ),
    (
        "tokenizer.json, any other",
        "with a byte-level or SentencePiece decoder, by the tokenizers crate: slower",
        "sentencepiece (Llama 2)",
        &["llama2_from_tokenizer_json"],
    ),
    (
        "tokenizer.bin of llama2.c",
        "SentencePiece's pieces and scores",
        "by hand; hostile files",
        &["llama2c_files_that_are_refused"],
    ),
];

/// The tests of `crates/text`, all in one.
fn tests_of_text() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests");
    let files = std::fs::read_dir(folder).expect("the folder is there");
    let files = files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
    files.collect()
}

#[test]
fn the_page_of_models() {
    let mut page = "# What runs\n\n\
        Made from the tables of the code; `PUNA_BLESS=1 cargo test -p puna --test docs` renews it. How to name and \
        fetch a model: [models and the store](models-and-store.md).\n\n\
        A key or tensor that would change the result and is not implemented is an error that names it. Every \
        architecture gives the same bits for any number of threads, size of chunks, batch and cached prefix.\n\n\
        ## Architectures\n\n\
        | name | config.json | GGUF | models | special | compared with |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for a in &model::ARCHITECTURES {
        let classes: Vec<String> = a.classes.iter().map(|(c, _)| format!("`{c}`")).collect();
        let gguf = if a.gguf {
            format!("`{}`", a.name)
        } else {
            "-".into()
        };
        page.push_str(&format!(
            "| {} | {} | {gguf} | {} | {} | {} |\n",
            a.name,
            classes.join(", "),
            a.models,
            a.special,
            a.tested
        ));
    }
    page.push_str("\n## Files\n\n| format | what is read | compared with |\n|---|---|---|\n");
    for (format, read, compared) in FORMATS {
        page.push_str(&format!("| {format} | {read} | {compared} |\n"));
    }
    page.push_str(
        "\n## Tokenizers\n\nThe ids are those of the official implementations: on 477 fixed texts and 300 random ones \
        in the repository, and on 100,000 random texts in `.ci/networked`.\n\n\
        | file | what is read | compared with | by |\n|---|---|---|---|\n",
    );
    let sources = tests_of_text();
    for (file, read, compared, tests) in TOKENIZERS {
        let names: Vec<String> = tests.iter().map(|name| format!("`{name}`")).collect();
        page.push_str(&format!(
            "| {file} | {read} | {compared} | {} |\n",
            names.join(", ")
        ));
        for name in tests {
            assert!(sources.contains(&format!("fn {name}(")), "no test {name}");
        }
    }
    let types: Vec<&str> = kernels::Type::ALL.iter().map(|ty| ty.name()).collect();
    let formats: Vec<String> = text::formats().map(|name| format!("`{name}`")).collect();
    page.push_str(&format!(
        "\n## Storage types\n\n{}, and the mixes of them. Experts of a Hugging Face directory must be floats.\n\n\
        ## Prompt formats\n\nA model's own chat template is used. For models that come without one, `--template` \
        takes a file, or one of {}.\n",
        types.join(", "),
        formats.join(", ")
    ));
    is_the_page("models.md", &page);
    // The help names the same formats.
    for verb in ["run", "template"] {
        let help = puna(&[verb, "--help"]).succeeded().text();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let names = text::formats().collect::<std::collections::BTreeSet<_>>();
        assert!(
            names.iter().all(|name| help.contains(name)),
            "{verb}: {names:?}"
        );
    }
}
