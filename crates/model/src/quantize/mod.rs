//! From one file to a smaller one: a plan (which tensor gets which type), and its execution, rows by
//! rows, on all cores, with the error of each tensor.
//!
//! Memory holds a few megabytes a thread, whatever the size of the file.

mod collect;
mod imatrix;
mod mixes;

pub use collect::Collector;
pub use imatrix::Imatrix;
pub use mixes::{Recipe, recipes};

use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;

use files::gguf::{FileWriter, Metadata, Value};
use files::{Dtype, TensorInfo};
use kernels::{Deviation, Type};
use mixes::Facts;

use crate::error::{Error, Result};
use crate::source::{Piece, Source};

/// Values that a thread takes at once.
const CHUNK: usize = 1 << 20;

/// What is wanted of the new file.
pub struct Wanted<'a> {
    /// The kind of file; `None`: every tensor stays as it is.
    pub recipe: Option<Recipe>,
    /// How much each column matters, and the name of its file.
    pub imatrix: Option<(&'a Imatrix, &'a str)>,
    /// A type for tensors by name; beats the recipe's rules.
    pub special: &'a dyn Fn(&str) -> Option<Type>,
    /// The recipe's base type for everything.
    pub pure: bool,
    /// A type for the head; beats everything.
    pub head: Option<Type>,
    /// A type for the embedding table; beats everything.
    pub embedding: Option<Type>,
    /// The head stays as it is.
    pub leave_head: bool,
    /// Quantise tensors that are quantised already.
    pub requantize: bool,
}

/// What becomes of one tensor.
#[derive(Debug, Clone)]
pub struct Step {
    /// The tensor as it will be.
    pub info: TensorInfo,
    /// Its type now.
    pub from: Dtype,
    /// Bytes now and then.
    pub bytes: (u64, u64),
    /// Whether an importance matrix speaks of it.
    pub weighted: bool,
    /// The type that was wanted, where the shape did not allow it.
    pub instead_of: Option<Type>,
    /// How far the new values are from the old ones, once it is written; nothing for what was only
    /// copied.
    pub deviation: Option<Deviation>,
}

/// What becomes of a model.
#[derive(Debug, Clone)]
pub struct Plan {
    /// One step a tensor, in the order of the file.
    pub steps: Vec<Step>,
    metadata: Metadata,
}

impl Plan {
    /// Bytes of all tensors, now and then.
    pub fn bytes(&self) -> (u64, u64) {
        let sum = |of: fn(&Step) -> u64| self.steps.iter().map(of).sum();
        (sum(|s| s.bytes.0), sum(|s| s.bytes.1))
    }

    /// Bits for each weight of the new file.
    pub fn bits_per_weight(&self) -> f64 {
        let count = |s: &Step| s.info.shape.iter().map(|n| *n as u64).product::<u64>();
        let all: u64 = self.steps.iter().map(count).sum();
        self.bytes().1 as f64 * 8.0 / all.max(1) as f64
    }
}

/// Decides what becomes of each tensor.
///
/// # Errors
/// A tensor is quantised already and that was not allowed, needs an importance matrix that there is
/// not, or has a type that cannot be computed with.
pub fn plan(source: &Source, wanted: &Wanted<'_>) -> Result<Plan> {
    let facts = facts(source, wanted);
    let steps: Result<Vec<Step>> = source
        .tensors
        .iter()
        .map(|piece| step(piece, &facts, wanted))
        .collect();
    let mut metadata = source.metadata.clone();
    if let Some(recipe) = wanted.recipe {
        metadata.set("general.file_type", Value::U32(recipe.file_type));
        metadata.set("general.quantization_version", Value::U32(2));
    }
    if let Some((imatrix, file)) = wanted.imatrix {
        for (key, value) in imatrix.notes(file) {
            metadata.set(key, value);
        }
    }
    Ok(Plan {
        steps: steps?,
        metadata,
    })
}

fn facts(source: &Source, wanted: &Wanted<'_>) -> Facts {
    let m = &source.metadata;
    let arch = m.str("general.architecture").unwrap_or_default();
    let count = |key: &str| -> Option<usize> {
        let key = format!("{arch}.{key}");
        let first = m.ints(&key).and_then(|all| all.first().copied());
        let found = m.u64(&key).or(first.and_then(|n| u64::try_from(n).ok()));
        found.and_then(|n| usize::try_from(n).ok())
    };
    let layers = count("block_count").unwrap_or(0);
    let heads = count("attention.head_count").unwrap_or(1);
    let kv_heads = count("attention.head_count_kv").unwrap_or(heads).max(1);
    Facts {
        layers,
        gqa: heads / kv_heads,
        experts: count("expert_count").unwrap_or(0),
        tied: !source.has("output.weight"),
        imatrix: wanted.imatrix.is_some(),
        seventy: layers == 80 && heads != kv_heads,
    }
}

