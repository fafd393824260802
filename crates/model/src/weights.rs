//! The weights of a model: views of the mapped file, checked against the configuration.

use std::path::Path;
use std::sync::Arc;

use files::gguf::Gguf;
use files::hf::HfDir;
use files::llama2c::{self, Llama2c};
use files::meta::MetaDir;
use files::{Blob, Kind, Tensors};
use kernels::{Kernels, MAX_PARTS, Matrix, Rope, Type};

use crate::adapter::{Place, Target};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::expected;
use crate::names::{GGUF, META, Names};
use crate::repack;
use crate::tensors::Reader;

/// One weight matrix `[rows, cols]` with its bias: y = W x + b.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) ty: Type,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    data: Blob,
    pub(crate) bias: Option<Arc<[f32]>>,
}

impl Linear {
    pub(crate) fn new(ty: Type, rows: usize, cols: usize, data: Blob) -> Result<Linear> {
        let linear = Linear {
            ty,
            rows,
            cols,
            data,
            bias: None,
        };
        linear.matrix()?;
        Ok(linear)
    }

    fn bytes(&self) -> u64 {
        self.data.len() as u64
    }

    pub(crate) fn matrix(&self) -> Result<Matrix<'_>> {
        let (ty, rows, cols) = (self.ty, self.rows, self.cols);
        Ok(match self.data.parts().filter(|p| p.len() <= MAX_PARTS) {
            Some(parts) => Matrix::in_parts(ty, rows, cols, parts.iter().map(|p| &p[..]))?,
            None => Matrix::new(ty, rows, cols, &self.data)?,
        })
    }
}

/// A gated MLP, or one expert: y = Wdown(act(Wgate x) * Wup x).
#[derive(Debug, Clone)]
pub(crate) struct Gated {
    pub(crate) gate: Linear, // (ffn, hidden)
    pub(crate) up: Linear,   // (ffn, hidden)
    pub(crate) down: Linear, // (hidden, ffn)
}

/// A mixture of experts.
#[derive(Debug, Clone)]
pub(crate) struct Moe {
    pub(crate) router: Linear, // (experts, hidden)
    pub(crate) experts: Vec<Gated>,
    /// One that every token goes through.
    pub(crate) shared: Option<Gated>,
}

/// What stands between the second norm of a block and its residual stream.
#[derive(Debug, Clone)]
pub(crate) enum Mlp {
    Gated(Gated),
    /// y = Wdown act(Wup x)
    Plain {
        up: Linear,   // (ffn, hidden)
        down: Linear, // (hidden, ffn)
    },
    Experts(Box<Moe>),
}

/// A norm of rows; all (hidden).
#[derive(Debug, Clone)]
pub(crate) enum Norm {
    Rms(Arc<[f32]>),
    Layer { gain: Arc<[f32]>, bias: Arc<[f32]> },
}

/// One block.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Norm,
    pub(crate) q: Linear, // (heads * head_dim, hidden)
    pub(crate) k: Linear, // (kv_heads * head_dim, hidden)
    pub(crate) v: Linear, // (kv_heads * head_dim, hidden)
    pub(crate) o: Linear, // (hidden, heads * head_dim)
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: Mlp,
}

/// A model ready to run: configuration, weights, rotary table, and the kernels it runs on.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Its shape.
    pub config: Config,
    pub(crate) embed: Linear, // (vocab, table), which is hidden but in some OPTs
    /// Learned positions: the row of position p is p + 2.
    pub(crate) positions: Option<Linear>, // (context + 2, hidden)
    /// Where the table has another width: into the first layer, and out of the last.
    pub(crate) project: Option<[Linear; 2]>, // (hidden, table), (table, hidden)
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Option<Norm>,
    pub(crate) head: Linear, // (vocab, table); the table itself when tied
    pub(crate) rope: Rope,
    pub(crate) kernels: Arc<Kernels>,
}

/// Rows of a table of learned positions before that of position 0 (OPT's history).
pub(crate) const POSITION_OFFSET: usize = 2;

