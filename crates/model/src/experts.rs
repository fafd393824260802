//! A mixture of experts: a router picks some of the experts for each row, and their outputs are
//! summed.
//!
//! Idea: a row that goes through an expert takes a *slot*. Slots are sorted by expert, those of the
//! expert that is always used last, so that each expert in use has one product over its own rows
//! and reads its weights once. A row's outputs are added in the order of its slots, so its bits do
//! not depend on the other rows.

use std::ops::Range;

use kernels::{Gate, Routes};

use crate::error::Result;
use crate::forward::{Pass, Room, multiply};
use crate::probe::{Probe, Site};
use crate::weights::{Gated, Moe};

/// Which row goes through which expert.
struct Slots {
    /// Each expert in use, or `None` for the shared one, with its slots.
    groups: Vec<(Option<usize>, Range<usize>)>,
    rows: Vec<usize>, // (slots)
    /// Place among the slots of all rows, row after row, each row's in the order of the router's
    /// choice.
    places: Vec<usize>, // (slots)
    weights: Vec<f32>, // (slots)
}

impl Slots {
    fn new(routes: &Routes, n: usize, experts: usize, shared: bool) -> Slots {
        let used = routes.experts.len().checked_div(n).unwrap_or(0);
        let width = used + usize::from(shared);
        let mut of: Vec<Vec<usize>> = vec![Vec::new(); experts];
        for (choice, expert) in routes.experts.iter().enumerate() {
            of[*expert].push(choice);
        }
        let mut slots = Slots {
            groups: Vec::new(),
            rows: Vec::with_capacity(n * width),
            places: Vec::with_capacity(n * width),
            weights: Vec::with_capacity(n * width),
        };
        for (expert, choices) in of.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
            let start = slots.rows.len();
            for choice in choices {
                let row = choice / used;
                slots.push(row, row * width + choice % used, routes.weights[*choice]);
            }
            slots.groups.push((Some(expert), start..slots.rows.len()));
        }
        if shared {
            let start = slots.rows.len();
            (0..n).for_each(|row| slots.push(row, row * width + used, 1.0));
            slots.groups.push((None, start..slots.rows.len()));
        }
        slots
    }

    fn push(&mut self, row: usize, place: usize, weight: f32) {
        self.rows.push(row);
        self.places.push(place);
        self.weights.push(weight);
    }

    /// The slots of an array with `cols` values each that an expert has.
    fn of<'a>(x: &'a [f32], slots: &Range<usize>, cols: usize) -> &'a [f32] {
        &x[slots.start * cols..slots.end * cols]
    }
}

impl Moe {
    fn expert(&self, expert: Option<usize>) -> Option<&Gated> {
        match expert {
            Some(i) => self.experts.get(i),
            None => self.shared.as_ref(),
        }
    }
}

impl<P: Probe> Pass<'_, P> {
    /// x += sum of w Wdown(act(Wgate a) * Wup a) over the experts of each row; behind a sigmoid
    /// router w scales a instead.
    pub(crate) fn experts(
        &mut self,
        i: usize,
        moe: &Moe,
        x: &mut [f32],
        room: &mut Room,
    ) -> Result<()> {
        let c = &self.w.config;
        let Some(e) = c.experts_of(i) else {
            return Ok(());
        };
        let (n, d, f) = (self.n(), c.hidden, e.ffn);
        let a = &mut room.a;
        let mut logits = vec![0.0; n * e.count];
        multiply(self.k, a, [(&moe.router, &mut logits[..])])?;
        self.see(Site::Router, i, &[e.count], &mut logits);
        let routes = self.k.route(&logits, e.count, e.used, e.gate);
        let mut slots = Slots::new(&routes, n, e.count, e.shared);
        let count = slots.rows.len();

        let mut input = vec![0.0; count * d]; // (slots, hidden)
        self.k.gather_rows(a, d, &slots.rows, &mut input);
        if e.gate == Gate::Sigmoid {
            self.k.scale_rows(&mut input, d, &slots.weights);
            slots.weights.fill(1.0);
        }
        let (mut gate, mut up) = (vec![0.0; count * f], vec![0.0; count * f]);
        for (expert, range) in &slots.groups {
            let Some(expert) = moe.expert(*expert) else {
                continue;
            };
            let part = range.start * f..range.end * f;
            let outs = [
                (&expert.gate, &mut gate[part.clone()]),
                (&expert.up, &mut up[part]),
            ];
            multiply(self.k, Slots::of(&input, range, d), outs)?;
        }
        self.see_slots(Site::MlpPre, i, &slots, f, &mut gate);
        self.see_slots(Site::MlpPreLinear, i, &slots, f, &mut up);
        self.k.gated(c.activation, &mut gate, &up);
        self.see_slots(Site::MlpPost, i, &slots, f, &mut gate);
        let mut out = input;
        for (expert, range) in &slots.groups {
            let Some(expert) = moe.expert(*expert) else {
                continue;
            };
            let part = &mut out[range.start * d..range.end * d];
            multiply(self.k, Slots::of(&gate, range, f), [(&expert.down, part)])?;
        }
        a.fill(0.0);
        self.k.add_rows(a, d, &slots.rows, &slots.weights, &out);
        self.mlp_out(i, x, &mut room.a);
        Ok(())
    }

    /// Shows what experts compute as `[rows, experts of a row, ffn]`: the picked ones in the order
    /// of the router's choice, then the one that is always used.
    fn see_slots(&mut self, site: Site, i: usize, slots: &Slots, f: usize, x: &mut [f32]) {
        if !P::ON || !self.probe.wants(site, i) {
            return;
        }
        let width = slots.rows.len() / self.n().max(1);
        let mut shown = vec![0.0; x.len()];
        self.k.scatter_rows(x, f, &slots.places, &mut shown);
        self.see(site, i, &[width, f], &mut shown);
        self.k.gather_rows(&shown, f, &slots.places, x);
    }
}