/// The type of a file's tensor for the kernels.
fn computed(dtype: Dtype) -> Option<Type> {
    Type::ALL.iter().copied().find(|t| t.name() == dtype.name())
}

/// The name of a storage type in files.
pub(crate) fn stored(ty: Type) -> Dtype {
    let found = Dtype::all().find(|d| d.name() == ty.name());
    // A test holds that every type has one.
    found.unwrap_or(Dtype::F32)
}

fn step(piece: &Piece, facts: &Facts, wanted: &Wanted<'_>) -> Result<Step> {
    let mut info = piece.info();
    let from = piece.dtype();
    let (target, instead_of) = match target(&info, facts, wanted) {
        None => (from, None),
        Some(ty) => {
            let fits = mixes::fallback(ty, piece.cols());
            (stored(fits), (fits != ty).then_some(ty))
        }
    };
    info.dtype = target;
    let wrong = |what: String| Error::Tensor {
        name: info.name.clone(),
        what,
    };
    let (mut weighted, bytes) = (false, info.bytes());
    if target != from {
        if computed(from).is_none() {
            return Err(wrong(format!("cannot be converted from {from}")));
        }
        if from.is_quantized() && !wanted.requantize {
            return Err(Error::Requantize {
                name: info.name,
                from: from.name(),
            });
        }
        let ty = computed(target).ok_or_else(|| wrong(format!("cannot become {target}")))?;
        weighted = importance(piece, wanted)?.is_some();
        if let Some(recipe) = wanted.recipe
            && !weighted
            && mixes::needs_imatrix(recipe, &info.name, ty)
        {
            return Err(Error::NeedsImatrix {
                name: info.name,
                ty,
            });
        }
    }
    let bytes = bytes.ok_or_else(|| wrong(format!("{:?} has no size in {target}", info.shape)))?;
    Ok(Step {
        from,
        bytes: (piece.bytes_now(), bytes as u64),
        weighted,
        instead_of,
        deviation: None,
        info,
    })
}

/// The type wanted for a tensor; `None`: it stays as it is.
fn target(info: &TensorInfo, facts: &Facts, wanted: &Wanted<'_>) -> Option<Type> {
    let (name, shape) = (info.name.as_str(), &info.shape[..]);
    // Whoever adds or multiplies vectors wants them in f32, and a router decides by small differences.
    let precise = shape.len() < 2 || name.ends_with("ffn_gate_inp.weight");
    if precise && matches!(info.dtype, Dtype::F16 | Dtype::BF16) {
        return Some(Type::F32);
    }
    let recipe = wanted.recipe?;
    let head = name == "output.weight";
    if mixes::kept(name, shape.len()) || head && wanted.leave_head {
        return None;
    }
    let ends = match name {
        "output.weight" => wanted.head,
        "token_embd.weight" => wanted.embedding.or(wanted.head.filter(|_| facts.tied)),
        _ => None,
    };
    let by_rule = || match wanted.pure {
        true => recipe.base,
        false => mixes::target(recipe, facts, name, shape),
    };
    Some(
        ends.or_else(|| (wanted.special)(name))
            .unwrap_or_else(by_rule),
    )
}

/// The importance of a tensor's columns, expert after expert.
fn importance<'a>(piece: &Piece, wanted: &Wanted<'a>) -> Result<Option<&'a [f32]>> {
    let Some((imatrix, _)) = wanted.imatrix else {
        return Ok(None);
    };
    let experts = match piece.tensor.shape[..] {
        [experts, _, _] => experts,
        _ => 1,
    };
    imatrix.of(&piece.tensor.name, piece.cols(), experts)
}

/// Writes the new file, a GGUF, on `threads` threads. `on_step` is told of each tensor when it is
/// written, and ends it all by `false`: then there is no new file, and the answer is `None`.
///
/// # Errors
/// A file cannot be read or written, or a tensor holds values that the new type cannot.
pub fn write(
    source: &Source,
    plan: &Plan,
    wanted: &Wanted<'_>,
    out: &Path,
    threads: usize,
    on_step: &mut dyn FnMut(&Step) -> bool,
) -> Result<Option<Plan>> {
    let infos = plan.steps.iter().map(|s| s.info.clone()).collect();
    let mut writer = FileWriter::create(out, &plan.metadata, infos)?;
    let mut done = plan.clone();
    for (piece, step) in source.tensors.iter().zip(&mut done.steps) {
        let mut to = |bytes: &[u8]| Ok(writer.part(bytes)?);
        store(piece, step, importance(piece, wanted)?, threads, &mut to)?;
        piece.tensor.data.release();
        if !on_step(step) {
            return Ok(None);
        }
    }
    writer.finish()?;
    Ok(Some(done))
}

