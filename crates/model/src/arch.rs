//! The architectures that this version computes, as a table.
//!
//! A model's architecture is told from what its file calls itself, once, when it is opened; the
//! forward pass of each is in the file of its name.

/// Which forward pass a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// Llama 1 to 3.3 and what shares LlamaForCausalLM, with experts or without.
    Llama,
    /// The text part of Llama 4.
    Llama4,
    /// OPT, and Galactica, which is one.
    Opt,
}

/// What files call an architecture, and what is known of it.
#[derive(Debug)]
pub struct About {
    /// The architecture.
    pub arch: Arch,
    /// Its name in this project, and in a GGUF where it has one there.
    pub name: &'static str,
    /// Whether GGUF files of this name are read.
    pub gguf: bool,
    /// Names in `architectures` of a config.json, with the `model_type` that goes with each.
    pub classes: &'static [(&'static str, &'static str)],
    /// Models of this kind.
    pub models: &'static str,
    /// How it differs from the first.
    pub special: &'static str,
    /// What its results are compared with in the tests.
    pub tested: &'static str,
}

/// Every architecture, in the order of [`Arch`].
pub const ARCHITECTURES: [About; 3] = [
    About {
        arch: Arch::Llama,
        name: "llama",
        gguf: true,
        classes: &[
            ("LlamaForCausalLM", "llama"),
            ("MixtralForCausalLM", "mixtral"),
        ],
        models: "Llama 1, 2, 3, 3.1, 3.2 (text) and 3.3, Code Llama, Llama Guard 1 to 3, SmolLM, \
                 TinyLlama, stories, Mixtral",
        special: "rope scaling linear, llama3, yarn and by divisors in the file; biases; tied \
                  heads; experts behind a softmax router",
        tested: "transformers (logits, hidden states, attention, greedy text), llama.cpp (GGUF, 15 \
                 types), a real SmolLM2; experts against transformers and a plain computation",
    },
    About {
        arch: Arch::Llama4,
        name: "llama4",
        gguf: true,
        classes: &[
            ("Llama4ForCausalLM", "llama4_text"),
            ("Llama4ForConditionalGeneration", "llama4"),
        ],
        models: "the text part of Llama 4 Scout and Maverick, Llama Guard 4",
        special: "a mixture of experts with one that is always used, layers without rotation, \
                  chunked attention, norms of queries and keys",
        tested: "transformers (logits, hidden states, attention, greedy text), llama.cpp (GGUF)",
    },
    About {
        arch: Arch::Opt,
        name: "opt",
        gguf: false,
        classes: &[("OPTForCausalLM", "opt")],
        models: "OPT, Galactica",
        special: "learned positions, LayerNorm (before attention and MLP, or behind them), ReLU or GELU without a gate, tied head, an \
                  embedding table of another width",
        tested: "transformers (logits, hidden states, attention, greedy text)",
    },
];

impl Arch {
    /// What is known of it.
    pub fn about(self) -> &'static About {
        &ARCHITECTURES[self as usize]
    }

    /// Its name: `llama`.
    pub fn name(self) -> &'static str {
        self.about().name
    }

    /// The one that a GGUF calls so.
    pub(crate) fn of_gguf(name: &str) -> Option<Arch> {
        let found = ARCHITECTURES.iter().find(|a| a.gguf && a.name == name);
        found.map(|a| a.arch)
    }

    /// The one that a config.json means by the first of its `architectures` and its `model_type`,
    /// where either may be absent.
    pub(crate) fn of_hf(class: Option<&str>, model_type: Option<&str>) -> Option<Arch> {
        let fits = |(c, t): &(&str, &str)| {
            class.is_none_or(|class| class == *c) && model_type.is_none_or(|ty| ty == *t)
        };
        let named = class.or(model_type).is_some();
        let found = ARCHITECTURES.iter().find(|a| a.classes.iter().any(fits));
        found.filter(|_| named).map(|a| a.arch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, about) in ARCHITECTURES.iter().enumerate() {
            assert_eq!(about.arch as usize, i);
            assert_eq!(about.arch.about().name, about.name);
        }
    }

    #[test]
    fn files_name_their_architecture() {
        assert_eq!(Arch::of_gguf("llama4"), Some(Arch::Llama4));
        assert_eq!(Arch::of_gguf("opt"), None);
        assert_eq!(Arch::of_gguf("qwen2"), None);
        let hf = Arch::of_hf;
        assert_eq!(hf(Some("LlamaForCausalLM"), None), Some(Arch::Llama));
        assert_eq!(hf(None, Some("opt")), Some(Arch::Opt));
        assert_eq!(hf(Some("LlamaForCausalLM"), Some("mllama")), None);
        assert_eq!(hf(Some("Llama4ForCausalLM"), Some("llama4")), None);
        assert_eq!(hf(None, None), None);
    }
}
