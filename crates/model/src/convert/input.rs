//! A model in its own layout, and the same in the terms of GGUF and of Hugging Face.

use std::path::{Path, PathBuf};

use files::gguf::{Gguf, Metadata, Value};
use files::hf::HfDir;
use files::llama2c::{self, Llama2c};
use files::meta::MetaDir;
use files::{Blob, Dtype, Kind, Tensor, Tensors, safetensors};
use kernels::Type;
use serde_json::Value as Json;

use super::{config_dtype, config_json, divisors, metadata, only_llama, pieces};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::expected;
use crate::lora::Lora;
use crate::names::{GGUF, META, Names};
use crate::quantize::{Step, store, stored};
use crate::repack;
use crate::source::{Piece, Source};

/// A model in its own layout.
#[derive(Debug)]
pub enum Input {
    /// A GGUF.
    Gguf(Box<Gguf>),
    /// A Hugging Face directory.
    Hf(Box<HfDir>),
    /// A directory of Meta's.
    Meta(Box<MetaDir>),
    /// A checkpoint of llama2.c, and where it lies.
    Llama2c(PathBuf, Box<Llama2c>),
}

/// An adapter to merge, with its scale.
pub(super) type Merged = (Lora, f32);

impl Input {
    /// Opens a file or directory, told apart by content.
    ///
    /// # Errors
    /// It cannot be read, or is no model.
    pub fn open(path: &Path) -> Result<Input> {
        Input::open_on(path, 1)
    }

    /// The same, matrices that are quantised in a way of their own (see `repack`) brought into
    /// Puna's types by so many threads: they are put together in memory ([`crate::bytes_to_open`]).
    ///
    /// # Errors
    /// It cannot be read, or is no model.
    pub fn open_on(path: &Path, threads: usize) -> Result<Input> {
        match files::detect(path)? {
            Kind::Gguf => Ok(Input::Gguf(Box::new(Gguf::open(path)?))),
            Kind::HfDir => {
                let mut dir = HfDir::open(path)?;
                plain(&mut dir, threads)?;
                Ok(Input::Hf(Box::new(dir)))
            }
            Kind::MetaDir => Ok(Input::Meta(Box::new(MetaDir::open(path)?))),
            Kind::Llama2c => {
                let mut file = llama2c::open(path)?;
                file.tensors = repack::from_llama2c(file.config.group, &file.tensors, threads)?;
                Ok(Input::Llama2c(path.to_owned(), Box::new(file)))
            }
            kind => Err(Error::Open {
                path: path.display().to_string(),
                what: format!(
                    "is {}; GGUF files, llama2.c checkpoints, and the directories of Hugging Face \
                     and Meta are converted",
                    kind.describe()
                ),
            }),
        }
    }

    /// What the model is.
    ///
    /// # Errors
    /// It is not one that is computed.
    pub fn config(&self) -> Result<Config> {
        match self {
            Input::Gguf(gguf) => Config::from_gguf(gguf),
            Input::Hf(dir) => Config::from_hf(&dir.config),
            Input::Meta(dir) => Config::from_meta(&dir.params, &dir.tensors),
            Input::Llama2c(_, file) => Config::from_llama2c(&file.config),
        }
    }

    /// Its tensors under the names that it has, and these names.
    fn tensors(&self, config: &Config) -> (&Tensors, &'static Names) {
        match self {
            Input::Gguf(gguf) => (&gguf.tensors, &GGUF),
            Input::Hf(dir) => (&dir.tensors, Names::of_hf(config)),
            Input::Meta(dir) => (&dir.tensors, &META),
            Input::Llama2c(_, file) => (&file.tensors, &META),
        }
    }

    /// Refuses tensors whose shapes are not those that the configuration calls for.
    fn check(&self, config: &Config) -> Result<()> {
        let (tensors, names) = self.tensors(config);
        expected::check(config, names, tensors)
    }

    /// The model as a GGUF holds it, adapters merged. It comes without its tokenizer's keys, unless it
    /// was a GGUF.
    ///
    /// # Errors
    /// Not a Llama model, one with something that GGUF cannot say, or an adapter that does not fit.
    pub fn gguf(&self, adapters: Vec<Merged>) -> Result<Source> {
        let mut source = match self {
            Input::Gguf(gguf) => Source::from_gguf(gguf),
            other => other.new_gguf()?,
        };
        if !adapters.is_empty() {
            source.merge(adapters, &self.config()?, &GGUF)?;
        }
        Ok(source)
    }

    fn new_gguf(&self) -> Result<Source> {
        let config = self.config()?;
        self.check(&config)?;
        let name = match self {
            Input::Gguf(_) => None,
            Input::Hf(dir) => dir.path.file_name(),
            Input::Meta(dir) => dir.path.file_name(),
            Input::Llama2c(path, _) => path.file_stem(),
        };
        let name = name.map(|n| n.to_string_lossy()).unwrap_or_default();
        let mut metadata = metadata(&config)?;
        metadata.set("general.name", Value::String(name.into()));
        let mut found = Vec::new();
        if let Some(divisors) = divisors(&config.rope) {
            let shape = vec![divisors.len()];
            let bytes = divisors.iter().flat_map(|d| d.to_le_bytes()).collect();
            let blob = Blob::from_vec(bytes);
            found.push(Piece::same(Tensor::new(
                "rope_freqs.weight",
                Dtype::F32,
                shape,
                blob,
            )?));
        }
        let (tensors, names) = self.tensors(&config);
        found.extend(pieces(tensors, &config, names, &GGUF)?);
        let size = |d: Dtype| -> u64 {
            let of = found.iter().filter(|p: &&Piece| p.dtype() == d);
            of.map(Piece::bytes_now).sum()
        };
        // What most values are, as llama.cpp counts its types of files.
        let kinds = [
            (Dtype::F32, 0),
            (Dtype::F16, 1),
            (Dtype::Q4_0, 2),
            (Dtype::Q8_0, 7),
            (Dtype::Q5_0, 8),
            (Dtype::BF16, 32),
        ];
        let kind = kinds.into_iter().max_by_key(|k| size(k.0));
        let kind = kind.map_or(0, |k| k.1);
        metadata.set("general.file_type", Value::U32(kind));
        metadata.set("general.quantization_version", Value::U32(2));
        Ok(Source {
            metadata,
            tensors: found,
        })
    }

