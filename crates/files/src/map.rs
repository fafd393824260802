//! The one mmap: bytes that are shared, cheap to cut and never copied.
//!
//! What it knows: how to map a file read-only, and how to hand out ranges of it. This module holds
//! the only `unsafe` of the room.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use crate::error::{Error, MEMORY};

/// A range of bytes of a mapped file, or of a vector. Cloning and slicing are cheap: all pieces
/// share one owner, and the map lives until the last piece is dropped.
///
/// # Files that change underneath
///
/// A file is mapped shared and read-only. Nothing here writes to it, but another process can: a
/// change then shows through, and a file that is cut short makes a later read of the lost pages
/// end the process (`SIGBUS` on Unix). No mapping can prevent that. Replace a model by writing a
/// new file and renaming it over the old one, as this room's own writers do: the old bytes then
/// stay as they are for everyone who has them mapped.
#[derive(Clone)]
pub struct Blob {
    owner: Arc<Owner>,
    start: usize,
    end: usize,
}

struct Owner {
    bytes: Bytes,
    path: Box<Path>,
}

enum Bytes {
    Map(Mmap),
    Vec(Vec<u8>),
    /// Blobs one after the other, put together when all of them are asked for as one slice.
    Joined(Box<[Blob]>, usize, OnceLock<Vec<u8>>),
}

impl Blob {
    /// Maps the whole file at `path` read-only. An empty file gives an empty blob.
    ///
    /// # Errors
    /// The path is missing, unreadable or not a regular file (a pipe or a device is refused before
    /// it is opened, so that this never blocks).
    pub fn map(path: impl AsRef<Path>) -> Result<Blob, Error> {
        let path = path.as_ref();
        let fail = |source| Error::io(path, source);
        let seen = std::fs::metadata(path).map_err(fail)?;
        if !seen.is_file() {
            let what = if seen.is_dir() {
                "a directory, not a file"
            } else {
                "not a regular file"
            };
            return Err(Error::invalid(path, what));
        }
        let file = File::open(path).map_err(fail)?;
        let bytes = if file.metadata().map_err(fail)?.len() == 0 {
            // A map of no bytes is an error on some systems.
            Bytes::Vec(Vec::new())
        } else {
            Bytes::Map(map_file(&file).map_err(fail)?)
        };
        Ok(Blob::whole(bytes, path))
    }

    /// Owns `bytes`. Errors about them speak of `<memory>`.
    pub fn from_vec(bytes: Vec<u8>) -> Blob {
        Blob::whole(Bytes::Vec(bytes), Path::new(MEMORY))
    }

    /// The bytes of `parts` one after the other. They are copied when they are first asked for as one
    /// slice; [`Blob::parts`] shows them without.
    pub fn join(parts: Vec<Blob>) -> Blob {
        let path = parts
            .first()
            .map_or(Path::new(MEMORY), Blob::path)
            .to_path_buf();
        let len = parts.iter().map(Blob::len).sum();
        Blob::whole(Bytes::Joined(parts.into(), len, OnceLock::new()), &path)
    }