/// Opens a model file or directory, told apart by content.
pub fn open(path: &Path, kernels: Arc<Kernels>) -> Result<Weights> {
    match files::detect(path)? {
        Kind::Gguf => Weights::from_gguf(&Gguf::open(path)?, kernels),
        Kind::HfDir => Weights::from_hf(&HfDir::open(path)?, kernels),
        Kind::MetaDir => Weights::from_meta(&MetaDir::open(path)?, kernels),
        Kind::Llama2c => Weights::from_llama2c(&llama2c::open(path)?, kernels),
        kind => Err(cannot_open(path, kind)),
    }
}

/// What a file is that is no model.
pub(crate) fn cannot_open(path: &Path, kind: Kind) -> Error {
    let what = match kind {
        Kind::TorchZip => {
            "is a PyTorch checkpoint without its configuration; give the directory that has \
                           params.json or config.json beside it"
                .to_owned()
        }
        kind => format!(
            "is {}; this version opens GGUF files, llama2.c checkpoints, and the directories of \
             Hugging Face and Meta",
            kind.describe()
        ),
    };
    Error::Open {
        path: path.display().to_string(),
        what,
    }
}

impl Weights {
    /// The model in a GGUF. Nothing is copied but norms and biases.
    pub fn from_gguf(gguf: &Gguf, kernels: Arc<Kernels>) -> Result<Weights> {
        Weights::load(Config::from_gguf(gguf)?, &gguf.tensors, &GGUF, kernels)
    }

    /// The model in a Hugging Face directory. Nothing is copied but norms, biases, matrices that are
    /// quantised in a way of their own (see `repack`), and the experts of Llama 4, which lie there with
    /// their columns as rows.
    pub fn from_hf(dir: &HfDir, kernels: Arc<Kernels>) -> Result<Weights> {
        let config = Config::from_hf(&dir.config)?;
        let names = Names::of_hf(&config);
        repack::check(&dir.config, &config, names, &dir.tensors)?;
        let tensors = repack::from_hf(&dir.config, &dir.tensors, kernels.threads())?;
        Weights::load(config, &tensors, names, kernels)
    }

    /// The model in a directory of Meta's. Nothing is copied but norms and what [`MetaDir`] joined.
    pub fn from_meta(dir: &MetaDir, kernels: Arc<Kernels>) -> Result<Weights> {
        let config = Config::from_meta(&dir.params, &dir.tensors)?;
        Weights::load(config, &dir.tensors, &META, kernels)
    }

    /// The model in a llama2.c checkpoint. Nothing is copied but norms and, of version 2, matrices.
    pub fn from_llama2c(file: &Llama2c, kernels: Arc<Kernels>) -> Result<Weights> {
        let config = Config::from_llama2c(&file.config)?;
        let tensors = repack::from_llama2c(file.config.group, &file.tensors, kernels.threads())?;
        Weights::load(config, &tensors, &META, kernels)
    }

    fn load(
        config: Config,
        tensors: &Tensors,
        names: &Names,
        kernels: Arc<Kernels>,
    ) -> Result<Weights> {
        let c = &config;
        expected::check(c, names, tensors)?;
        let reader = Reader::new(tensors, names, c);
        let embed = reader.table(names.embed, c.vocab, c.table())?;
        let positions = names
            .positions
            .map(|stem| reader.table(stem, c.context.saturating_add(POSITION_OFFSET), c.hidden))
            .transpose()?;
        let layers = (0..c.layers)
            .map(|i| reader.layer(i))
            .collect::<Result<_>>()?;
        let project = reader.projections()?;
        let norm = c
            .final_norm()
            .then(|| reader.norm(names.norm))
            .transpose()?;
        let head = reader.head(&embed)?;
        reader.refuse_the_rest()?;
        Ok(Weights {
            embed,
            positions,
            project,
            layers,
            norm,
            head,
            rope: config.rope.table(),
            kernels,
            config,
        })
    }

    /// The kernels that this model runs on.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The same weights on other kernels (level, compute mode, threads). Copies nothing.
    pub fn with_kernels(&self, kernels: Arc<Kernels>) -> Weights {
        Weights {
            kernels,
            ..self.clone()
        }
    }

