//! Models split over several GGUF files.
//!
//! The parts are named `NAME-00001-of-000NN.gguf` and lie in one directory. Each part is a GGUF
//! file that says which part it is (`split.no`, from 0), of how many (`split.count`), and how
//! many tensors all parts have together (`split.tensors.count`). The first part has the model's
//! metadata; every part has its own tensors.

use std::path::{Path, PathBuf};

use super::{Gguf, Metadata, read};
use crate::{Blob, Error, Tensors};

/// What a part says of itself.
struct Part {
    no: u64,
    count: u64,
    tensors: u64,
}

/// Opens `path`, and if it is part of a split model, all the other parts.
pub(super) fn open(path: &Path) -> Result<Gguf, Error> {
    let mut gguf = read::parse(Blob::map(path)?)?;
    gguf.files.push(path.to_path_buf());
    match part(&gguf.metadata, path)? {
        Some(part) => join(gguf, path, &part),
        None => Ok(gguf),
    }
}

/// What the metadata says about the split; `None` for a model in one file.
fn part(metadata: &Metadata, path: &Path) -> Result<Option<Part>, Error> {
    let number = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(value) => value.u64().map(Some).ok_or_else(|| {
            Error::invalid(path, format!("`{key}` is {value:?}: a count is wanted"))
        }),
    };
    let wanted = |key: &str| {
        number(key)?.ok_or_else(|| {
            Error::invalid(
                path,
                format!("part of a split model without the key `{key}`"),
            )
        })
    };
    match number("split.count")? {
        None | Some(0 | 1) => Ok(None),
        Some(count) => Ok(Some(Part {
            no: wanted("split.no")?,
            count,
            tensors: wanted("split.tensors.count")?,
        })),
    }
}

/// Reads the other parts of the model to which `opened`, the file at `path`, belongs.
fn join(opened: Gguf, path: &Path, first: &Part) -> Result<Gguf, Error> {
    let name = path.file_name().and_then(|name| name.to_str());
    let Some((stem, no, count)) = name.and_then(split_name) else {
        let what = format!(
            "it is one of {} parts of a model, so its name must end in -00001-of-{:05}.gguf (with its own number)",
            first.count, first.count
        );
        return Err(Error::invalid(path, what));
    };
    if count != first.count || no.checked_sub(1) != Some(first.no) {
        let what = format!(
            "named part {no} of {count}, but it says that it is part {} of {}",
            first.no.saturating_add(1),
            first.count
        );
        return Err(Error::invalid(path, what));
    }
    let opened_no = first.no;
    let mut opened = Some(opened);
    let mut whole: Option<Gguf> = None;
    let mut list = Vec::new();
    for no in 0..count {
        let file = path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", no + 1));
        let gguf = match opened.take_if(|_| no == opened_no) {
            Some(gguf) => gguf,
            None => other_part(&file, path, no, first)?,
        };
        let (metadata, version) = (gguf.metadata, gguf.version);
        let whole = whole.get_or_insert_with(|| Gguf {
            version,
            metadata,
            tensors: Tensors::default(),
            files: Vec::new(),
        });
        read::check_quantization(&whole.metadata, &gguf.tensors, &file)?;
        list.extend(gguf.tensors.into_vec());
        whole.files.push(file);
    }
    finish(whole, list, path, first)
}

/// Opens part `no` at `file`, to which the part at `path` with `first` led.
fn other_part(file: &PathBuf, path: &Path, no: u64, first: &Part) -> Result<Gguf, Error> {
    if !file.exists() {
        let what = format!(
            "part {} of {} is missing (wanted by {})",
            no + 1,
            first.count,
            path.display()
        );
        return Err(Error::invalid(file, what));
    }
    let gguf = read::parse(Blob::map(file)?)?;
    match part(&gguf.metadata, file)? {
        Some(part) if (part.no, part.count, part.tensors) == (no, first.count, first.tensors) => {
            Ok(gguf)
        }
        Some(part) => {
            let what = format!(
                "it says part {} of {} with {} tensors in all, but {} calls for part {} of {} with {}",
                part.no.saturating_add(1),
                part.count,
                part.tensors,
                path.display(),
                no + 1,
                first.count,
                first.tensors
            );
            Err(Error::invalid(file, what))
        }
        None => Err(Error::invalid(file, "not a part of a split model")),
    }
}

/// Puts the tensors of all parts into the one model.
fn finish(
    whole: Option<Gguf>,
    list: Vec<crate::Tensor>,
    path: &Path,
    first: &Part,
) -> Result<Gguf, Error> {
    let Some(mut whole) = whole else {
        return Err(Error::invalid(path, "a split model of no parts"));
    };
    if list.len() as u64 != first.tensors {
        let what = format!(
            "split.tensors.count is {}, but all parts together have {} tensors",
            first.tensors,
            list.len()
        );
        return Err(Error::invalid(path, what));
    }
    whole.tensors = Tensors::build(list, path)?;
    whole.metadata.retain(|key| !key.starts_with("split."));
    Ok(whole)
}

/// Takes `NAME-00002-of-00003.gguf` apart into NAME, 2 and 3.
fn split_name(name: &str) -> Option<(&str, u64, u64)> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        let well_formed = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        well_formed.then(|| digits.parse().ok()).flatten()
    };
    Some((stem, number(no)?, number(count)?))
}

#[cfg(test)]
mod tests {
    use super::split_name;

    #[test]
    fn names_of_parts() {
        assert_eq!(
            split_name("m-q4-00002-of-00013.gguf"),
            Some(("m-q4", 2, 13))
        );
        for name in [
            "m.gguf",
            "m-2-of-3.gguf",
            "m-00001-of-00002.bin",
            "-of-",
            "m-+0001-of-00002.gguf",
        ] {
            assert_eq!(split_name(name), None, "{name}");
        }
    }
}
