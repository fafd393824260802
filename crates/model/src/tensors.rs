//! Reading weights by name: shapes are checked against the configuration, and a tensor that nothing
//! reads is an error.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use files::{Blob, Tensor, Tensors};
use kernels::Type;

use crate::arch::Arch;
use crate::config::{Config, Experts};
use crate::error::{Error, Result};
use crate::expected::check_shape;
use crate::names::{ExpertNames, FUSED_EACH, FUSED_ENDS, Names, OPT_PROJECT, Stack};
use crate::weights::{Gated, Layer, Linear, Mlp, Moe, Norm};

/// The tensors of a file, under the names of its format, and which of them were read.
pub(crate) struct Reader<'a> {
    tensors: &'a Tensors,
    names: &'a Names,
    config: &'a Config,
    prefix: &'static str,
    read: RefCell<HashSet<String>>,
}

/// Whether a projection has a bias.
#[derive(Clone, Copy, PartialEq)]
enum Bias {
    None,
    Optional,
    Needed,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(tensors: &'a Tensors, names: &'a Names, config: &'a Config) -> Reader<'a> {
        Reader {
            tensors,
            names,
            config,
            prefix: names.prefix_in(tensors),
            read: RefCell::default(),
        }
    }

    /// A matrix without a bias: a table of one row for each entry, or a projection beside the layers.
    pub(crate) fn table(&self, stem: &str, rows: usize, cols: usize) -> Result<Linear> {
        self.linear(stem, rows, cols, Bias::None)
    }

    /// The matrices from the embedding table to the hidden size and back, where these are not one.
    pub(crate) fn projections(&self) -> Result<Option<[Linear; 2]>> {
        let (d, width) = (self.config.hidden, self.config.table());
        if d == width {
            return Ok(None);
        }
        let [inward, outward] = OPT_PROJECT;
        Ok(Some([
            self.table(inward, d, width)?,
            self.table(outward, width, d)?,
        ]))
    }

    /// The head. Of a model whose head is the embedding table, a second copy in the file counts as
    /// read.
    pub(crate) fn head(&self, embed: &Linear) -> Result<Linear> {
        let c = self.config;
        let bare = format!("{}.weight", self.names.head);
        if c.tied {
            let mut read = self.read.borrow_mut();
            read.insert(format!("{}{bare}", self.prefix));
            read.insert(bare);
            return Ok(embed.clone());
        }
        match self.tensors.get(&bare) {
            Some(t) => {
                self.read.borrow_mut().insert(bare);
                check_shape(t, &[c.vocab, c.table()])?;
                Linear::new(storage(t)?, c.vocab, c.table(), t.data.clone())
            }
            None => self.table(self.names.head, c.vocab, c.table()),
        }
    }

    /// One block.
    pub(crate) fn layer(&self, i: usize) -> Result<Layer> {
        let c = self.config;
        let (d, q, kv) = (c.hidden, c.q_dim(), c.kv_dim());
        let name = |part: usize| self.inside(i, self.names.parts[part]);
        let bias = self.bias(c.attention_bias);
        Ok(Layer {
            attn_norm: self.norm(&name(0))?,
            q: self.linear(&name(1), q, d, bias)?,
            k: self.linear(&name(2), kv, d, bias)?,
            v: self.linear(&name(3), kv, d, bias)?,
            o: self.linear(&name(4), d, q, bias)?,
            mlp_norm: self.norm(&name(5))?,
            mlp: self.mlp(i)?,
        })
    }

    /// The norm of this name.
    pub(crate) fn norm(&self, stem: &str) -> Result<Norm> {
        let d = self.config.hidden;
        let values = |end: &str| -> Result<Arc<[f32]>> {
            let t = self.get(&format!("{stem}.{end}"), &[d])?;
            Ok(vector(t, Some(d))?.into())
        };
        Ok(match (self.config.arch, self.config.norm_affine) {
            (Arch::Opt, true) => Norm::Layer {
                gain: values("weight")?,
                bias: values("bias")?,
            },
            (Arch::Opt, false) => Norm::Layer {
                gain: vec![1.0; d].into(),
                bias: vec![0.0; d].into(),
            },
            (Arch::Llama | Arch::Llama4, _) => Norm::Rms(values("weight")?),
        })
    }

    /// A tensor that nothing reads might change the result: an error that names it.
    pub(crate) fn refuse_the_rest(&self) -> Result<()> {
        let (read, names) = (self.read.borrow(), self.names);
        let known = |name: &str| {
            read.contains(name)
                || names.extra.contains(&name)
                || names.ignored.iter().any(|end| name.ends_with(end))
                || !self.prefix.is_empty() && names.aside.iter().any(|p| name.starts_with(p))
        };
        match self.tensors.iter().find(|t| !known(&t.name)) {
            Some(t) => Err(Error::NotImplemented(format!("tensor `{}`", t.name))),
            None => Ok(()),
        }
    }

    fn inside(&self, layer: usize, part: &str) -> String {
        format!("{}{layer}.{part}", self.names.block)
    }

    fn bias(&self, on: bool) -> Bias {
        match (
            on || self.config.arch == Arch::Opt,
            self.names.bias_optional,
        ) {
            (false, _) => Bias::None,
            (true, false) => Bias::Needed,
            (true, true) => Bias::Optional,
        }
    }

    fn mlp(&self, i: usize) -> Result<Mlp> {
        let c = self.config;
        if let Some(e) = c.experts_of(i) {
            let names = self.names.experts.as_ref();
            let names = names.ok_or_else(|| Error::NotImplemented("experts here".into()))?;
            return Ok(Mlp::Experts(Box::new(self.moe(i, e, names)?)));
        }
        let (d, f) = (c.hidden, c.ffn);
        let (name, bias) = (|part: usize| self.names.parts[part], self.bias(c.mlp_bias));
        if c.arch == Arch::Opt {
            let (up, down) = (self.inside(i, name(7)), self.inside(i, name(8)));
            return Ok(Mlp::Plain {
                up: self.linear(&up, f, d, bias)?,
                down: self.linear(&down, d, f, bias)?,
            });
        }
        let parts = [name(6), name(7), name(8)];
        Ok(Mlp::Gated(self.gated(i, parts, f, bias)?))
    }

    fn gated(&self, i: usize, parts: [&str; 3], f: usize, bias: Bias) -> Result<Gated> {
        let d = self.config.hidden;
        let [gate, up, down] = parts.map(|part| self.inside(i, part));
        Ok(Gated {
            gate: self.linear(&gate, f, d, bias)?,
            up: self.linear(&up, f, d, bias)?,
            down: self.linear(&down, d, f, bias)?,
        })
    }

    fn moe(&self, i: usize, e: &Experts, names: &ExpertNames) -> Result<Moe> {
        let d = self.config.hidden;
        let router = self.inside(i, names.router);
        let shared = match e.shared {
            true => Some(self.gated(i, names.shared, e.ffn, Bias::None)?),
            false => None,
        };
        Ok(Moe {
            router: self.linear(&router, e.count, d, Bias::None)?,
            experts: match &names.stack {
                Stack::Apart(parts) => self.experts_apart(i, e, parts)?,
                Stack::Fused(parts) => self.experts_fused(i, e, parts)?,
                Stack::Each(before, parts) => {
                    let own = |part: usize, n: usize| format!("{before}{n}.{}", parts[part]);
                    self.experts_each(i, e, own)?
                }
            },
            shared,
        })
    }

    /// Experts as slices of the file, or as tensors of their own, as files of 2023 have them: the
    /// names of an MLP with the expert's number.
    fn experts_apart(&self, i: usize, e: &Experts, parts: &[&str; 3]) -> Result<Vec<Gated>> {
        let d = self.config.hidden;
        let own = |part: usize, n: usize| format!("{}.{n}", self.names.parts[6 + part]);
        let first = format!("{}{}.weight", self.prefix, self.inside(i, &own(0, 0)));
        if self.tensors.get(&first).is_some() {
            return self.experts_each(i, e, own);
        }
        let stack = |part: usize, rows, cols| {
            let name = format!("{}.weight", self.inside(i, parts[part]));
            let t = self.get(&name, &[e.count, rows, cols])?;
            (0..e.count)
                .map(|n| slice(t, n, e.count, rows, cols))
                .collect::<Result<Vec<_>>>()
        };
        let (gates, ups) = (stack(0, e.ffn, d)?, stack(1, e.ffn, d)?);
        let parts = gates.into_iter().zip(ups).zip(stack(2, d, e.ffn)?);
        Ok(parts
            .map(|((gate, up), down)| Gated { gate, up, down })
            .collect())
    }

    /// Experts as tensors of their own; `name` is asked with a part (gate, up, down) and a number.
    fn experts_each(
        &self,
        i: usize,
        e: &Experts,
        name: impl Fn(usize, usize) -> String,
    ) -> Result<Vec<Gated>> {
        let expert = |n: usize| {
            let parts = [name(0, n), name(1, n), name(2, n)];
            self.gated(i, [&parts[0], &parts[1], &parts[2]], e.ffn, Bias::None)
        };
        (0..e.count).map(expert).collect()
    }

    /// Experts whose matrices lie with their columns as rows: copies of them, turned round. Or as
    /// tensors of their own, which programs that quantise make of them.
    fn experts_fused(&self, i: usize, e: &Experts, parts: &[&str; 2]) -> Result<Vec<Gated>> {
        let own = |part: usize, n: usize| format!("{FUSED_EACH}{n}.{}", FUSED_ENDS[part]);
        let first = format!("{}{}.weight", self.prefix, self.inside(i, &own(0, 0)));
        if self.tensors.get(&first).is_some() {
            return self.experts_each(i, e, own);
        }
        let (d, f) = (self.config.hidden, e.ffn);
        let stack = |part: usize, shape: [usize; 3]| self.get(&self.inside(i, parts[part]), &shape);
        let both = stack(0, [e.count, d, 2 * f])?;
        let down = stack(1, [e.count, f, d])?;
        let expert = |n: usize| {
            let (ty, rows) = turned(both, n, d, 2 * f)?;
            let half = rows.len() / 2;
            let part = |range| {
                let data = rows.slice(range).ok_or_else(|| too_short(both))?;
                Linear::new(ty, f, d, data)
            };
            let (ty_down, rows_down) = turned(down, n, f, d)?;
            Ok(Gated {
                gate: part(0..half)?,
                up: part(half..2 * half)?,
                down: Linear::new(ty_down, d, f, rows_down)?,
            })
        };
        (0..e.count).map(expert).collect()
    }

    fn linear(&self, stem: &str, rows: usize, cols: usize, bias: Bias) -> Result<Linear> {
        let t = self.get(&format!("{stem}.weight"), &[rows, cols])?;
        let mut l = Linear::new(storage(t)?, rows, cols, t.data.clone())?;
        let name = format!("{stem}.bias");
        let there = self
            .tensors
            .get(&format!("{}{name}", self.prefix))
            .is_some();
        if bias == Bias::Needed || bias == Bias::Optional && there {
            l.bias = Some(vector(self.get(&name, &[rows])?, Some(rows))?.into());
        }
        Ok(l)
    }

    /// The tensor of a name, which is then read.
    fn get(&self, name: &str, shape: &[usize]) -> Result<&'a Tensor> {
        let name = format!("{}{name}", self.prefix);
        let t = self.tensors.get(&name).ok_or_else(|| Error::Tensor {
            name: name.clone(),
            what: "is missing".into(),
        })?;
        check_shape(t, shape)?;
        self.read.borrow_mut().insert(name);
        Ok(t)
    }
}

