//! Formats whose values come four or eight at a time from a codebook: IQ2, IQ3 and IQ1.
//!
//! Idea: the values divided by their scale are rounded to the codebook's levels one by one; that
//! combination may be in the codebook or not, but the entries near it are known from a table made
//! once; of these the one with the least weighted error is taken. Scales are searched as elsewhere:
//! candidates for each run, then integers for the scales, then the common scale anew.

use super::search::{farthest, round};
use super::{half, put};
use crate::blocks::grids;
use crate::simd::array;
use half::f16;
use std::sync::OnceLock;

/// Entries that are tried for a combination of levels.
const NEAR: usize = 16;

/// A codebook, with the entries near each combination of its levels.
struct Book {
    levels: Vec<f32>,
    entries: Vec<[f32; 8]>,
    near: Vec<[u16; NEAR]>,
}

impl Book {
    /// Of `K` values to an entry.
    fn new<const K: usize>(grid: &[[i8; K]]) -> Book {
        let mut levels: Vec<i8> = grid.iter().flatten().copied().collect();
        levels.sort_unstable();
        levels.dedup();
        let entries: Vec<[i32; K]> = grid.iter().map(|e| e.map(i32::from)).collect();
        let mut all: Vec<(i32, u16)> = Vec::new();
        let near = (0..levels.len().pow(K as u32)).map(|code| {
            let mut left = code;
            let point: [i32; K] = std::array::from_fn(|_| {
                let level = levels[left % levels.len()];
                left /= levels.len();
                i32::from(level)
            });
            all.clear();
            all.extend(entries.iter().enumerate().map(|(i, e)| {
                let distance = (0..K).map(|k| (e[k] - point[k]).pow(2)).sum::<i32>();
                (distance, i as u16)
            }));
            all.select_nth_unstable(NEAR - 1);
            all[..NEAR].sort_unstable();
            std::array::from_fn(|i| all[i].1)
        });
        Book {
            near: near.collect(),
            entries: entries
                .iter()
                .map(|e| array(|k| if k < K { e[k] as f32 } else { 0.0 }))
                .collect(),
            levels: levels.into_iter().map(f32::from).collect(),
        }
    }

    /// The entry for `K` values `x` with weights `w`, once `delta` is added to all of it, with
    /// Σ w x e and Σ w e².
    #[inline(always)]
    fn best<const K: usize>(&self, x: &[f32; K], w: &[f32; K], delta: f32) -> (u16, f32, f32) {
        let (first, last) = (self.levels[0], self.levels[self.levels.len() - 1]);
        let steps = (self.levels.len() - 1) as f32;
        // The levels are nearly even.
        let inverse = steps / (last - first);
        let mut code = 0;
        for x in x.iter().rev() {
            let digit = round(((x - delta - first) * inverse).max(0.0).min(steps));
            code = code * self.levels.len() + digit as usize;
        }
        let mut best = (f32::INFINITY, 0, 0.0, 0.0);
        for at in self.near[code] {
            let e = &self.entries[usize::from(at)];
            let (mut xe, mut ee) = (0.0, 0.0);
            for k in 0..K {
                let e = e[k] + delta;
                xe += w[k] * x[k] * e;
                ee += w[k] * e * e;
            }
            if ee - 2.0 * xe < best.0 {
                best = (ee - 2.0 * xe, at, xe, ee);
            }
        }
        (best.1, best.2, best.3)
    }
}

/// What tells the formats apart.
struct Kind {
    book: fn() -> &'static Book,
    /// Values to an entry.
    fours: bool,
    /// Whether each eight has an even number of signs, whatever the values.
    even: bool,
    /// Whether values are signed in the book, and an eighth of a step is added or taken away for a
    /// run of so many eights.
    shift: Option<usize>,
    /// Values with one scale.
    run: usize,
    /// A scale is (2 s + 1) d · unit with s of 0..=top.
    top: f32,
    unit: f32,
}

/// The values of the farthest one's level, relative to the last level, that are tried.
const CANDIDATES: i32 = 14;

/// Eight values as they are stored.
#[derive(Clone, Copy, Default)]
struct Octet {
    index: [u16; 2],
    signs: u8,
    minus: bool,
}

