//! How the work of one call is cut into tasks. Cuts lie between strips, and between the blocks of
//! strips that are few and deep; they change no bits.

use super::{Attend, Field, Strip, join, parts, whole};
use crate::buffer::{Buffer, Scratch, Shared, with_scratch};
use crate::simd::table::Table;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Attention of fewer multiplications is not worth waking other threads.
const SMALL: usize = 128 << 10;
/// Tasks for each thread, about, so that all end together.
const TASKS: usize = 8;

/// The tasks of one call. Kept from one call to the next, so that a call allocates nothing.
pub(crate) struct Plan {
    /// Empty between calls.
    fields: Vec<(Field<'static>, Shared<'static>)>,
    strips: Vec<Placed>,
    tasks: Vec<Task>,
    parts: Buffer<f32>,
}

/// A strip, the work it belongs to, where its parts start, and how many of its tasks are not done.
struct Placed {
    field: usize,
    strip: Strip,
    start: usize,
    left: AtomicUsize,
}

/// Some blocks of a strip, and where their parts start.
struct Task {
    strip: usize,
    blocks: Range<usize>,
    start: usize,
}

thread_local! {
    static PLAN: Cell<Option<Box<Plan>>> = const { Cell::new(None) };
}

/// Runs all of `work`: `pool(n, task)` calls `task(i)` once for each `i < n`, on any of `threads`
/// threads, and returns when all are done.
pub(crate) fn run(
    table: &Table,
    work: &mut [Attend<'_>],
    threads: usize,
    pool: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
) {
    // Taken out, so that a panic merely loses it.
    let mut plan = PLAN.take().unwrap_or_else(|| {
        Box::new(Plan {
            fields: Vec::new(),
            strips: Vec::new(),
            tasks: Vec::new(),
            parts: Buffer::empty(),
        })
    });
    let mut fields = recycle(std::mem::take(&mut plan.fields));
    fields.extend(work.iter_mut().map(|a| (Field::new(a), Shared::new(a.out))));
    let (alone, floats) = plan.cut(&fields, threads);
    let Plan {
        strips,
        tasks,
        parts,
        ..
    } = &mut *plan;
    let all = Shared::new(parts.ensure(floats));
    let task = |i: usize| {
        let task: &Task = &tasks[i];
        with_scratch(|scratch| task.run(table, &fields, strips, all, scratch));
    };
    if alone {
        (0..tasks.len()).for_each(task);
    } else {
        pool(tasks.len(), &task);
    }
    plan.fields = recycle(fields);
    PLAN.set(Some(plan));
}

/// An empty vector in the memory of another, whose elements are of the same size.
fn recycle<A, B>(mut from: Vec<A>) -> Vec<B> {
    from.clear();
    from.into_iter().map(|_| unreachable!("cleared")).collect()
}

impl Plan {
    /// Makes the tasks. Whether one thread should do them all, and the floats of all parts.
    fn cut(&mut self, fields: &[(Field<'_>, Shared<'_>)], threads: usize) -> (bool, usize) {
        self.strips.clear();
        self.tasks.clear();
        let mut cost = 0;
        for (i, (field, _)) in fields.iter().enumerate() {
            for strip in field.strips() {
                cost += strip.work(field);
                self.strips.push(Placed {
                    field: i,
                    strip,
                    start: 0,
                    left: AtomicUsize::new(0),
                });
            }
        }
        let alone = threads == 1 || cost < SMALL;
        let n = self.strips.len();
        let cuts = if alone || n >= 4 * threads {
            1
        } else {
            (TASKS * threads).div_ceil(n.max(1))
        };
        let mut floats = 0;
        // Later rows see more keys: with the long tasks first, the threads end together.
        for (i, placed) in self.strips.iter_mut().enumerate().rev() {
            let blocks = placed.strip.blocks();
            let step = blocks.len().div_ceil(cuts).max(1);
            if step >= blocks.len() {
                self.tasks.push(Task {
                    strip: i,
                    blocks,
                    start: 0,
                });
                continue;
            }
            placed.start = floats;
            placed.left = AtomicUsize::new(blocks.len().div_ceil(step));
            for first in blocks.clone().step_by(step) {
                let blocks = first..blocks.end.min(first + step);
                let start = floats;
                floats += placed.strip.floats(&fields[placed.field].0) * blocks.len();
                self.tasks.push(Task {
                    strip: i,
                    blocks,
                    start,
                });
            }
        }
        (alone, floats)
    }
}

impl Task {
    /// Does the task; whoever does the last one of a strip folds its parts.
    fn run(
        &self,
        table: &Table,
        fields: &[(Field<'_>, Shared<'_>)],
        strips: &[Placed],
        all: Shared<'_>,
        scratch: &mut Scratch,
    ) {
        let placed = &strips[self.strip];
        let (strip, (field, out)) = (&placed.strip, &fields[placed.field]);
        let blocks = strip.blocks();
        if self.blocks == blocks {
            return whole(table, field, strip, *out, scratch);
        }
        let floats = strip.floats(field);
        // SAFETY: each task has its own parts, and they are read only after it is counted as done.
        let own = unsafe { all.part(self.start, floats * self.blocks.len()) };
        parts(table, field, strip, self.blocks.clone(), own, scratch);
        // Releases what this task has written, and acquires what the others have.
        if placed.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: all tasks that write parts of this strip are done, and only the last is here.
            let parts = unsafe { all.part(placed.start, floats * blocks.len()) };
            join(table, field, strip, parts, *out, scratch);
        }
    }
}
