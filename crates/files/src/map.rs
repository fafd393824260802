//! The one mmap: bytes that are shared, cheap to cut and never copied.
//!
//! What it knows: how to map a file read-only, and how to hand out ranges of it. This module holds
//! the only `unsafe` of the room.

use std::borrow::Cow;
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
    Joined(Joined),
}

/// Blobs that are put together when all of them are asked for as one slice.
struct Joined {
    parts: Box<[Blob]>,
    /// So many bytes of each part in turn; `None`: one part after the other.
    step: Option<usize>,
    len: usize,
    whole: OnceLock<Vec<u8>>,
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
        Blob::joined(parts, None)
    }

    /// `step` bytes of each part in turn: matrices beside each other, whose rows have so many bytes.
    /// They are copied as those of [`Blob::join`] are. `None` if the parts do not consist of as many
    /// whole steps each.
    pub fn weave(parts: Vec<Blob>, step: usize) -> Option<Blob> {
        let len = parts.first()?.len();
        let even = step > 0 && len.is_multiple_of(step) && parts.iter().all(|p| p.len() == len);
        even.then(|| Blob::joined(parts, Some(step)))
    }

    fn joined(parts: Vec<Blob>, step: Option<usize>) -> Blob {
        let path = parts
            .first()
            .map_or(Path::new(MEMORY), Blob::path)
            .to_path_buf();
        let joined = Joined {
            len: parts.iter().map(Blob::len).sum(),
            parts: parts.into(),
            step,
            whole: OnceLock::new(),
        };
        Blob::whole(Bytes::Joined(joined), &path)
    }

    /// The parts of a blob that was joined and not cut since.
    pub fn parts(&self) -> Option<&[Blob]> {
        match &self.owner.bytes {
            Bytes::Joined(j) if self.len() == j.len && j.step.is_none() => Some(&j.parts),
            _ => None,
        }
    }

    /// The bytes `range`, borrowed where they lie in one piece. Unlike a slice of the whole, it puts no
    /// more of a joined blob together than is asked for.
    ///
    /// # Panics
    /// As slicing does, if they do not lie inside this blob.
    pub fn read(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        let joined = match &self.owner.bytes {
            Bytes::Joined(joined) if joined.whole.get().is_none() => joined,
            _ => return Cow::Borrowed(&self[range]),
        };
        assert!(range.start <= range.end && range.end <= self.len());
        let mut pieces = joined.pieces(self.start + range.start..self.start + range.end);
        let first = pieces.next().map(|(part, range)| part.read(range));
        pieces.fold(first.unwrap_or_default(), |mut all, (part, range)| {
            all.to_mut().extend_from_slice(&part.read(range));
            all
        })
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
            Bytes::Joined(j) => j.whole.get().is_none() && j.parts.iter().all(Blob::is_mapped),
        }
    }

    /// Tells the system that these bytes are not needed soon: pages of a map that lie wholly inside
    /// leave this process's memory. Reading them again brings them back from the file.
    pub fn release(&self) {
        match &self.owner.bytes {
            Bytes::Map(map) => release_pages(map, self.start..self.end),
            Bytes::Vec(_) => {}
            Bytes::Joined(joined) => joined.release(self.start..self.end),
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
            Bytes::Joined(joined) => joined.len,
        }
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner.bytes {
            Bytes::Map(map) => map,
            Bytes::Vec(vec) => vec,
            Bytes::Joined(joined) => joined.whole.get_or_init(|| {
                let pieces = joined.pieces(0..joined.len);
                pieces.fold(Vec::with_capacity(joined.len), |mut all, (part, range)| {
                    all.extend_from_slice(&part.read(range));
                    all
                })
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

impl Joined {
    /// What lies in a range of the whole, in order: a part, and which of its bytes.
    fn pieces(&self, range: Range<usize>) -> Box<dyn Iterator<Item = (&Blob, Range<usize>)> + '_> {
        let all = range.clone();
        let cut = move |part, first: usize, whole: Range<usize>| {
            let (start, end) = (all.start.max(whole.start), all.end.min(whole.end));
            (start < end).then(|| (part, first + start - whole.start..first + end - whole.start))
        };
        let Some(step) = self.step else {
            let mut end = 0;
            return Box::new(self.parts.iter().filter_map(move |part| {
                let start = end;
                end += part.len();
                cut(part, 0, start..end)
            }));
        };
        let n = self.parts.len();
        let steps = range.start / step..range.end.div_ceil(step);
        Box::new(
            steps.filter_map(move |i| {
                cut(&self.parts[i % n], i / n * step, i * step..(i + 1) * step)
            }),
        )
    }

    fn release(&self, range: Range<usize>) {
        if self.step.is_none() {
            for (part, range) in self.pieces(range) {
                part.slice(range).iter().for_each(Blob::release);
            }
            return;
        }
        // Of each part the same rows.
        let n = self.parts.len().max(1);
        for part in &self.parts {
            part.slice(range.start / n..range.end / n)
                .iter()
                .for_each(Blob::release);
        }
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
        for (range, want) in [(0..4, "hell"), (3..7, "lohe"), (5..10, "hello"), (6..6, "")] {
            assert_eq!(*twice.read(range), *want.as_bytes());
        }
        let inner = twice.slice(2..8).expect("inside");
        assert_eq!(*inner.read(1..6), *b"lohel");
        inner.release();
        assert!(twice.is_mapped() && twice.len() == 10 && twice.path() == path);
        assert_eq!(&*twice, b"hellohello");
        assert!(!twice.is_mapped(), "it was read as one");

        let woven = Blob::weave(vec![cut(0..4), cut(2..6)], 2).expect("even");
        assert!(woven.parts().is_none());
        for (range, want) in [
            (0..8, &[0u8, 1, 2, 3, 2, 3, 4, 5][..]),
            (1..5, &[1, 2, 3, 2]),
            (3..3, &[]),
        ] {
            assert_eq!(*woven.read(range), *want);
        }
        woven.slice(1..7).expect("inside").release();
        assert_eq!(&woven[2..7], &[2u8, 3, 2, 3, 4]);
        assert!(
            Blob::weave(vec![cut(0..4), cut(2..5)], 2).is_none(),
            "of unequal lengths"
        );
        assert!(Blob::weave(vec![cut(0..4)], 3).is_none() && Blob::weave(vec![], 1).is_none());
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