struct Super {
    d: f16,
    scales: [u8; 16],
    octets: [Octet; 32],
}

impl Kind {
    /// Values with their signs taken away, and the signs.
    #[inline(always)]
    fn unsigned(&self, x: &[f32; 8], w: &[f32; 8]) -> ([f32; 8], u8) {
        if self.shift.is_some() {
            return (*x, 0);
        }
        let mut signs = (0..8).fold(0, |signs, i| signs | u8::from(x[i] < 0.0) << i);
        if self.even && signs.count_ones() % 2 == 1 {
            // The wrong sign goes where it costs least.
            let mut least = (f32::INFINITY, 0);
            for i in 0..8 {
                if w[i] * x[i] * x[i] < least.0 {
                    least = (w[i] * x[i] * x[i], i);
                }
            }
            signs ^= 1 << least.1;
        }
        let sign = |i: usize| if signs >> i & 1 == 1 { -x[i] } else { x[i] };
        (array(sign), signs)
    }

    /// Stores eights with one scale; Σ w x q and Σ w q² of all.
    #[inline(always)]
    fn run(&self, x: &[[f32; 8]], w: &[[f32; 8]], scale: f32, to: &mut [Octet]) -> (f32, f32) {
        let book = (self.book)();
        let inverse = 1.0 / scale;
        let (mut xq, mut qq) = (0.0, 0.0);
        let together = self.shift.unwrap_or(x.len());
        for (i, to) in to.chunks_mut(together).enumerate() {
            let (x, w) = (&x[i * together..], &w[i * together..]);
            let mut best = (f32::NEG_INFINITY, 0.0, 0.0);
            for minus in [false, true] {
                let delta = match (self.shift, minus) {
                    (None, false) => 0.0,
                    (None, true) => break,
                    (Some(_), false) => 1.0,
                    (Some(_), true) => -1.0,
                };
                let mut octets = [Octet::default(); 4];
                let (mut xe, mut ee) = (0.0, 0.0);
                for (i, octet) in octets[..to.len()].iter_mut().enumerate() {
                    let (values, signs) = self.unsigned(&x[i], &w[i]);
                    let values = values.map(|x| x * inverse);
                    (octet.signs, octet.minus) = (signs, minus);
                    let half = |x: &[f32; 8], i: usize| array(|k| x[4 * i + k]);
                    for part in 0..if self.fours { 2 } else { 1 } {
                        let (index, x, e) = if self.fours {
                            book.best::<4>(&half(&values, part), &half(&w[i], part), delta)
                        } else {
                            book.best::<8>(&values, &w[i], delta)
                        };
                        octet.index[part] = index;
                        xe += x;
                        ee += e;
                    }
                }
                if 2.0 * xe - ee > best.0 {
                    best = (2.0 * xe - ee, xe, ee);
                    to.copy_from_slice(&octets[..to.len()]);
                }
            }
            xq += best.1 * scale;
            qq += best.2;
        }
        (xq, qq)
    }

    /// The best scale of a run.
    #[inline(always)]
    fn scale(&self, x: &[[f32; 8]], w: &[[f32; 8]]) -> f32 {
        let far = farthest(x.as_flattened()).abs();
        if !(far > 1e-30 && far.is_finite()) {
            return 0.0;
        }
        let book = (self.book)();
        let last = book.levels[book.levels.len() - 1];
        let mut octets = [Octet::default(); 4];
        let mut best = (0.0, 0.0);
        for k in 0..CANDIDATES {
            let end = if self.shift.is_some() {
                1.0 + 0.1 * k as f32
            } else {
                0.7 + 0.05 * k as f32
            };
            let (xq, qq) = self.run(x, w, far / (last * end), &mut octets[..x.len()]);
            if xq > 0.0 && xq * xq > best.0 * qq {
                best = (xq * xq / qq, xq / qq);
            }
        }
        best.1
    }

