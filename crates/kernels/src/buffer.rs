//! Memory for vector kernels: buffers on cache-line borders, scratch that each thread keeps, and
//! the shared output of a parallel region.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A cache line, the widest vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "only ever read through slices of numbers")] [u8; 64]);

/// Plain numbers: every bit pattern is a value, and no padding.
///
/// # Safety
/// Implemented only for types for which that is so, of alignment at most 64 and a size dividing 64.
unsafe trait Plain: Copy {}
// SAFETY: every pattern of 32 bits is an f32.
unsafe impl Plain for f32 {}
// SAFETY: every pattern of 32 bits is an i32.
unsafe impl Plain for i32 {}
// SAFETY: every pattern of 16 bits is a u16.
unsafe impl Plain for u16 {}
// SAFETY: every pattern of 8 bits is a u8.
unsafe impl Plain for u8 {}

/// A growable array that starts on a cache line. Its content is zero or what was last written.
pub(crate) struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

#[expect(private_bounds, reason = "the list of plain types is closed")]
impl<T: Plain> Buffer<T> {
    /// An empty buffer.
    pub(crate) const fn empty() -> Buffer<T> {
        Buffer {
            lines: Vec::new(),
            len: 0,
            of: PhantomData,
        }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Buffer<T> {
        let mut buffer = Buffer::empty();
        buffer.ensure(len);
        buffer
    }

    /// `len` elements of any content, in memory that this thread has used before if there is some: new
    /// memory of many pages costs as much as filling it.
    pub(crate) fn used(len: usize) -> Buffer<T> {
        let mut all = SPARE.take();
        // The smallest that is large enough; the shortest comes first.
        let need = len.div_ceil(64 / size_of::<T>());
        let fit = all.partition_point(|lines| lines.len() < need);
        let lines = match fit < all.len() {
            true => all.remove(fit),
            false => Vec::new(),
        };
        SPARE.set(all);
        let mut buffer = Buffer {
            len: lines.len() * (64 / size_of::<T>()),
            lines,
            of: PhantomData,
        };
        buffer.ensure(len);
        buffer.len = len;
        buffer
    }

    /// At least `len` elements, of which the first `len` are returned.
    pub(crate) fn ensure(&mut self, len: usize) -> &mut [T] {
        if len > self.len {
            let lines = len.div_ceil(64 / size_of::<T>());
            self.lines.resize(lines, Line([0; 64]));
            self.len = len;
        }
        &mut self.as_mut()[..len]
    }

    /// All elements.
    pub(crate) fn as_ref(&self) -> &[T] {
        // SAFETY: `lines` holds at least `len` elements' bytes, all initialised, of a `Plain` type
        // whose alignment a `Line` satisfies; the borrow is that of `self`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    /// All elements, to write.
    pub(crate) fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `as_ref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Buffers kept by a thread for its next use of `Buffer::used`.
const SPARES: usize = 16;

thread_local! {
    static SPARE: Cell<Vec<Vec<Line>>> = const { Cell::new(Vec::new()) };
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // A thread that ends has no spares any more.
        let _ = SPARE.try_with(|spare| {
            let mut all = spare.take();
            if !lines.is_empty() {
                all.insert(all.partition_point(|l| l.len() < lines.len()), lines);
            }
            if all.len() > SPARES {
                all.remove(0);
            }
            spare.set(all);
        });
    }
}

impl<T> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({})", self.len)
    }
}

/// Numbers that a pass computes, in memory that the thread's next ones use again: new memory of many
/// pages costs as much as filling it.
#[derive(Debug)]
pub struct Workspace(Buffer<f32>);

impl Workspace {
    /// `len` numbers, of which nothing is known.
    pub fn new(len: usize) -> Workspace {
        Workspace(Buffer::used(len))
    }
}

impl Deref for Workspace {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_ref()
    }
}

impl DerefMut for Workspace {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.as_mut()
    }
}

/// What a thread keeps from one task to the next.
pub(crate) struct Scratch {
    /// Unpacked weight rows: integers with scales and offsets, or bfloat16.
    pub(crate) bytes: Buffer<u8>,
    /// The integers again, a row to a lane.
    pub(crate) turned: Buffer<u8>,
    /// Products of rows with few tokens.
    pub(crate) stage: Buffer<u8>,
    /// Unpacked floats of weight rows, or all that a strip of attention needs.
    pub(crate) floats: Buffer<f32>,
    /// Sums of products of some columns.
    pub(crate) sums: Buffer<f32>,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Runs `f` with this thread's scratch.
pub(crate) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    // Taken out, so that a use inside a use gets its own, and a panic merely loses it.
    let mut scratch = SCRATCH.take().unwrap_or_else(|| {
        Box::new(Scratch {
            bytes: Buffer::empty(),
            turned: Buffer::empty(),
            stage: Buffer::empty(),
            floats: Buffer::empty(),
            sums: Buffer::empty(),
        })
    });
    let result = f(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// An output that the tasks of a region write in disjoint parts.
pub(crate) struct Shared<'a, T = f32> {
    at: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<'_, T> {}

// SAFETY: access goes through the unsafe methods below, whose callers keep the parts disjoint; the
// elements themselves may be written from any thread.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Borrows `out` until the region ends.
    pub(crate) fn new(out: &'a mut [T]) -> Shared<'a, T> {
        Shared {
            at: out.as_mut_ptr(),
            len: out.len(),
            of: PhantomData,
        }
    }

    /// A part of the output. Panics if out of range.
    ///
    /// # Safety
    /// No other access to this part, from this thread or another, while the slice lives.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "{start}+{len} of {}",
            self.len
        );
        // SAFETY: in range of the slice borrowed exclusively for `'a`; not accessed elsewhere
        // (caller).
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), len) }
    }
}
