//! The old binary form of importance matrices (`imatrix.dat`): for each weight matrix a name and one
//! number a column. The newer form is a GGUF.
//!
//! Layout, little-endian: i32 entries; each: i32 length, name, i32 calls, i32 values, f32 values; then
//! i32 chunks, i32 length, name of the text (the oldest files end before these). Source: llama.cpp's
//! `tools/imatrix/imatrix.cpp`.

use std::io::Write;
use std::path::Path;

use crate::bytes::Cursor;
use crate::create::NewFile;
use crate::{Blob, Error};

/// Most bytes of a name.
const MAX_NAME: usize = 4096;

/// A file in the old form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// One entry a weight matrix, in the order of the file.
    pub entries: Vec<Entry>,
    /// Chunks of text that were run through the model; 0 where the file does not say.
    pub chunks: u32,
    /// Name of the text; empty where the file does not say.
    pub dataset: String,
}

/// What a file says about one weight matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The tensor's name.
    pub name: String,
    /// How often it was multiplied: `values` are sums over so many calls.
    pub calls: u32,
    /// One value a column, expert after expert.
    pub values: Vec<f32>,
}

/// Reads the file at `path`.
///
/// # Errors
/// It cannot be read, or is not in this form.
pub fn read(path: impl AsRef<Path>) -> Result<Imatrix, Error> {
    parse(&Blob::map(path)?)
}

/// Reads the bytes of a file.
///
/// # Errors
/// They are not in this form.
pub fn parse(bytes: &Blob) -> Result<Imatrix, Error> {
    let mut c = Cursor::new(bytes, bytes.path());
    let at = c.at();
    let entries = c.u32("the number of entries")? as usize;
    // The shortest entry: an empty name, and no values.
    if entries == 0 || entries > c.left() / 12 {
        let what = format!("{entries} entries promised; {} bytes are left", c.left());
        return Err(c.wrong(at, what));
    }
    let mut found = Imatrix {
        entries: Vec::with_capacity(entries),
        ..Imatrix::default()
    };
    for i in 0..entries {
        found.entries.push(entry(&mut c, i)?);
    }
    if c.left() > 0 {
        found.chunks = c.u32("the number of chunks")?;
        found.dataset = name(&mut c, "the text's name")?;
    }
    if c.left() > 0 {
        return Err(c.wrong(c.at(), format!("{} bytes after the end", c.left())));
    }
    Ok(found)
}

fn entry(c: &mut Cursor<'_>, i: usize) -> Result<Entry, Error> {
    let name = name(c, &format!("the name of entry {i}"))?;
    let calls = c.u32(format_args!("the calls of `{name}`"))?;
    let at = c.at();
    let values = c.u32(format_args!("the number of values of `{name}`"))? as usize;
    if values == 0 || values > c.left() / 4 {
        let what = format!(
            "`{name}`: {values} values promised; {} bytes are left",
            c.left()
        );
        return Err(c.wrong(at, what));
    }
    let bytes = c.take(4 * values, format_args!("the values of `{name}`"))?;
    let (values, _) = bytes.as_chunks::<4>();
    Ok(Entry {
        calls,
        values: values.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        name,
    })
}

fn name(c: &mut Cursor<'_>, what: &str) -> Result<String, Error> {
    let at = c.at();
    let length = c.u32(format_args!("the length of {what}"))? as usize;
    if length > MAX_NAME {
        return Err(c.wrong(at, format!("{what} has {length} bytes; {MAX_NAME} at most")));
    }
    let at = c.at();
    let bytes = c.take(length, what)?;
    match std::str::from_utf8(bytes) {
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Err(c.wrong(at, format!("{what} is not valid UTF-8"))),
    }
}

/// Writes a file, which appears under its name when it is whole.
///
/// # Errors
/// The file cannot be written, or a count does not fit the format.
pub fn write(path: impl AsRef<Path>, matrix: &Imatrix) -> Result<(), Error> {
    let path = path.as_ref();
    let bytes = bytes(matrix).ok_or_else(|| Error::invalid(path, "a count above 2^31 - 1"))?;
    let mut file = NewFile::create(path)?;
    file.write_all(&bytes).map_err(|e| Error::io(path, e))?;
    file.commit()
}

fn bytes(matrix: &Imatrix) -> Option<Vec<u8>> {
    let count = |n: usize| i32::try_from(n).ok().map(i32::to_le_bytes);
    let mut out = count(matrix.entries.len())?.to_vec();
    for entry in &matrix.entries {
        out.extend(count(entry.name.len())?);
        out.extend(entry.name.as_bytes());
        out.extend(count(entry.calls as usize)?);
        out.extend(count(entry.values.len())?);
        out.extend(entry.values.iter().flat_map(|x| x.to_le_bytes()));
    }
    out.extend(count(matrix.chunks as usize)?);
    out.extend(count(matrix.dataset.len())?);
    out.extend(matrix.dataset.as_bytes());
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> Imatrix {
        let entry = |name: &str, values: &[f32]| Entry {
            name: name.to_owned(),
            calls: 3,
            values: values.to_vec(),
        };
        Imatrix {
            entries: vec![entry("a.weight", &[1.0, 2.5]), entry("b.weight", &[0.0])],
            chunks: 3,
            dataset: "text.txt".to_owned(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("imatrix.dat");
        write(&path, &matrix()).expect("written");
        assert_eq!(read(&path).expect("read"), matrix());
        // The oldest files end after the entries.
        let bytes = bytes(&matrix()).expect("small counts");
        let short = bytes[..bytes.len() - 16].to_vec();
        let short = parse(&Blob::from_vec(short)).expect("read");
        assert_eq!((short.chunks, short.entries), (0, matrix().entries));
    }

    #[test]
    fn every_cut_and_absurd_count_is_refused() {
        let whole = bytes(&matrix()).expect("small counts");
        for end in 0..whole.len() {
            let cut = parse(&Blob::from_vec(whole[..end].to_vec()));
            assert_eq!(cut.is_ok(), end == whole.len() - 16, "{end}");
        }
        for at in 0..whole.len() - 4 {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
            // Counts must be refused; names and values may be anything.
            let _ = parse(&Blob::from_vec(bytes));
        }
        for at in [0, 4, 20, 40] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
            assert!(parse(&Blob::from_vec(bytes)).is_err(), "{at}");
        }
        let mut longer = whole;
        longer.push(0);
        assert!(parse(&Blob::from_vec(longer)).is_err());
    }
}