    /// A block of 256.
    #[inline(always)]
    fn block(&self, x: &[f32; 256], w: Option<&[f32; 256]>) -> Super {
        let ones = [1.0; 256];
        let (x, _) = x.as_chunks::<8>();
        let (w, _) = w.unwrap_or(&ones).as_chunks::<8>();
        let (eights, runs) = (self.run / 8, 256 / self.run);
        let of = |j: usize| j * eights..(j + 1) * eights;
        let best: [f32; 16] = array(|j| match j < runs {
            true => self.scale(&x[of(j)], &w[of(j)]),
            false => 0.0,
        });
        let factor = |s: f32| (2.0 * s + 1.0) * self.unit;
        let mut d = half(farthest(&best) / factor(self.top));
        let mut found = Super {
            d,
            scales: [0; 16],
            octets: [Octet::default(); 32],
        };
        let (mut most, mut wanted) = (0.0, best);
        for _ in 0..2 {
            if d.to_f32() == 0.0 {
                break;
            }
            let mut octets = [Octet::default(); 32];
            let mut scales = [0; 16];
            let (mut total, mut xq, mut qq) = (0.0, 0.0, 0.0);
            for j in 0..runs {
                let near = round((wanted[j] / (d.to_f32() * self.unit) - 1.0) * 0.5);
                let mut chosen = (f32::NEG_INFINITY, [0.0; 2]);
                for s in [near - 1.0, near, near + 1.0] {
                    let s = s.max(0.0).min(self.top);
                    let scale = d.to_f32() * factor(s);
                    let mut tried = [Octet::default(); 4];
                    let tried = &mut tried[..eights];
                    let (x, q) = self.run(&x[of(j)], &w[of(j)], scale, tried);
                    let gain = scale * (2.0 * x - scale * q);
                    if gain > chosen.0 {
                        chosen = (gain, [factor(s) * x, factor(s) * factor(s) * q]);
                        scales[j] = s as u8;
                        wanted[j] = scale;
                        octets[of(j)].copy_from_slice(tried);
                    }
                }
                total += chosen.0;
                xq += chosen.1[0];
                qq += chosen.1[1];
            }
            if total > most {
                most = total;
                found = Super { d, scales, octets };
            }
            d = half(if qq > 0.0 { xq / qq } else { 0.0 });
        }
        found
    }
}

/// A codebook made at its first use.
macro_rules! book {
    ($grid:expr) => {{
        fn book() -> &'static Book {
            static BOOK: OnceLock<Book> = OnceLock::new();
            BOOK.get_or_init(|| Book::new(&$grid))
        }
        book
    }};
}

const EIGHTS: Kind = Kind {
    book: book!(grids::IQ2_XXS),
    fours: false,
    even: true,
    shift: None,
    run: 32,
    top: 15.0,
    unit: 0.125,
};
const IQ2_XS: Kind = Kind {
    book: book!(grids::IQ2_XS),
    run: 16,
    ..EIGHTS
};
const IQ2_S: Kind = Kind {
    book: book!(grids::IQ2_S),
    run: 16,
    even: false,
    ..EIGHTS
};
const IQ3_XXS: Kind = Kind {
    book: book!(grids::IQ3_XXS),
    fours: true,
    unit: 0.25,
    ..EIGHTS
};
const IQ3_S: Kind = Kind {
    book: book!(grids::IQ3_S),
    fours: true,
    even: false,
    unit: 1.0,
    ..EIGHTS
};
const IQ1_S: Kind = Kind {
    book: book!(grids::IQ1),
    even: false,
    shift: Some(4),
    top: 7.0,
    ..EIGHTS
};
const IQ1_M: Kind = Kind {
    run: 16,
    shift: Some(1),
    ..IQ1_S
};

/// Four times seven signs and a scale in the top four bits.
#[inline(always)]
fn signs_and_scale(octets: &[Octet], scale: u8) -> [u8; 4] {
    let signs = octets.iter().enumerate();
    let signs = signs.fold(0, |word, (i, o)| word | u32::from(o.signs & 127) << (7 * i));
    (signs | u32::from(scale) << 28).to_le_bytes()
}

/// Nibbles, the low one first.
#[inline(always)]
fn pack(scales: &[u8], out: &mut [u8]) {
    for (scales, out) in scales.as_chunks::<2>().0.iter().zip(out) {
        *out = scales[0] | scales[1] << 4;
    }
}

