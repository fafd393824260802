//! Nothing outside a buffer is touched: products and attention on memory between inaccessible pages.
//!
//! Each buffer has a mapping of its own and lies at its very end, or at its very beginning; one byte
//! further is a page without access, so a stray read or write kills the test by a signal. Results
//! must also be those on ordinary memory, to the bit.

#![cfg(unix)]
#![expect(unsafe_code, reason = "pages without access come from mmap")]

mod common;

use common::{Random, bits, columns};
use kernels::{Attend, Compute, Kernels, KvLayout, KvType, Level, Matrix, Product, Type};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// The end of a mapping at which a buffer touches the page without access.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Side {
    /// The byte before the first is out of reach.
    First,
    /// The byte after the last is out of reach.
    Last,
}

const SIDES: [Side; 2] = [Side::First, Side::Last];

/// Whole pages of memory between two pages without access: `[guard][room ...][guard]`.
struct Guarded {
    base: *mut u8,
    page: usize,
    room: usize,
    side: Side,
}

impl Guarded {
    /// Room for at least `len` bytes, which [`Guarded::bytes`] will place at `side`.
    fn new(side: Side, len: usize) -> Guarded {
        // SAFETY: a query without arguments in memory.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let room = len.max(1).next_multiple_of(page);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
        let (any, none) = (std::ptr::null_mut(), libc::PROT_NONE);
        // SAFETY: a new mapping where the system likes it; no existing memory is concerned.
        let base = unsafe { libc::mmap(any, room + 2 * page, none, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap of {room} bytes and guards");
        let base = base.cast::<u8>();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the pages between the guards are inside the mapping just made, not yet in use.
        let opened = unsafe { libc::mprotect(base.add(page).cast(), room, access) };
        assert_eq!(opened, 0, "mprotect");
        Guarded {
            base,
            page,
            room,
            side,
        }
    }

    /// Where `len` bytes at this side begin.
    fn at(&self, len: usize) -> *mut u8 {
        assert!(len <= self.room, "{len} bytes in {}", self.room);
        let before = match self.side {
            Side::First => 0,
            Side::Last => self.room - len,
        };
        // SAFETY: at most a page and the room after the base of the mapping, hence inside it.
        unsafe { self.base.add(self.page + before) }
    }

    /// The `len` bytes that touch the guard.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        // SAFETY: `at` gives `len` accessible bytes, which the system zeroed; `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.at(len), len) }
    }

    /// The `len` floats that touch the guard.
    fn floats(&mut self, len: usize) -> &mut [f32] {
        // SAFETY: all bits are floats.
        let (head, floats, tail) = unsafe { self.bytes(4 * len).align_to_mut() };
        assert!(
            head.is_empty() && tail.is_empty(),
            "pages hold whole floats"
        );
        floats
    }

    /// A copy of bytes, next to the guard.
    fn copy(&mut self, data: &[u8]) -> &[u8] {
        let to = self.bytes(data.len());
        to.copy_from_slice(data);
        to
    }

    /// A copy of floats, next to the guard.
    fn copy_floats(&mut self, data: &[f32]) -> &[f32] {
        let to = self.floats(data.len());
        to.copy_from_slice(data);
        to
    }

    /// Floats to be overwritten, next to the guard.
    fn output(&mut self, len: usize) -> &mut [f32] {
        let to = self.floats(len);
        to.fill(f32::NAN);
        to
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no borrow of it is left.
        let closed = unsafe { libc::munmap(self.base.cast(), self.room + 2 * self.page) };
        debug_assert_eq!(closed, 0, "munmap");
    }
}

const TOUCH: &str = "PUNA_TEST_TOUCH";

/// The guard itself: children of this test read the outermost byte or the one beyond it, at each end.
#[test]
fn a_byte_beyond_is_fatal() {
    if let Ok(touch) = std::env::var(TOUCH) {
        let (end, beyond) = touch.split_at(1);
        let (side, step) = match end {
            "<" => (Side::First, -1),
            _ => (Side::Last, 1),
        };
        let mut buffer = Guarded::new(side, 100);
        buffer.bytes(100).fill(7);
        let outermost = if side == Side::First { 0 } else { 99 };
        let step = if beyond.is_empty() { 0 } else { step };
        // SAFETY: the mapping reaches a page further at each end. With a step the page is one
        // without access: this process shall end here.
        let byte = unsafe { buffer.at(100).offset(outermost + step).read_volatile() };
        assert_eq!(byte, 7);
        return;
    }
    let child = |touch: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "a_byte_beyond_is_fatal"]);
        child.env(TOUCH, touch).output().unwrap().status
    };
    for end in ["<", ">"] {
        let inside = child(end);
        assert!(inside.success(), "{end} inside: {inside}");
        let beyond = child(&format!("{end}beyond"));
        let fault = [libc::SIGSEGV, libc::SIGBUS].map(Some);
        assert!(fault.contains(&beyond.signal()), "{end} beyond: {beyond}");
    }
}

const ROWS: [usize; 3] = [1, 3, 9];
const TOKENS: [usize; 4] = [1, 2, 5, 30];
/// The largest of `columns`, and of the rows and tokens above.
const MOST: (usize, usize, usize) = (1024, 9, 30);

/// Rows and columns of weights of a type.
type Shape = (Type, usize, usize);

fn product(k: &Kernels, shape: Shape, w: &[u8], bias: &[f32], x: &[f32], out: &mut [f32]) {
    let (ty, rows, cols) = shape;
    let w = Matrix::new(ty, rows, cols, w).unwrap();
    let prepared = k.activations(x, cols, &[ty]);
    let bias = Some(bias);
    k.matmul(&prepared, &mut [Product { w, bias, out }]);
}

