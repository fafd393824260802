//! What a made model adds to its base: settings, words, adapters.
//!
//! Pure: where a recipe comes from (a Modelfile, ollama's store) and what obeys it are others'
//! business. Parameters keep the text they were written with; [`PARAMETERS`] says which there are
//! and what form their values have.

use serde::{Deserialize, Serialize};

/// What a made model adds to its base.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The base, as it was named.
    pub from: String,
    /// Settings: Puna's names and the values as written. Only `stop` may stand more than once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<(String, String)>,
    /// The system message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The chat template: Jinja, the name of a format, or a Go template as ollama has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Adapters, in the order in which they apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<Adapter>,
    /// Turns that begin every conversation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// Texts of licences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub licences: Vec<String>,
}

/// A file that changes the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// The file: as it was named, and in a record its name among the model's files.
    pub path: String,
    /// How strongly it acts: a number as written; `None` is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<String>,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// One of [`ROLES`].
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Who may say something.
pub const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// The form of a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A finite number.
    Number,
    /// A whole number.
    Whole,
    /// Any text.
    Text,
}

/// (the name in a Modelfile, Puna's name, the form of its value). Ollama's names come first, then
/// settings that only Puna has.
pub(crate) const PARAMETERS: [(&str, &str, Form); 28] = [
    ("temperature", "temperature", Form::Number),
    ("top_k", "top-k", Form::Whole),
    ("top_p", "top-p", Form::Number),
    ("min_p", "min-p", Form::Number),
    ("typical_p", "typical-p", Form::Number),
    ("repeat_penalty", "repeat-penalty", Form::Number),
    ("repeat_last_n", "repeat-last-n", Form::Whole),
    ("presence_penalty", "presence-penalty", Form::Number),
    ("frequency_penalty", "frequency-penalty", Form::Number),
    ("mirostat", "mirostat", Form::Whole),
    ("mirostat_tau", "mirostat-tau", Form::Number),
    ("mirostat_eta", "mirostat-eta", Form::Number),
    ("seed", "seed", Form::Whole),
    ("stop", "stop", Form::Text),
    ("num_predict", "max-tokens", Form::Whole),
    ("num_ctx", "ctx", Form::Whole),
    ("num_thread", "threads", Form::Whole),
    ("top_n_sigma", "top-n-sigma", Form::Number),
    ("dry_multiplier", "dry-multiplier", Form::Number),
    ("dry_base", "dry-base", Form::Number),
    ("dry_allowed_length", "dry-allowed-length", Form::Whole),
    ("dry_penalty_last_n", "dry-penalty-last-n", Form::Whole),
    ("xtc_probability", "xtc-probability", Form::Number),
    ("xtc_threshold", "xtc-threshold", Form::Number),
    ("dynatemp_range", "dynatemp-range", Form::Number),
    ("dynatemp_exponent", "dynatemp-exponent", Form::Number),
    ("cache_type", "cache-type", Form::Text),
    ("compute", "compute", Form::Text),
];

/// Ollama's parameters that say how a machine is used, or what is forgotten when a context is
/// full: without them the answer is the same.
const OF_THE_MACHINE: [&str; 12] = [
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_gqa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mmap",
    "use_mlock",
    "numa",
];

/// Whether a parameter of ollama's changes no answer.
pub(crate) fn is_of_the_machine(name: &str) -> bool {
    OF_THE_MACHINE.contains(&name)
}

/// Puna's name and the value to keep. -1 and -2 tokens to predict mean "until the context ends" to
/// ollama, which is what Puna does without a setting: then there is nothing to keep. So does a seed
/// below zero.
///
/// # Errors
/// What is wrong with the name or the value.
pub(crate) fn parameter(name: &str, value: &str) -> Result<Option<(String, String)>, String> {
    let lower = name.to_ascii_lowercase().replace('-', "_");
    let known = |row: &&(&str, &str, Form)| row.0 == lower || row.1.replace('-', "_") == lower;
    let Some((_, ours, form)) = PARAMETERS.iter().find(known) else {
        return Err(match is_of_the_machine(&lower) {
            true => format!("{name} is a setting of ollama's that Puna does not have"),
            false => format!("there is no parameter {name:?}"),
        });
    };
    let good = match form {
        Form::Number => value.parse::<f32>().is_ok_and(f32::is_finite),
        Form::Whole => value.parse::<i64>().is_ok(),
        Form::Text => !value.is_empty(),
    };
    if !good {
        let wanted = match form {
            Form::Number => "a number",
            Form::Whole => "a whole number",
            Form::Text => "a text",
        };
        let value = &value[..value.floor_char_boundary(80)];
        return Err(format!("{name} takes {wanted}, not {value:?}"));
    }
    let unset = match *ours {
        "max-tokens" => ["-1", "-2"].contains(&value),
        "seed" => value.starts_with('-'),
        // Ollama's 0 is "as many as there are".
        "threads" => value == "0",
        _ => false,
    };
    Ok((!unset).then(|| ((*ours).to_owned(), value.to_owned())))
}

impl Recipe {
    /// Whether it changes nothing about its base.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let bare = Recipe {
            from: self.from.clone(),
            licences: self.licences.clone(),
            ..Recipe::default()
        };
        *self == bare
    }

    /// Adds a parameter. Only `stop` may be given more than once.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let Some((ours, value)) = parameter(name, value)? else {
            return Ok(());
        };
        if ours != "stop" && self.parameters.iter().any(|(known, _)| *known == ours) {
            return Err(format!("{name} is set twice"));
        }
        self.parameters.push((ours, value));
        Ok(())
    }

    /// This over `base`: what this one says counts, and what it does not say is the base's. Turns
    /// of a conversation are taken as a whole, as are the texts that stop one.
    #[must_use]
    pub fn over(mut self, base: Option<&Recipe>) -> Recipe {
        let Some(base) = base else { return self };
        let own: Vec<String> = self.parameters.iter().map(|p| p.0.clone()).collect();
        let inherited = base.parameters.iter().filter(|p| !own.contains(&p.0));
        let mut parameters: Vec<(String, String)> = inherited.cloned().collect();
        parameters.append(&mut self.parameters);
        self.parameters = parameters;
        self.system = self.system.or_else(|| base.system.clone());
        self.template = self.template.or_else(|| base.template.clone());
        if self.messages.is_empty() {
            self.messages.clone_from(&base.messages);
        }
        if self.licences.is_empty() {
            self.licences.clone_from(&base.licences);
        }
        self
    }

    /// A recipe read from disk is input like any other.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut again = Recipe::default();
        for (name, value) in &self.parameters {
            again.set(name, value)?;
        }
        for message in &self.messages {
            if !ROLES.contains(&message.role.as_str()) {
                return Err(format!("no role {:?} can speak", message.role));
            }
        }
        let bad = |scale: &String| !scale.parse::<f32>().is_ok_and(f32::is_finite);
        match self
            .adapters
            .iter()
            .find(|a| a.scale.as_ref().is_some_and(bad))
        {
            Some(adapter) => Err(format!("the scale of {} is no number", adapter.path)),
            None => Ok(()),
        }
    }
}