    /// The model as a Hugging Face directory holds it, adapters merged: config.json, and the tensors,
    /// all as `ty` or else as they are. Quantised ones of a GGUF become f16, those of a directory,
    /// which became so when it was opened, f32: that holds each number.
    ///
    /// # Errors
    /// Not a Llama model, one with something that config.json cannot say, or an adapter that does not
    /// fit.
    pub fn hf(&self, ty: Option<Type>, adapters: Vec<Merged>) -> Result<(Json, Source, Vec<Step>)> {
        let (mut json, tensors) = match self {
            Input::Hf(dir) => {
                let tensors = dir.tensors.iter().cloned().map(Piece::same).collect();
                (dir.config.clone(), tensors)
            }
            other => {
                let config = other.config()?;
                only_llama(&config)?;
                other.check(&config)?;
                let (tensors, names) = other.tensors(&config);
                let tensors = pieces(tensors, &config, names, Names::of_hf(&config))?;
                (config_json(&config, Dtype::F32)?, tensors)
            }
        };
        let mut source = Source {
            metadata: Metadata::new(),
            tensors,
        };
        if !adapters.is_empty() {
            let config = self.config()?;
            source.merge(adapters, &config, Names::of_hf(&config))?;
        }
        let plain = |d: Dtype| matches!(d, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        let to = |d: Dtype| match ty {
            Some(ty) if plain(d) || d.is_quantized() => stored(ty),
            None if d.is_quantized() && matches!(self, Input::Hf(_)) => Dtype::F32,
            None if d.is_quantized() => Dtype::F16,
            _ => d,
        };
        let steps: Vec<Step> = source
            .tensors
            .iter()
            .map(|p| moved(p, to(p.dtype())))
            .collect();
        // What most values are.
        let size = |d: Dtype| -> u64 {
            steps
                .iter()
                .filter(|s| s.info.dtype == d)
                .map(|s| s.bytes.1)
                .sum()
        };
        let main = [Dtype::F32, Dtype::F16, Dtype::BF16]
            .into_iter()
            .max_by_key(|d| size(*d));
        let torch = config_dtype(main.unwrap_or(Dtype::F32));
        for key in ["torch_dtype", "dtype"] {
            if json.get(key).is_some() {
                json[key] = torch.into();
            }
        }
        Ok((json, source, steps))
    }
}

/// The matrices of a directory as numbers that any reader of such directories takes, where they are
/// quantised in a way of their own; its configuration then says nothing of it any more.
fn plain(dir: &mut HfDir, threads: usize) -> Result<()> {
    if !repack::is_packed(&dir.config, &dir.tensors) {
        return Ok(());
    }
    let config = Config::from_hf(&dir.config)?;
    repack::check(&dir.config, &config, Names::of_hf(&config), &dir.tensors)?;
    dir.tensors = repack::from_hf(&dir.config, &dir.tensors, threads)?;
    for outer in [None, Some("text_config")] {
        let part = match outer {
            None => Some(&mut dir.config),
            Some(key) => dir.config.get_mut(key),
        };
        if let Some(keys) = part.and_then(Json::as_object_mut) {
            keys.remove("quantization_config");
        }
    }
    Ok(())
}

/// One tensor in another type.
fn moved(piece: &Piece, to: Dtype) -> Step {
    let mut info = piece.info();
    info.dtype = to;
    Step {
        from: piece.dtype(),
        bytes: (piece.bytes_now(), info.bytes().unwrap_or_default() as u64),
        weighted: false,
        instead_of: None,
        deviation: None,
        info,
    }
}

/// Writes the tensors of a Hugging Face directory to `out`; see `quantize::write`.
///
/// # Errors
/// A file cannot be read or written, or a tensor holds values that the new type cannot.
pub fn write_safetensors(
    source: &Source,
    steps: &[Step],
    out: &Path,
    threads: usize,
    on_step: &mut dyn FnMut(&Step) -> bool,
) -> Result<Option<Vec<Step>>> {
    let infos = steps.iter().map(|s| s.info.clone()).collect();
    let mut writer = safetensors::FileWriter::create(out, infos)?;
    let mut done = steps.to_vec();
    while let Some(info) = writer.coming() {
        let at = steps.iter().position(|s| s.info.name == info.name);
        let Some(at) = at else { break };
        let mut to = |bytes: &[u8]| Ok(writer.part(bytes)?);
        store(&source.tensors[at], &mut done[at], None, threads, &mut to)?;
        source.tensors[at].tensor.data.release();
        if !on_step(&done[at]) {
            return Ok(None);
        }
    }
    writer.finish()?;
    Ok(Some(done))
}