/// Every level in some compute modes, with one thread and with two.
fn all_kernels(modes: &[Compute]) -> Vec<[Kernels; 2]> {
    let levels = Level::available().into_iter();
    let modes = levels.flat_map(|level| modes.iter().map(move |compute| (level, *compute)));
    let pools = |(level, compute)| [1, 2].map(|t| Kernels::new(level, compute, t).unwrap());
    modes.map(pools).collect()
}

/// Weights, bias, activations and output of products, each in a mapping of its own.
#[test]
fn products_stay_inside_their_buffers() {
    let (cols, rows, n) = MOST;
    let lens = [rows * cols, rows, n * cols, n * rows];
    let mut buffers = SIDES.map(|side| lens.map(|len| Guarded::new(side, 4 * len)));
    let mut random = Random(1);
    let kernels = all_kernels(&[Compute::Fast, Compute::F32]);
    for ty in Type::ALL {
        for cols in columns(*ty) {
            let data = kernels::synthesize(*ty, rows, cols, random.bits()).unwrap();
            let (bias, x) = (random.floats(rows), random.floats(n * cols));
            for (rows, n) in ROWS.iter().flat_map(|r| TOKENS.map(|n| (*r, n))) {
                let data = &data[..rows * ty.row_bytes(cols).unwrap()];
                let (bias, x) = (&bias[..rows], &x[..n * cols]);
                let shape = (*ty, rows, cols);
                for pools in &kernels {
                    let mut plain = vec![f32::NAN; n * rows];
                    product(&pools[0], shape, data, bias, x, &mut plain);
                    for [w, b, a, out] in &mut buffers {
                        let side = w.side;
                        let (w, b, a) = (w.copy(data), b.copy_floats(bias), a.copy_floats(x));
                        for k in pools {
                            let out = out.output(n * rows);
                            product(k, shape, w, b, a, out);
                            assert_eq!(bits(out), bits(&plain), "{shape:?} n {n} {side:?} {k:?}");
                        }
                    }
                }
            }
        }
    }
}

const CACHES: [KvType; 4] = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0];

/// Query rows, tokens, tokens of a page: one row and several, blocks of keys and what is left of
/// them, pages full to the last slot, partly filled and of odd size.
const SPANS: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (1, 17, 16),
    (1, 96, 32),
    (3, 20, 5),
    (5, 64, 64),
    (9, 33, 33),
    (12, 300, 128),
];

/// One shape, fused and then stage by stage: pages, queries, scores and both outputs, each in a
/// mapping of its own.
fn attention_of(kernels: &[[Kernels; 2]], layout: KvLayout, heads: usize, n: usize, tokens: usize) {
    let mut random = Random(2);
    let values = layout.kv_heads * layout.head_dim;
    let mut cache = vec![vec![0xff; layout.page_bytes()]; tokens.div_ceil(layout.page)];
    for t in 0..tokens {
        let (key, value) = (random.floats(values), random.floats(values));
        let page = &mut cache[t / layout.page];
        kernels[0][0].store(&layout, page, t % layout.page, &key, &value);
    }
    let q = random.floats(n * heads * layout.head_dim);
    let spans: Vec<Range<usize>> = (0..n).map(|i| 0..tokens - n + i + 1).collect();
    let guarded = |side| cache.iter().map(move |p| Guarded::new(side, p.len()));
    let mut guards = SIDES.map(|side| guarded(side).collect::<Vec<_>>());
    let lens = [q.len(), n * heads * tokens, q.len(), q.len()];
    let mut floats = SIDES.map(|side| lens.map(|len| Guarded::new(side, 4 * len)));
    for pools in kernels {
        let run =
            |k: &Kernels, pages: &[&[u8]], q: &[f32], [scores, out, staged]: [&mut [f32]; 3]| {
                let mut a = Attend {
                    layout,
                    pages,
                    q,
                    heads,
                    spans: &spans,
                    scale: 0.3,
                    out,
                };
                k.attention(std::slice::from_mut(&mut a));
                k.attention_scores(&a, tokens, scores);
                k.attention_pattern(n, tokens, &spans, heads, scores);
                k.attention_mix(&a, tokens, scores, staged);
            };
        let mut plain = [1, 2, 3].map(|i| vec![f32::NAN; lens[i]]);
        let pages: Vec<&[u8]> = cache.iter().map(|p| &p[..]).collect();
        run(&pools[0], &pages, &q, plain.each_mut().map(|x| &mut x[..]));
        for (guards, [query, results @ ..]) in guards.iter_mut().zip(&mut floats) {
            let side = query.side;
            let pages = guards.iter_mut().zip(&cache).map(|(g, page)| g.copy(page));
            let pages: Vec<&[u8]> = pages.collect();
            let query = query.copy_floats(&q);
            for k in pools {
                let [scores, out, staged] = &mut *results;
                let (scores, out) = (scores.output(lens[1]), out.output(lens[2]));
                let staged = staged.output(lens[3]);
                run(k, &pages, query, [scores, out, staged]);
                let got = [scores, out, staged].map(|x| bits(x));
                let what = format!("{layout:?} heads {heads} n {n} of {tokens}");
                assert_eq!(
                    got,
                    plain.each_ref().map(|x| bits(x)),
                    "{what} {side:?} {k:?}"
                );
            }
        }
    }
}

#[test]
fn attention_stays_inside_its_buffers() {
    let kernels = all_kernels(&[Compute::Fast]); // products alone know compute modes
    for (n, tokens, page) in SPANS {
        for ty in CACHES {
            for dim in [1, 7, 16, 40, 64, 80] {
                for (kv_heads, heads) in [(1, 1), (2, 6)] {
                    let layout = KvLayout::new(ty, kv_heads, dim, page).unwrap();
                    attention_of(&kernels, layout, heads, n, tokens);
                }
            }
        }
    }
}
