//! What formats call the tensors of a model, as tables.

use files::Tensors;
use kernels::RopeLayout;

use crate::arch::Arch;
use crate::config::Config;

/// The names of one format and architecture, without `.weight` and `.bias`.
pub(crate) struct Names {
    /// Before all names (the head's may go without), if the file has the embedding table under such
    /// a name.
    pub(crate) prefix: &'static str,
    pub(crate) embed: &'static str,
    /// Learned positions.
    pub(crate) positions: Option<&'static str>,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
    /// Before the layer number.
    pub(crate) block: &'static str,
    /// attn_norm, q, k, v, o, mlp_norm, gate, up, down
    pub(crate) parts: [&'static str; 9],
    pub(crate) experts: Option<ExpertNames>,
    /// Whole names that are read elsewhere or change nothing.
    pub(crate) extra: &'static [&'static str],
    /// Ends of names that change nothing.
    pub(crate) ignored: &'static [&'static str],
    /// Beginnings of the names of other models in the file, which texts do not go through.
    pub(crate) aside: &'static [&'static str],
    /// Whether a biased block may leave out the bias of single projections.
    pub(crate) bias_optional: bool,
    /// How the rows of rotary heads lie.
    pub(crate) rotary: RopeLayout,
}

impl Names {
    /// Those of transformers' models.
    pub(crate) fn of_hf(config: &Config) -> &'static Names {
        match config.arch {
            Arch::Llama if config.experts.is_some() => &HF_MIXTRAL,
            Arch::Llama => &HF,
            Arch::Llama4 => &HF_LLAMA4,
            Arch::Opt => &HF_OPT,
        }
    }

    /// What stands before the names in this file.
    pub(crate) fn prefix_in(&self, tensors: &Tensors) -> &'static str {
        match tensors.get(&format!("{}{}.weight", self.prefix, self.embed)) {
            Some(_) => self.prefix,
            None => "",
        }
    }
}

/// The names of a mixture of experts.
pub(crate) struct ExpertNames {
    pub(crate) router: &'static str,
    /// gate, up, down of the expert that is always used; empty where no model has one.
    pub(crate) shared: [&'static str; 3],
    pub(crate) stack: Stack,
}

/// How the experts of a layer lie in the file.
pub(crate) enum Stack {
    /// gate, up, down, each `[experts, out, in]`.
    Apart([&'static str; 3]),
    /// gate and up in one, and down, each `[experts, in, out]`; names that are whole.
    Fused([&'static str; 2]),
    /// A tensor for each: what stands before its number, and gate, up, down behind it.
    Each(&'static str, [&'static str; 3]),
}

/// What stands before an expert's number where a file has a tensor for each in place of
/// [`Stack::Fused`], as programs that quantise Llama 4 write it.
pub(crate) const FUSED_EACH: &str = "feed_forward.experts.";

/// gate, up and down behind that number.
pub(crate) const FUSED_ENDS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// gate, up and down of all experts of a layer, in a GGUF.
pub(crate) const GGUF_EXPERTS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

/// llama.cpp's `gguf-py` constants for the architectures `llama` and `llama4`.
pub(crate) const GGUF: Names = Names {
    prefix: "",
    embed: "token_embd",
    positions: None,
    norm: "output_norm",
    head: "output",
    block: "blk.",
    parts: [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ],
    experts: Some(ExpertNames {
        router: "ffn_gate_inp",
        shared: ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
        stack: Stack::Apart(GGUF_EXPERTS),
    }),
    extra: &[
        "rope_freqs.weight",
        "rope_factors_short.weight",
        "rope_factors_long.weight",
    ],
    ignored: &[".attn_rot_embd.weight"],
    aside: &[],
    bias_optional: true,
    rotary: RopeLayout::Interleaved,
};

/// transformers' LlamaForCausalLM.
pub(crate) const HF: Names = Names {
    prefix: "",
    embed: "model.embed_tokens",
    positions: None,
    norm: "model.norm",
    head: "lm_head",
    block: "model.layers.",
    parts: [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    experts: None,
    extra: &[],
    ignored: &[".self_attn.rotary_emb.inv_freq"],
    aside: &[],
    bias_optional: false,
    rotary: RopeLayout::HalfSplit,
};

/// transformers' MixtralForCausalLM.
pub(crate) const HF_MIXTRAL: Names = Names {
    experts: Some(ExpertNames {
        router: "block_sparse_moe.gate",
        shared: [""; 3],
        stack: Stack::Each("block_sparse_moe.experts.", ["w1", "w3", "w2"]),
    }),
    ..HF
};

/// transformers' Llama4ForCausalLM, and the text model of Llama4ForConditionalGeneration.
pub(crate) const HF_LLAMA4: Names = Names {
    prefix: "language_model.",
    parts: [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "feed_forward.gate_proj",
        "feed_forward.up_proj",
        "feed_forward.down_proj",
    ],
    experts: Some(ExpertNames {
        router: "feed_forward.router",
        shared: [
            "feed_forward.shared_expert.gate_proj",
            "feed_forward.shared_expert.up_proj",
            "feed_forward.shared_expert.down_proj",
        ],
        stack: Stack::Fused([
            "feed_forward.experts.gate_up_proj",
            "feed_forward.experts.down_proj",
        ]),
    }),
    ignored: &[],
    aside: &["vision_model.", "multi_modal_projector."],
    rotary: RopeLayout::Interleaved,
    ..HF
};

/// From the embedding table to the hidden size and back, in an OPT whose table has another width.
pub(crate) const OPT_PROJECT: [&str; 2] = ["decoder.project_in", "decoder.project_out"];

/// transformers' OPTForCausalLM; early files have no prefix. Whether there are biases, the tensors tell: of Galactica, paper,
/// configurations and files do not say the same.
pub(crate) const HF_OPT: Names = Names {
    prefix: "model.",
    embed: "decoder.embed_tokens",
    positions: Some("decoder.embed_positions"),
    norm: "decoder.final_layer_norm",
    block: "decoder.layers.",
    parts: [
        "self_attn_layer_norm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "final_layer_norm",
        "",
        "fc1",
        "fc2",
    ],
    ignored: &[],
    bias_optional: true,
    ..HF
};

/// Meta's own checkpoints; llama2.c's tensors are given the same names.
pub(crate) const META: Names = Names {
    prefix: "",
    embed: "tok_embeddings",
    positions: None,
    norm: "norm",
    head: "output",
    block: "layers.",
    parts: [
        "attention_norm",
        "attention.wq",
        "attention.wk",
        "attention.wv",
        "attention.wo",
        "ffn_norm",
        "feed_forward.w1",
        "feed_forward.w3",
        "feed_forward.w2",
    ],
    experts: None,
    extra: &["rope.freqs"],
    ignored: &[],
    aside: &[],
    bias_optional: false,
    rotary: RopeLayout::Interleaved,
};
