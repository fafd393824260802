//! The roof: [`Kernels`] checks lengths, splits work over the pool and calls the level's table.
//!
//! Lengths that do not fit each other are mistakes of the calling code and panic here, before any
//! work; values never do. How work is split never changes results.

use crate::activations::{Activations, Form, TOKENS};
use crate::attention::{self, Attend, Field};
use crate::buffer::{Shared, with_scratch};
use crate::matmul::{self, FEW, Job};
use crate::pool::Pool;
use crate::rope::{LastTurns, Rope};
use crate::simd::table::{Table, table};
use crate::{Compute, Error, KvLayout, Level, Matrix, Type, dequantize};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Element-wise work below this many values is not worth waking other threads.
const SMALL: usize = 16 << 10;
/// Products below this many multiplications likewise.
const SMALL_PRODUCTS: usize = 64 << 10;
/// Multiplications that are worth a task of their own: some ten microseconds.
const TASK_PRODUCTS: usize = 256 << 10;

/// A level, a compute mode and a pool of threads. Shared freely between threads; calls from several
/// threads at once are sound, but only one of them has the pool at a time.
///
/// Within one level and compute mode the bits of a result row depend on its own inputs only: not on
/// the number of threads, the other rows of the call, or the row's place among them.
#[derive(Debug)]
pub struct Kernels {
    level: Level,
    compute: Compute,
    table: Table,
    pool: Pool,
    turns: LastTurns,
}

/// One matrix product of a call: `out[n, rows] = x[n, cols] · wᵀ + bias`.
#[derive(Debug)]
pub struct Product<'a> {
    /// Weights `[rows, cols]`.
    pub w: Matrix<'a>,
    /// Added to each row of the output: `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// `[n, rows]`, overwritten.
    pub out: &'a mut [f32],
}

/// Non-linearities of the feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// x · Φ(x), with the exact error function.
    Gelu,
    /// max(x, 0).
    Relu,
}

impl Kernels {
    /// Kernels of a level, with a pool of `threads` threads (the caller among them).
    ///
    /// # Errors
    /// [`Error::LevelMissing`] if the processor lacks the level, [`Error::Threads`] and
    /// [`Error::Spawn`] if the pool cannot be had.
    pub fn new(level: Level, compute: Compute, threads: usize) -> Result<Kernels, Error> {
        let table = table(level).ok_or_else(|| Error::LevelMissing {
            level,
            available: Level::available()
                .iter()
                .map(|l| l.name())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        let pool = Pool::new(threads)?;
        Ok(Kernels {
            level,
            compute,
            table,
            pool,
            turns: LastTurns::default(),
        })
    }

    /// The level in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The compute mode of matrix products.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Threads that take part in a call.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The activations that weights of a type meet.
    fn form(&self, ty: Type) -> Form {
        let pairs = self.level == Level::Avx512Bf16;
        Form::of(ty, self.compute == Compute::Fast, pairs)
    }

    /// The pool and the table, for the probes of `limits`.
    pub(crate) fn parts(&self) -> (&Pool, &Table) {
        (&self.pool, &self.table)
    }

    /// Prepares rows of activations `x [n, cols]` for products with weights of `for_types`; one
    /// preparation serves any number of products. Panics if `x` is no whole number of rows or `cols`
    /// is zero.
    pub fn activations<'a>(
        &self,
        x: &'a [f32],
        cols: usize,
        for_types: &[Type],
    ) -> Activations<'a> {
        let forms: Vec<_> = for_types.iter().map(|ty| self.form(*ty)).collect();
        let mut prepared = Activations::new(x, cols, &forms);
        let n = prepared.n;
        let tasks = prepared.tasks();
        if tasks.any() {
            let prepare = self.table.prepare;
            let some = if n <= FEW { 1 } else { 2 * TOKENS };
            self.rows(n.div_ceil(some), some.saturating_mul(cols), &|i| {
                let tokens = i * some..n.min((i + 1) * some);
                // SAFETY: each token, and each of many tokens' groups, is given to one task; the
                // table's level is available.
                unsafe { prepare(&tasks, tokens) };
            });
        }
        prepared
    }

