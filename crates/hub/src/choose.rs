//! Which files of a repository make the model that was asked for.
//!
//! Pure: a listing in, a choice out. The listing may come from a server or from a cache.

use crate::spec::safe_relative;

/// One file of a repository's listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepoFile {
    /// Its name with folders.
    pub path: String,
    /// Its size, where the listing says.
    pub bytes: Option<u64>,
    /// Its SHA-256, where the listing says (large files).
    pub sha256: Option<String>,
}

/// The files to take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Sorted by name; never empty.
    pub files: Vec<RepoFile>,
    /// Whether the model is the directory, or the first file.
    pub directory: bool,
}

/// Why nothing was chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// One line.
    pub why: String,
    /// What could be named instead.
    pub choices: Vec<String>,
}

/// The quantisation that is taken when none is named and several are there.
const PREFERRED_QUANT: &str = "Q4_K_M";

/// Small files beside the weights of a Hugging Face model that its readers look at.
const SIDE_FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "params.json",
];

/// Chooses from a listing. `wanted` is a file name or a quantisation.
///
/// Without it: a repository with `config.json` and safetensors gives those and the small files
/// beside them; one with GGUF files gives its Q4_K_M, or its only one; only a repository with
/// neither gives its pickled weights. Code (`*.py`) is never taken.
pub(crate) fn choose(listing: &[RepoFile], wanted: Option<&str>) -> Result<Choice, Refusal> {
    let mut listing: Vec<RepoFile> = listing
        .iter()
        .filter(|file| safe_relative(&file.path).is_ok() && !ends(&file.path, ".py"))
        .cloned()
        .collect();
    listing.sort_by(|a, b| a.path.cmp(&b.path));
    listing.dedup_by(|a, b| a.path == b.path);
    match wanted {
        Some(wanted) => choose_wanted(&listing, wanted),
        None => choose_default(&listing),
    }
}

fn choose_wanted(listing: &[RepoFile], wanted: &str) -> Result<Choice, Refusal> {
    if let Some(file) = listing.iter().find(|file| file.path == wanted) {
        let models = gguf_models(listing);
        let whole = models
            .iter()
            .find(|model| model.first().is_some_and(|first| first == file));
        return match whole {
            Some(model) => whole_split(model),
            None => Ok(Choice {
                files: vec![file.clone()],
                directory: false,
            }),
        };
    }
    let models = gguf_models(listing);
    let mut fitting: Vec<&Vec<RepoFile>> = models
        .iter()
        .filter(|model| {
            model
                .first()
                .is_some_and(|first| has_quant(&first.path, wanted))
        })
        .collect();
    match (fitting.pop(), fitting.is_empty()) {
        (Some(model), true) => whole_split(model),
        (Some(model), false) => {
            fitting.push(model);
            let choices = fitting
                .iter()
                .filter_map(|model| Some(model.first()?.path.clone()));
            Err(Refusal {
                why: format!("several files fit {wanted}"),
                choices: choices.collect(),
            })
        }
        (None, _) => Err(Refusal {
            why: format!("no file and no quantisation {wanted}"),
            choices: choices(listing, &models),
        }),
    }
}

fn choose_default(listing: &[RepoFile]) -> Result<Choice, Refusal> {
    let top = |ending: &'static str| {
        listing
            .iter()
            .filter(move |file| !file.path.contains('/') && ends(&file.path, ending))
    };
    let has_config = listing.iter().any(|file| file.path == "config.json");
    if has_config && top(".safetensors").next().is_some() {
        // Some repositories hold the same weights twice, the second time as `consolidated.*`.
        let named_model = top(".safetensors").any(|file| file.path.starts_with("model"));
        return Ok(directory(listing, |path| {
            ends(path, ".safetensors") && (!named_model || path.starts_with("model"))
        }));
    }
    let models = gguf_models(listing);
    match models.as_slice() {
        [] => {}
        [model] => return whole_split(model),
        _ => {
            if let Ok(choice) = choose_wanted(listing, PREFERRED_QUANT) {
                return Ok(choice);
            }
            return Err(Refusal {
                why: "it holds several models".into(),
                choices: choices(listing, &models),
            });
        }
    }
    if top(".bin").chain(top(".pth")).next().is_some() {
        return Ok(directory(listing, |path| {
            ends(path, ".pth") || ends(path, ".bin") || path == "pytorch_model.bin.index.json"
        }));
    }
    Err(Refusal {
        why: "it holds no model: no GGUF file, and no config.json with safetensors".into(),
        choices: Vec::new(),
    })
}