/// The `n`-th of `count` matrices of a tensor.
fn slice(t: &Tensor, n: usize, count: usize, rows: usize, cols: usize) -> Result<Linear> {
    let size = t.data.len() / count;
    let data = t.data.slice(n * size..(n + 1) * size);
    let data = data.ok_or_else(|| too_short(t))?;
    Linear::new(storage(t)?, rows, cols, data)
}

/// The `n`-th matrix `[rows, cols]` of a tensor of floats as bytes of `[cols, rows]`.
fn turned(t: &Tensor, n: usize, rows: usize, cols: usize) -> Result<(Type, Blob)> {
    let ty = storage(t)?;
    let width = ty.block_bytes();
    if !ty.is_float() {
        return Err(Error::Tensor {
            name: t.name.clone(),
            what: format!("has storage type {ty}, whose blocks cannot be turned round"),
        });
    }
    let size = rows * cols * width;
    let from = t.data.get(n * size..(n + 1) * size);
    let from = from.ok_or_else(|| too_short(t))?;
    let mut to = Vec::with_capacity(size);
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            to.extend_from_slice(&from[at..at + width]);
        }
    }
    Ok((ty, Blob::from_vec(to)))
}

fn too_short(t: &Tensor) -> Error {
    Error::Tensor {
        name: t.name.clone(),
        what: "is too short for its shape".into(),
    }
}

/// A small tensor as f32: norm gains, biases, frequency divisors.
pub(crate) fn vector(t: &Tensor, len: Option<usize>) -> Result<Vec<f32>> {
    let wrong = |what: String| Error::Tensor {
        name: t.name.clone(),
        what,
    };
    let [n] = t.shape[..] else {
        return Err(wrong(format!(
            "has shape {:?}; one axis is needed",
            t.shape
        )));
    };
    if len.is_some_and(|len| len != n) {
        return Err(wrong(format!(
            "has {n} values; {} are needed",
            len.unwrap_or_default()
        )));
    }
    let mut out = vec![0.0; n];
    kernels::dequantize(storage(t)?, &t.data, &mut out)?;
    Ok(out)
}

/// The kernels' storage type of a file's tensor.
pub(crate) fn storage(t: &Tensor) -> Result<Type> {
    let name = t.dtype.name();
    let found = Type::ALL.iter().copied().find(|ty| ty.name() == name);
    found.ok_or_else(|| Error::Tensor {
        name: t.name.clone(),
        what: format!("has storage type {name}, which this version cannot compute with"),
    })
}
