//! A cursor over little-endian bytes that cannot be driven past their end.
//!
//! What it knows: where it is, and what to say when the bytes run out. Every count is compared
//! with the bytes left before the caller allocates for it.

use std::fmt::Display;
use std::path::Path;

use crate::error::Error;

/// Reads from `bytes` front to back; errors carry `path` and the offset.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
    /// What ends where `bytes` end, for messages.
    whole: &'static str,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], path: &'a Path) -> Cursor<'a> {
        Cursor {
            bytes,
            at: 0,
            path,
            whole: "the file",
        }
    }

    /// A cursor that ends after `limit` bytes; `whole` says what that is.
    pub(crate) fn limited(self, limit: usize, whole: &'static str) -> Cursor<'a> {
        match self.bytes.get(..limit) {
            Some(bytes) => Cursor {
                bytes,
                whole,
                ..self
            },
            None => self,
        }
    }

    /// All bytes, also those that have been read.
    pub(crate) fn all(&self) -> &'a [u8] {
        self.bytes
    }

    /// Goes to `at`, where `what` is said to be.
    pub(crate) fn seek(&mut self, at: usize, what: impl Display) -> Result<(), Error> {
        if at > self.bytes.len() {
            let what = format!("{what} is said to lie at {at}, beyond {}", self.whole);
            return Err(self.wrong(self.at, what));
        }
        self.at = at;
        Ok(())
    }

    /// The offset of the next byte.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Bytes between here and the end.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The error that `what` is wrong at `offset`.
    pub(crate) fn wrong(&self, offset: usize, what: impl Display) -> Error {
        Error::malformed(self.path, offset, what)
    }

    /// The next `n` bytes, which are `what`.
    pub(crate) fn take(&mut self, n: usize, what: impl Display) -> Result<&'a [u8], Error> {
        if n > self.left() {
            let left = self.left();
            let whole = self.whole;
            let what = format!("{whole} ends inside {what}: {n} bytes needed, {left} left");
            return Err(self.wrong(self.at, what));
        }
        let bytes = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    /// The next `N` bytes, which are `what`.
    pub(crate) fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(crate) fn u16(&mut self, what: impl Display) -> Result<u16, Error> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: impl Display) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: impl Display) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A u64 that counts `what`, each of which takes at least `each` bytes of what is left.
    pub(crate) fn count(&mut self, each: usize, what: impl Display) -> Result<usize, Error> {
        let at = self.at;
        let n = self.u64(format_args!("the number of {what}"))?;
        let most = self.left() / each;
        match usize::try_from(n) {
            Ok(n) if n <= most => Ok(n),
            _ => {
                let left = self.left();
                let what = format!(
                    "{n} {what} promised, but the {left} bytes left hold no more than {most}"
                );
                Err(self.wrong(at, what))
            }
        }
    }

    /// A string: u64 length, then that many bytes of UTF-8.
    pub(crate) fn string(&mut self, what: impl Display) -> Result<&'a str, Error> {
        let n = self.count(1, format_args!("bytes of {what}"))?;
        let at = self.at;
        let bytes = self.take(n, &what)?;
        std::str::from_utf8(bytes).map_err(|e| {
            let what = format!("{what} is not valid UTF-8");
            self.wrong(at + e.valid_up_to(), what)
        })
    }
}