/// Hands the bytes of one tensor over, in order, and notes how far its values moved.
pub(crate) fn store(
    piece: &Piece,
    step: &mut Step,
    importance: Option<&[f32]>,
    threads: usize,
    to: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let changes = step.from != step.info.dtype || !piece.merges.is_empty();
    let (from, ty) = (computed(step.from), computed(step.info.dtype));
    let (Some(from), Some(ty), true) = (from, ty, changes) else {
        if !piece.merges.is_empty() {
            return Err(Error::Tensor {
                name: step.info.name.clone(),
                what: format!("no adapter can be merged into {}", step.from),
            });
        }
        for rows in chunks(piece, 1) {
            to(&piece.bytes(rows.clone()))?;
            piece.release(rows);
        }
        return Ok(());
    };
    let cols = piece.cols();
    // Rows that share an importance lie in one matrix.
    let experts = importance.map_or(1, |w| w.len() / cols.max(1)).max(1);
    let matrix = piece.rows() / experts;
    let work = |rows: Range<usize>| {
        let weights = importance.map(|w| &w[rows.start / matrix * cols..][..cols]);
        let mut values = vec![0.0; rows.len() * cols];
        piece.values(from, rows.clone(), &mut values)?;
        piece.merge(rows, &mut values);
        let mut bytes = vec![0; ty.row_bytes(values.len()).unwrap_or_default()];
        let found = kernels::quantize(ty, cols, &values, weights, &mut bytes)?;
        Ok::<_, kernels::Error>((bytes, found))
    };
    let mut sum = Deviation::default();
    let mut take = |rows: &Range<usize>, (bytes, found): (Vec<u8>, Deviation)| {
        sum.add(&found);
        piece.release(rows.clone());
        to(&bytes)
    };
    in_order(&chunks(piece, experts), threads, work, &mut take)?;
    if !sum.error.is_finite() {
        return Err(Error::Tensor {
            name: step.info.name.clone(),
            what: format!("holds values that {ty} cannot (not finite, or too large)"),
        });
    }
    step.deviation = Some(sum);
    Ok(())
}

/// The rows of a tensor in pieces that a thread takes at once; each lies in one of `parts` equal parts,
/// and in one matrix where it takes several rows to read one.
fn chunks(piece: &Piece, parts: usize) -> Vec<Range<usize>> {
    let parts = match piece.grain() {
        1 => parts,
        _ => piece.rows() / piece.matrix_rows(),
    };
    let at_once = (CHUNK / piece.cols().max(1)).max(1);
    let (rows, at_once) = (
        piece.rows() / parts.max(1),
        at_once.next_multiple_of(piece.grain()),
    );
    let part = |p: usize| {
        let end = (p + 1) * rows;
        let starts = (p * rows..end).step_by(at_once);
        starts.map(move |r| r..end.min(r + at_once))
    };
    (0..parts).flat_map(part).collect()
}

/// Works on all of `list` on so many threads, and has the results taken one after the other, in order,
/// while the threads go on. Each thread is at most two results ahead, so that memory stays bounded.
fn in_order<T: Clone + Sync, R: Send>(
    list: &[T],
    threads: usize,
    work: impl Fn(T) -> std::result::Result<R, kernels::Error> + Sync,
    take: &mut dyn FnMut(&T, R) -> Result<()>,
) -> Result<()> {
    let threads = threads.clamp(1, list.len().max(1));
    std::thread::scope(|scope| {
        let start = |first: usize| {
            let (send, receive) = mpsc::sync_channel(1);
            let (work, own) = (&work, list.iter().skip(first).step_by(threads));
            scope.spawn(move || {
                for one in own {
                    // Nobody listens when another thread's work has failed.
                    if send.send(work(one.clone())).is_err() {
                        break;
                    }
                }
            });
            receive
        };
        let results: Vec<mpsc::Receiver<_>> = (0..threads).map(start).collect();
        for (one, results) in list.iter().zip(results.iter().cycle()) {
            // Silence is a panic, which the end of the scope passes on.
            let Ok(result) = results.recv() else { break };
            take(one, result?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_name_in_files() {
        for ty in Type::ALL {
            assert_eq!(computed(stored(*ty)), Some(*ty));
            assert_eq!(stored(*ty).row_bytes(1024), ty.row_bytes(1024));
        }
    }
}