    /// The parts of a blob that was joined and not cut since.
    pub fn parts(&self) -> Option<&[Blob]> {
        match &self.owner.bytes {
            Bytes::Joined(parts, len, _) if self.len() == *len => Some(parts),
            _ => None,
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn whole(bytes: Bytes, path: &Path) -> Blob {
        let owner = Owner {
            bytes,
            path: path.into(),
        };
        let end = owner.len();
        Blob {
            owner: Arc::new(owner),
            start: 0,
            end,
        }
    }

    /// The bytes `range` of this blob, sharing its owner; `None` if they do not lie inside it.
    pub fn slice(&self, range: Range<usize>) -> Option<Blob> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        Some(Blob {
            owner: Arc::clone(&self.owner),
            start: self.start + range.start,
            end: self.start + range.end,
        })
    }

    /// The file that the bytes come from; `<memory>` for bytes from a vector.
    pub fn path(&self) -> &Path {
        &self.owner.path
    }

    /// Whether the bytes are a view of a file, which takes no memory of its own.
    pub fn is_mapped(&self) -> bool {
        match &self.owner.bytes {
            Bytes::Map(_) => true,
            Bytes::Vec(_) => false,
            Bytes::Joined(parts, _, whole) => {
                whole.get().is_none() && parts.iter().all(Blob::is_mapped)
            }
        }
    }

    /// Tells the system that these bytes are not needed soon: pages of a map that lie wholly inside
    /// leave this process's memory. Reading them again brings them back from the file.
    pub fn release(&self) {
        if let Bytes::Map(map) = &self.owner.bytes {
            release_pages(map, self.start..self.end);
        }
    }

    /// Where the bytes begin, counted from the start of the file or vector that they come from.
    pub fn offset(&self) -> usize {
        self.start
    }
}

impl Owner {
    fn len(&self) -> usize {
        match &self.bytes {
            Bytes::Map(map) => map.len(),
            Bytes::Vec(vec) => vec.len(),
            Bytes::Joined(_, len, _) => *len,
        }
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner.bytes {
            Bytes::Map(map) => map,
            Bytes::Vec(vec) => vec,
            Bytes::Joined(parts, _, whole) => whole.get_or_init(|| {
                let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
                parts.concat()
            }),
        };
        &all[self.start..self.end]
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Blob {
        Blob::from_vec(bytes)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path().display();
        write!(f, "Blob({path}, bytes {}..{})", self.start, self.end)
    }
}

#[expect(
    unsafe_code,
    reason = "mapping a file is the one thing here that the compiler cannot check"
)]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and lives as long as the `Mmap`, which `Blob` keeps behind an
    // `Arc`, so no slice outlives it. What remains is the condition that no one changes the file
    // while it is mapped. That is not ours to enforce; the documentation of `Blob` states it, our
    // own writers keep it (they rename a new file into place and never write into an old one),
    // and all bytes are parsed as hostile: numbers are copied out before they are checked and
    // used, and every slice is bounds-checked against the length at the time of mapping.
    unsafe { Mmap::map(file) }
}

#[cfg(unix)]
#[expect(
    unsafe_code,
    reason = "advice that drops pages is marked so in memmap2"
)]
fn release_pages(map: &Mmap, range: Range<usize>) {
    // Larger than any page of today's machines; the ends stay.
    const PAGE: usize = 1 << 16;
    let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
    if start < end {
        // SAFETY: the map is shared, read-only and of a file, so that a dropped page is read again
        // with the same bytes at the next touch; nothing was ever written to it.
        let advised = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
        };
        // It is only advice.
        let _ = advised;
    }
}

#[cfg(not(unix))]
fn release_pages(_: &Mmap, _: Range<usize>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stay_inside() {
        let blob = Blob::from_vec(vec![1, 2, 3, 4]);
        let middle = blob.slice(1..3).expect("inside");
        assert_eq!((&*middle, middle.offset()), (&[2u8, 3][..], 1));
        assert_eq!(&*middle.slice(1..2).expect("inside"), &[3]);
        assert!(middle.slice(0..3).is_none(), "past its own end");
        #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
        let reversed = blob.slice(3..1);
        assert!(reversed.is_none());
        assert_eq!(blob.slice(4..4).expect("empty at the end").len(), 0);
    }

    #[test]
    fn joined_blobs_are_copied_when_they_are_read_as_one() {
        let whole = Blob::from_vec((0..6).collect());
        let cut = |range| whole.slice(range).expect("inside");
        let joined = Blob::join(vec![cut(3..5), cut(0..0), cut(1..3)]);
        assert_eq!((joined.len(), joined.parts().map(<[_]>::len)), (4, Some(3)));
        let middle = joined.slice(1..3).expect("inside");
        assert!(middle.parts().is_none());
        assert_eq!((&*middle, &*joined), (&[4u8, 1][..], &[3u8, 4, 1, 2][..]));
        assert!(Blob::join(Vec::new()).is_empty());

        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("bytes");
        std::fs::write(&path, b"hello").expect("write");
        let map = Blob::map(&path).expect("map");
        let twice = Blob::join(vec![map.clone(), map]);
        assert!(twice.is_mapped() && twice.len() == 10 && twice.path() == path);
        assert_eq!(&*twice, b"hellohello");
        assert!(!twice.is_mapped(), "it was read as one");
    }

    #[test]
    fn maps_files_also_empty_ones_and_refuses_the_rest() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("bytes");
        std::fs::write(&path, b"hello").expect("write");
        let blob = Blob::map(&path).expect("map");
        std::fs::remove_file(&path).expect("remove");
        blob.release();
        assert_eq!(&*blob, b"hello", "the map outlives the name");
        std::fs::write(&path, b"").expect("write");
        assert!(Blob::map(&path).expect("map").is_empty());
        assert!(Blob::map(dir.path()).is_err(), "a directory");
        assert!(Blob::map(dir.path().join("none")).is_err(), "missing");
    }
}