pub(super) fn iq2_xxs(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 66]) {
    let found = EIGHTS.block(x, w);
    put(out, 0, found.d);
    for (j, octets) in found.octets.as_chunks::<4>().0.iter().enumerate() {
        let out = &mut out[2 + 8 * j..][..8];
        (0..4).for_each(|i| out[i] = octets[i].index[0] as u8);
        out[4..].copy_from_slice(&signs_and_scale(octets, found.scales[j]));
    }
}

pub(super) fn iq2_xs(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 74]) {
    let found = IQ2_XS.block(x, w);
    put(out, 0, found.d);
    for (octet, out) in found.octets.iter().zip(out[2..].as_chunks_mut().0) {
        *out = (octet.index[0] | u16::from(octet.signs & 127) << 9).to_le_bytes();
    }
    pack(&found.scales, &mut out[66..]);
}

pub(super) fn iq2_s(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 82]) {
    let found = IQ2_S.block(x, w);
    put(out, 0, found.d);
    out[66..74].fill(0);
    for (o, octet) in found.octets.iter().enumerate() {
        let [low, high] = octet.index[0].to_le_bytes();
        (out[2 + o], out[34 + o]) = (low, octet.signs);
        out[66 + o / 4] |= high << (2 * (o % 4));
    }
    pack(&found.scales, &mut out[74..]);
}

pub(super) fn iq3_xxs(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 98]) {
    let found = IQ3_XXS.block(x, w);
    put(out, 0, found.d);
    for (j, octets) in found.octets.as_chunks::<4>().0.iter().enumerate() {
        for (i, octet) in octets.iter().enumerate() {
            let at = 2 + 8 * j + 2 * i;
            (out[at], out[at + 1]) = (octet.index[0] as u8, octet.index[1] as u8);
        }
        out[66 + 4 * j..][..4].copy_from_slice(&signs_and_scale(octets, found.scales[j]));
    }
}

pub(super) fn iq3_s(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 110]) {
    let found = IQ3_S.block(x, w);
    put(out, 0, found.d);
    out[66..74].fill(0);
    for (o, octet) in found.octets.iter().enumerate() {
        for (i, index) in octet.index.iter().enumerate() {
            let at = 2 * o + i;
            out[2 + at] = *index as u8;
            out[66 + at / 8] |= ((index >> 8) as u8) << (at % 8);
        }
        out[74 + o] = octet.signs;
    }
    pack(&found.scales[..8], &mut out[106..]);
}

pub(super) fn iq1_s(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 50]) {
    let found = IQ1_S.block(x, w);
    put(out, 0, found.d);
    for (j, octets) in found.octets.as_chunks::<4>().0.iter().enumerate() {
        let mut high = u16::from(found.scales[j]) << 12 | u16::from(octets[0].minus) << 15;
        for (i, octet) in octets.iter().enumerate() {
            out[2 + 4 * j + i] = octet.index[0] as u8;
            high |= (octet.index[0] >> 8) << (3 * i);
        }
        out[34 + 2 * j..][..2].copy_from_slice(&high.to_le_bytes());
    }
}

pub(super) fn iq1_m(x: &[f32; 256], w: Option<&[f32; 256]>, out: &mut [u8; 56]) {
    let found = IQ1_M.block(x, w);
    out[32..].fill(0);
    for (o, octet) in found.octets.iter().enumerate() {
        let [low, high] = octet.index[0].to_le_bytes();
        out[o] = low;
        out[32 + o / 2] |= (high | u8::from(octet.minus) << 3) << (4 * (o % 2));
    }
    let d = found.d.to_bits();
    for (i, scales) in found.scales.as_chunks::<4>().0.iter().enumerate() {
        let fields = scales.iter().enumerate();
        let word = fields.fold(0, |word, (k, s)| word | u16::from(*s) << (3 * k));
        let word = word | (d >> (4 * i) & 15) << 12;
        out[48 + 2 * i..][..2].copy_from_slice(&word.to_le_bytes());
    }
}