    /// `out[n, rows] = x[n, cols] · wᵀ + bias` for each product, all in one parallel region.
    ///
    /// Compute `fast` uses 8-bit activations for quantised weights, bfloat16 ones for BF16 on the
    /// level that multiplies such pairs, and f32 ones for the rest; compute `f32` uses f32
    /// throughout. Panics if a length does not fit, or if `x` was not prepared for a product's type.
    pub fn matmul(&self, x: &Activations<'_>, products: &mut [Product<'_>]) {
        let size = |p: &Product<'_>| p.w.rows().saturating_mul(p.w.cols()).saturating_mul(x.n);
        let work = products.iter().map(size).fold(0, usize::saturating_add);
        let threads = if work < SMALL_PRODUCTS {
            1
        } else {
            self.threads()
        };
        let jobs = jobs(x, products, threads, &|ty| self.form(ty));
        self.pool.run(if x.n == 0 { 0 } else { jobs.len() }, &|i| {
            // SAFETY: the jobs write disjoint rows of their own outputs; the table's level is
            // available.
            with_scratch(|scratch| unsafe { matmul::task(&self.table, &jobs[i], scratch) });
        });
    }

    /// Rows `ids` of a table, dequantised into `out [ids.len(), cols]`. Panics if `out` has another
    /// length.
    ///
    /// # Errors
    /// [`Error::Row`] if an id is no row of the table.
    pub fn embed(&self, table: Matrix<'_>, ids: &[u32], out: &mut [f32]) -> Result<(), Error> {
        let cols = table.cols();
        assert_eq!(
            Some(out.len()),
            ids.len().checked_mul(cols),
            "embeddings of {} ids",
            ids.len()
        );
        let row = |id: u32| usize::try_from(id).unwrap_or(usize::MAX);
        if let Some(&id) = ids.iter().find(|id| row(**id) >= table.rows()) {
            return Err(Error::Row {
                id,
                rows: table.rows(),
            });
        }
        let out = Shared::new(out);
        let failed = Mutex::new(None);
        self.rows(ids.len(), cols, &|i| {
            // SAFETY: each row of the output is given to one task.
            let to = unsafe { out.part(i * cols, cols) };
            if let Err(error) = dequantize(table.ty(), table.row(row(ids[i])), to) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// `out = gain · x / sqrt(mean(x²) + eps)` for each row of `gain.len()` values. Panics if a
    /// length does not fit.
    pub fn rms_norm(&self, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "values in and out of a norm");
        let cols = gain.len();
        let rows = whole_rows(x.len(), cols);
        let (out, norm) = (Shared::new(out), self.table.rms_norm);
        self.rows(rows, cols, &|row| {
            // SAFETY: each row is given to one task; the table's level is available.
            unsafe {
                norm(
                    &x[row * cols..(row + 1) * cols],
                    gain,
                    eps,
                    out.part(row * cols, cols),
                );
            }
        });
    }

    /// Turns the heads of each token of `x [positions.len(), heads, head_dim]` by its position.
    /// Panics if a length does not fit or more values would turn than a head has.
    pub fn rope(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        rope: &Rope,
        positions: &[u32],
    ) {
        let cols = heads.saturating_mul(head_dim);
        assert_eq!(
            Some(x.len()),
            cols.checked_mul(positions.len()),
            "values to rotate"
        );
        assert!(
            rope.inv_freq.len() <= head_dim / 2,
            "{} pairs of {head_dim}",
            rope.inv_freq.len()
        );
        if x.is_empty() {
            return;
        }
        let turns = self.turns.get(rope, positions);
        let (x, rotate) = (Shared::new(x), self.table.rotate);
        self.rows(positions.len(), cols, &|token| {
            let (cos, sin) = turns.of(token);
            // SAFETY: each token is given to one task; the table's level is available.
            unsafe { rotate(x.part(token * cols, cols), head_dim, rope.layout, cos, sin) };
        });
    }

    /// Writes one token's keys and values, each `[kv_heads * head_dim]`, into `slot` of a page of
    /// one layer; rounds to nearest, ties to even. Panics if a length does not fit.
    pub fn store(&self, layout: &KvLayout, page: &mut [u8], slot: usize, k: &[f32], v: &[f32]) {
        // SAFETY: the table's level is available.
        unsafe { (self.table.store)(layout, page, slot, k, v) }
    }

    /// Attention: for each query, softmax of its scaled scores over the keys of its span, then the
    /// sum of values by these weights. All of `work` shares the pool. Panics if a length does not fit
    /// or a span goes beyond the pages.
    pub fn attention(&self, work: &mut [Attend<'_>]) {
        for a in &*work {
            check_queries(a, a.out.len());
        }
        let pool = |n: usize, task: &(dyn Fn(usize) + Sync)| self.pool.run(n, task);
        attention::run(&self.table, work, self.threads(), pool);
    }

    /// The first stage of `attention` alone: `scores [n, heads, keys]`, scaled, `-inf` outside the
    /// spans. Panics if a length does not fit or a span goes beyond `keys`.
    pub fn attention_scores(&self, a: &Attend<'_>, keys: usize, scores: &mut [f32]) {
        check_queries(a, a.q.len());
        let field = Field::new(a);
        check_scores(scores.len(), a.spans, a.heads, keys);
        let (out, stage) = (Shared::new(scores), self.table.scores);
        self.pool.run(a.spans.len() * a.heads, &|i| {
            // SAFETY: each query is given to one task; the table's level is available.
            unsafe { stage(&field, (i / a.heads, i % a.heads), out.part(i * keys, keys)) };
        });
    }

    /// The second stage alone: softmax of each row of `scores [rows, heads, keys]` over its span, in
    /// place; 0 outside. Panics if a length does not fit or a span goes beyond `keys`.
    pub fn attention_pattern(
        &self,
        rows: usize,
        keys: usize,
        spans: &[Range<usize>],
        heads: usize,
        scores: &mut [f32],
    ) {
        assert_eq!(spans.len(), rows, "spans of {rows} rows");
        check_scores(scores.len(), spans, heads, keys);
        let (out, stage) = (Shared::new(scores), self.table.pattern);
        self.rows(rows * heads, keys, &|i| {
            // SAFETY: each row is given to one task; the table's level is available.
            unsafe { stage(&spans[i / heads], out.part(i * keys, keys)) };
        });
    }

    /// The third stage alone: values summed by `pattern [n, heads, keys]` into
    /// `out [n, heads, head_dim]`; `a.q` and `a.out` are not used. Weights other than zero count
    /// outside the spans as well. Panics if a length does not fit or `keys` goes beyond the pages.
    pub fn attention_mix(&self, a: &Attend<'_>, keys: usize, pattern: &[f32], out: &mut [f32]) {
        let field = Field::new(a);
        let (n, heads, dim) = (a.spans.len(), a.heads, a.layout.head_dim);
        check_scores(pattern.len(), a.spans, heads, keys);
        assert!(
            keys.div_ceil(a.layout.page) <= a.pages.len(),
            "{keys} keys in too few pages"
        );
        let outputs = n.checked_mul(heads).and_then(|x| x.checked_mul(dim));
        assert_eq!(
            Some(out.len()),
            outputs,
            "outputs of {n} rows x {heads} heads x {dim}"
        );
        let (out, stage) = (Shared::new(out), self.table.mix);
        self.pool.run(n * heads, &|i| {
            let weights = &pattern[i * keys..(i + 1) * keys];
            with_scratch(|scratch| {
                let sums = scratch.floats.ensure(a.layout.padded());
                // SAFETY: each query is given to one task; the table's level is available.
                unsafe {
                    stage(&field, (i / heads, i % heads), weights, sums);
                    out.part(i * dim, dim).copy_from_slice(&sums[..dim]);
                }
            });
        });
    }

    /// `gate = act(gate) · up`. Panics unless both have one length.
    pub fn gated(&self, act: Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate and up");
        let gated = self.table.gated;
        self.chunks(gate, &|at, gate| {
            // SAFETY: the table's level is available.
            unsafe { gated(act, gate, &up[at..at + gate.len()]) };
        });
    }

    /// `x = act(x)`.
    pub fn activate(&self, act: Activation, x: &mut [f32]) {
        let activate = self.table.activate;
        // SAFETY: the table's level is available.
        self.chunks(x, &|_, x| unsafe { activate(act, x) });
    }

    /// `x += y`. Panics unless both have one length.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "terms of a sum");
        let add = self.table.add;
        self.chunks(x, &|at, x| {
            // SAFETY: the table's level is available.
            unsafe { add(x, &y[at..at + x.len()]) };
        });
    }

    /// `x += scale * y`. Panics unless both have one length.
    pub fn add_scaled(&self, x: &mut [f32], y: &[f32], scale: f32) {
        assert_eq!(x.len(), y.len(), "terms of a sum");
        let add_scaled = self.table.add_scaled;
        self.chunks(x, &|at, x| {
            // SAFETY: the table's level is available.
            unsafe { add_scaled(x, &y[at..at + x.len()], scale) };
        });
    }

    /// Natural logarithm of the softmax of each row of `cols` values, in place. Panics unless `x` is
    /// whole rows.
    pub fn log_softmax(&self, x: &mut [f32], cols: usize) {
        self.each_row(x, cols, self.table.log_softmax);
    }

    /// Softmax of each row of `cols` values, in place. Panics unless `x` is whole rows.
    pub fn softmax(&self, x: &mut [f32], cols: usize) {
        self.each_row(x, cols, self.table.softmax);
    }

    fn each_row(&self, x: &mut [f32], cols: usize, f: unsafe fn(&mut [f32])) {
        let rows = whole_rows(x.len(), cols);
        let x = Shared::new(x);
        // SAFETY: each row is given to one task; the table's level is available.
        self.rows(rows, cols, &|row| unsafe { f(x.part(row * cols, cols)) });
    }

    /// Calls `f(row)` for all rows, over the pool if they hold enough values.
    pub(crate) fn rows(&self, rows: usize, cols: usize, f: &(dyn Fn(usize) + Sync)) {
        if rows.saturating_mul(cols) < SMALL {
            return (0..rows).for_each(f);
        }
        // A few rows to a task, so that short rows do not cost an index each.
        let step = (SMALL / 4 / cols.max(1)).clamp(1, rows.div_ceil(self.threads()));
        self.pool.run(rows.div_ceil(step), &|i| {
            (i * step..rows.min((i + 1) * step)).for_each(f);
        });
    }

    /// Calls `f(start, part)` for parts of `x` of whole vectors, over the pool if `x` is long.
    fn chunks(&self, x: &mut [f32], f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        const STEP: usize = SMALL / 4;
        let len = x.len();
        if len < SMALL {
            return f(0, x);
        }
        let x = Shared::new(x);
        self.pool.run(len.div_ceil(STEP), &|i| {
            let at = i * STEP;
            // SAFETY: the parts are disjoint, one for each task.
            f(at, unsafe { x.part(at, STEP.min(len - at)) });
        });
    }
}

/// Splits products into tasks of some rows each, after checking all lengths.
fn jobs<'a>(
    x: &'a Activations<'_>,
    products: &'a mut [Product<'_>],
    threads: usize,
    form: &dyn Fn(Type) -> Form,
) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    for Product { w, bias, out } in products {
        let (rows, cols) = (w.rows(), w.cols());
        assert_eq!(
            cols,
            x.cols,
            "columns of {} weights, and of the activations",
            w.ty()
        );
        assert_eq!(
            Some(out.len()),
            rows.checked_mul(x.n),
            "outputs of {rows} rows x {}",
            x.n
        );
        assert!(bias.is_none_or(|b| b.len() == rows), "bias of {rows} rows");
        assert!(
            x.has(form(w.ty())),
            "activations not prepared for {}",
            w.ty()
        );
        let out = Shared::new(out);
        let step = if threads == 1 {
            rows.max(1)
        } else {
            rows_per_task(w, x.n, threads)
        };
        for start in (0..rows).step_by(step) {
            let rows = start..rows.min(start + step);
            jobs.push(Job {
                w: *w,
                rows,
                bias: *bias,
                x,
                out,
                form: form(w.ty()),
            });
        }
    }
    jobs
}