/// The top-level files that `weights` takes, and the small files beside them.
fn directory(listing: &[RepoFile], weights: impl Fn(&str) -> bool) -> Choice {
    let files = listing
        .iter()
        .filter(|file| !file.path.contains('/'))
        .filter(|file| SIDE_FILES.contains(&file.path.as_str()) || weights(&file.path))
        .cloned()
        .collect();
    Choice {
        files,
        directory: true,
    }
}

/// The GGUF models of a listing, each with all its shards in order. Vision projectors
/// (`mmproj`) are no models of their own.
fn gguf_models(listing: &[RepoFile]) -> Vec<Vec<RepoFile>> {
    let mut models: Vec<(String, Vec<RepoFile>)> = Vec::new();
    for file in listing.iter().filter(|file| ends(&file.path, ".gguf")) {
        let leaf = file.path.rsplit('/').next().unwrap_or(&file.path);
        if leaf.to_ascii_lowercase().contains("mmproj") {
            continue;
        }
        let stem = shard(&file.path).map_or(file.path.as_str(), |shard| shard.stem);
        match models.iter_mut().find(|(key, _)| key == stem) {
            Some((_, files)) => files.push(file.clone()),
            None => models.push((stem.to_owned(), vec![file.clone()])),
        }
    }
    models.into_iter().map(|(_, files)| files).collect()
}

/// A name of the form `<stem>-00001-of-00003.gguf`.
struct Shard<'a> {
    stem: &'a str,
    number: u32,
    count: u32,
}

fn shard(path: &str) -> Option<Shard<'_>> {
    let base = path.strip_suffix(".gguf")?;
    let (rest, count) = base.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().ok())
            .flatten()
    };
    Some(Shard {
        stem,
        number: digits(number)?,
        count: digits(count)?,
    })
}

/// A model whose shards are all there.
fn whole_split(model: &[RepoFile]) -> Result<Choice, Refusal> {
    let whole = match model.first().and_then(|first| shard(&first.path)) {
        None => model.len() == 1,
        Some(first) => {
            model.len() == first.count as usize
                && model.iter().enumerate().all(|(i, file)| {
                    shard(&file.path)
                        .is_some_and(|s| s.number as usize == i + 1 && s.count == first.count)
                })
        }
    };
    if whole {
        return Ok(Choice {
            files: model.to_vec(),
            directory: false,
        });
    }
    Err(Refusal {
        why: "some shards of this split model are missing".into(),
        choices: model.iter().map(|file| file.path.clone()).collect(),
    })
}

/// What a user could name: the models, and safetensors where there are no models.
fn choices(listing: &[RepoFile], models: &[Vec<RepoFile>]) -> Vec<String> {
    if models.is_empty() {
        let weights = |file: &&RepoFile| ends(&file.path, ".safetensors");
        return listing
            .iter()
            .filter(weights)
            .map(|file| file.path.clone())
            .collect();
    }
    models
        .iter()
        .filter_map(|model| Some(model.first()?.path.clone()))
        .collect()
}

/// Whether a file's name holds a quantisation as a word of its own: `Q4_K` is not in
/// `x-Q4_K_M.gguf`, nor `Q4_0` in `x-IQ4_0.gguf`. Case does not count.
fn has_quant(path: &str, quant: &str) -> bool {
    let leaf = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let leaf = leaf.strip_suffix(".gguf").unwrap_or(&leaf);
    let quant = quant.to_ascii_lowercase();
    !quant.is_empty()
        && leaf.match_indices(&quant).any(|(at, _)| {
            let before = leaf[..at].chars().next_back();
            let after = leaf[at + quant.len()..].chars().next();
            before.is_none_or(|c| !c.is_ascii_alphanumeric())
                && after.is_none_or(|c| matches!(c, '.' | '-'))
        })
}

fn ends(path: &str, ending: &str) -> bool {
    path.to_ascii_lowercase().ends_with(ending)
}
