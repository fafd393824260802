//! What shape every tensor of a model must have, by its configuration.
//!
//! Files are compared with it before anything of them is put together in memory or read through:
//! a checkpoint that says one thing in its configuration and another in its tensors costs nothing.

use files::{Tensor, Tensors};

use crate::arch::Arch;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::names::{FUSED_EACH, FUSED_ENDS, Names, OPT_PROJECT, Stack};
use crate::weights::POSITION_OFFSET;

/// Is told of a tensor by its name in the file and its shape, and says whether it is there.
pub(crate) type See<'a> = dyn FnMut(&str, &[usize]) -> Result<bool> + 'a;

/// Tells of every tensor that a file of these names may have. Layers and experts end with the first
/// that has no tensor: a configuration may claim any number of them.
pub(crate) fn each(
    config: &Config,
    names: &Names,
    tensors: &Tensors,
    see: &mut See<'_>,
) -> Result<()> {
    let c = config;
    let mut walk = Walk {
        prefix: names.prefix_in(tensors),
        see,
    };
    walk.matrix(names.embed, c.vocab, c.table())?;
    if c.table() != c.hidden {
        walk.matrix(OPT_PROJECT[0], c.hidden, c.table())?;
        walk.matrix(OPT_PROJECT[1], c.table(), c.hidden)?;
    }
    if let Some(positions) = names.positions {
        let rows = c.context.saturating_add(POSITION_OFFSET);
        walk.matrix(positions, rows, c.hidden)?;
    }
    walk.pair(names.norm, &[c.hidden], c.hidden)?;
    if !c.tied {
        walk.matrix(names.head, c.vocab, c.table())?;
        // The head's name may go without the prefix.
        (walk.see)(&format!("{}.weight", names.head), &[c.vocab, c.table()])?;
    }
    for i in 0..c.layers {
        if !walk.layer(c, names, i)? {
            break;
        }
    }
    Ok(())
}

/// Compares a file's tensors with what its configuration calls for. What is missing, and what is
/// there beside it, is for the reader to say.
///
/// # Errors
/// The first tensor that has another shape, with both.
pub(crate) fn check(config: &Config, names: &Names, tensors: &Tensors) -> Result<()> {
    each(config, names, tensors, &mut |name, shape| {
        let found = tensors.get(name);
        found.map_or(Ok(()), |t| check_shape(t, shape))?;
        Ok(found.is_some())
    })
}

/// An error unless a tensor has this shape.
pub(crate) fn check_shape(t: &Tensor, shape: &[usize]) -> Result<()> {
    match t.shape == shape {
        true => Ok(()),
        false => Err(Error::Tensor {
            name: t.name.clone(),
            what: format!("has shape {:?}; the configuration says {shape:?}", t.shape),
        }),
    }
}

struct Walk<'a, 'b> {
    prefix: &'static str,
    see: &'a mut See<'b>,
}

impl Walk<'_, '_> {
    fn whole(&mut self, name: &str, shape: &[usize]) -> Result<bool> {
        (self.see)(&format!("{}{name}", self.prefix), shape)
    }

    /// A weight, and a bias of so many values.
    fn pair(&mut self, stem: &str, weight: &[usize], bias: usize) -> Result<bool> {
        let found = self.whole(&format!("{stem}.weight"), weight)?;
        Ok(self.whole(&format!("{stem}.bias"), &[bias])? || found)
    }

    fn matrix(&mut self, stem: &str, rows: usize, cols: usize) -> Result<bool> {
        self.pair(stem, &[rows, cols], rows)
    }

    /// gate, up and down.
    fn gated(&mut self, [gate, up, down]: [String; 3], d: usize, f: usize) -> Result<bool> {
        let found = [
            self.matrix(&gate, f, d)?,
            self.matrix(&up, f, d)?,
            self.matrix(&down, d, f)?,
        ];
        Ok(found.contains(&true))
    }

    fn layer(&mut self, c: &Config, names: &Names, i: usize) -> Result<bool> {
        let (d, q, kv) = (c.hidden, c.q_dim(), c.kv_dim());
        let inside = |part: &str| format!("{}{i}.{part}", names.block);
        let part = |at: usize| inside(names.parts[at]);
        let mut found = self.pair(&part(0), &[d], d)?;
        found |= self.pair(&part(5), &[d], d)?;
        for (at, rows, cols) in [(1, q, d), (2, kv, d), (3, kv, d), (4, d, q)] {
            found |= self.matrix(&part(at), rows, cols)?;
        }
        let (Some(e), Some(experts)) = (c.experts_of(i), &names.experts) else {
            if c.arch != Arch::Opt {
                found |= self.matrix(&part(6), c.ffn, d)?;
            }
            found |= self.matrix(&part(7), c.ffn, d)?;
            found |= self.matrix(&part(8), d, c.ffn)?;
            return Ok(found);
        };
        found |= self.matrix(&inside(experts.router), e.count, d)?;
        if e.shared {
            found |= self.gated(experts.shared.map(inside), d, e.ffn)?;
        }
        match &experts.stack {
            Stack::Apart(parts) => {
                let shapes = [[e.ffn, d], [e.ffn, d], [d, e.ffn]];
                for (part, [rows, cols]) in parts.iter().zip(shapes) {
                    let name = inside(&format!("{part}.weight"));
                    found |= self.whole(&name, &[e.count, rows, cols])?;
                }
            }
            Stack::Fused([both, down]) => {
                found |= self.whole(&inside(both), &[e.count, d, 2 * e.ffn])?;
                found |= self.whole(&inside(down), &[e.count, e.ffn, d])?;
            }
            Stack::Each(..) => {}
        }
        // Files of 2023 have a tensor for each, and so have some of Llama 4.
        let own = |n: usize, at: usize| match &experts.stack {
            Stack::Apart(_) => inside(&format!("{}.{n}", names.parts[6 + at])),
            Stack::Fused(_) => inside(&format!("{FUSED_EACH}{n}.{}", FUSED_ENDS[at])),
            Stack::Each(before, ends) => inside(&format!("{before}{n}.{}", ends[at])),
        };
        for n in 0..e.count {
            if !self.gated([0, 1, 2].map(|at| own(n, at)), d, e.ffn)? {
                break;
            }
            found = true;
        }
        Ok(found)
    }
}