/// Rows of a product given to one task: of a small product each thread gets one part, of a large one
/// several, so that a late thread does not hold up the rest. Whole tiles where there are enough.
fn rows_per_task(w: &Matrix<'_>, n: usize, threads: usize) -> usize {
    let each = w.rows().saturating_mul(w.cols()).saturating_mul(n) / threads;
    let tasks = threads * (each / TASK_PRODUCTS).clamp(1, 8);
    let rows = w.rows().div_ceil(tasks);
    match (w.ty().is_float(), n) {
        (true, _) if rows < 32 => rows.next_multiple_of(4).max(4),
        (true, _) | (false, ..=FEW) => rows.next_multiple_of(16).max(16),
        // To the nearest, lest many small parts become too few.
        (false, _) => ((rows + 16) / 32 * 32).max(32),
    }
}

pub(crate) fn whole_rows(len: usize, cols: usize) -> usize {
    assert!(
        cols > 0 && len.is_multiple_of(cols),
        "{len} values in rows of {cols}"
    );
    len / cols
}

fn check_queries(a: &Attend<'_>, out: usize) {
    let need = a
        .heads
        .checked_mul(a.layout.head_dim)
        .and_then(|x| x.checked_mul(a.spans.len()));
    assert_eq!(
        Some(a.q.len()),
        need,
        "queries of {} rows x {} heads",
        a.spans.len(),
        a.heads
    );
    assert_eq!(
        a.q.len(),
        out,
        "outputs of {} rows x {} heads",
        a.spans.len(),
        a.heads
    );
}

fn check_scores(len: usize, spans: &[Range<usize>], heads: usize, keys: usize) {
    let need = spans
        .len()
        .checked_mul(heads)
        .and_then(|x| x.checked_mul(keys));
    assert_eq!(
        Some(len),
        need,
        "scores of {} rows x {heads} heads x {keys} keys",
        spans.len()
    );
    assert!(
        spans.iter().all(|s| s.is_empty() || s.end <= keys),
        "a span beyond {keys} keys"
    );
}