    /// All matrices, the embedding table counted once.
    fn matrices(&self) -> impl Iterator<Item = &Linear> {
        let head = (!self.config.tied).then_some(&self.head);
        let project = self.project.iter().flatten();
        let tables = [&self.embed].into_iter().chain(&self.positions);
        let tables = tables.chain(project).chain(head);
        self.layers.iter().flat_map(Layer::matrices).chain(tables)
    }

    /// Bytes of all weight matrices, the embedding table counted once.
    pub fn bytes(&self) -> u64 {
        self.matrices().map(Linear::bytes).sum()
    }

    /// Bytes of weight matrices that are in memory already, because they were joined or repacked
    /// when the model was opened. The others are views of files.
    pub fn bytes_held(&self) -> u64 {
        let held = self.matrices().filter(|l| !l.data.is_mapped());
        held.map(Linear::bytes).sum()
    }

    /// Bytes of weights that decoding one token reads: everything but the embedding table, which
    /// counts only where it is the head too, and of the experts as many as a token goes through.
    pub fn bytes_per_token(&self) -> u64 {
        let layers = (0..).zip(&self.layers).map(|(i, layer)| {
            let all: u64 = layer.matrices().into_iter().map(Linear::bytes).sum();
            let (Mlp::Experts(moe), Some(e)) = (&layer.mlp, self.config.experts_of(i)) else {
                return all;
            };
            let experts: u64 = moe
                .experts
                .iter()
                .flat_map(Gated::matrices)
                .map(Linear::bytes)
                .sum();
            let idle = (e.count - e.used) as u64;
            all - experts / e.count as u64 * idle
        });
        let project = self.project.iter().flatten().map(Linear::bytes);
        layers.sum::<u64>() + project.sum::<u64>() + self.head.bytes()
    }

    /// The storage types of the matrices, with the bytes in each, largest first.
    pub fn types(&self) -> Vec<(Type, u64)> {
        let mut sums: Vec<(Type, u64)> = Vec::new();
        for l in self.matrices() {
            match sums.iter_mut().find(|(t, _)| *t == l.ty) {
                Some((_, n)) => *n += l.bytes(),
                None => sums.push((l.ty, l.bytes())),
            }
        }
        sums.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        sums
    }

    /// `[out, in]` of one projection; `None` if there is no such layer, or the layer has none:
    /// experts cannot be adapted, and OPT has no gate.
    pub fn shape_of(&self, layer: usize, target: Target) -> Option<(usize, usize)> {
        self.config.shape_of(Place::Layer(layer, target))
    }

    /// The matrix that an adapter may change.
    pub(crate) fn linear(&self, place: Place) -> Option<&Linear> {
        match place {
            Place::Layer(layer, target) => self.layers.get(layer)?.target(target),
            Place::Embed => Some(&self.embed),
            Place::Head => Some(&self.head),
        }
    }
}

impl Gated {
    fn matrices(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl Layer {
    fn matrices(&self) -> Vec<&Linear> {
        let mut all = vec![&self.q, &self.k, &self.v, &self.o];
        match &self.mlp {
            Mlp::Gated(g) => all.extend(g.matrices()),
            Mlp::Plain { up, down } => all.extend([up, down]),
            Mlp::Experts(moe) => {
                let gated = moe.experts.iter().chain(&moe.shared);
                all.push(&moe.router);
                all.extend(gated.flat_map(Gated::matrices));
            }
        }
        all
    }

    fn target(&self, target: Target) -> Option<&Linear> {
        Some(match (target, &self.mlp) {
            (Target::Q, _) => &self.q,
            (Target::K, _) => &self.k,
            (Target::V, _) => &self.v,
            (Target::O, _) => &self.o,
            (Target::Gate, Mlp::Gated(g)) => &g.gate,
            (Target::Up, Mlp::Gated(g)) => &g.up,
            (Target::Down, Mlp::Gated(g)) => &g.down,
            (Target::Up, Mlp::Plain { up, .. }) => up,
            (Target::Down, Mlp::Plain { down, .. }) => down,
            (Target::Gate, Mlp::Plain { .. }) | (_, Mlp::Experts(_)) => return None,
        })
    }
}
