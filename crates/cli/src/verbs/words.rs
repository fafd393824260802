//! The words of `puna run`: which is the MODEL, which are the prompt, and is stdin part of it?
//! Pure: what is a model, and what stdin is, are asked of the caller.

/// What the words mean.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    /// The MODEL named by `-m` or the first word; `None`: the default.
    pub model: Option<String>,
    pub prompt: Prompt,
}

/// Where the prompt comes from.
#[derive(Debug, PartialEq, Eq)]
pub enum Prompt {
    /// These words; a `-` among them stands for stdin.
    Words(Vec<String>),
    /// No words: stdin, or a conversation if that is a terminal.
    Stdin,
    /// One word that can only be the name of a model, and is none that we know.
    UnknownName(String),
}

/// Sorts the words. `explicit` is `-m`; `is_model` says whether a word is a MODEL.
pub fn sort(explicit: Option<&str>, words: &[String], is_model: impl Fn(&str) -> bool) -> Words {
    let (model, rest) = match (explicit, words) {
        (Some(model), _) => (Some(model.to_owned()), words),
        (None, [first, rest @ ..]) if first != "-" && is_model(first) => {
            (Some(first.clone()), rest)
        }
        _ => (None, words),
    };
    let prompt = match rest {
        [] => Prompt::Stdin,
        [word] if model.is_none() && looks_like_a_name(word) => Prompt::UnknownName(word.clone()),
        words => Prompt::Words(words.to_vec()),
    };
    Words { model, prompt }
}

/// A word that a model could be called by: no space, and nothing that only a sentence has.
fn looks_like_a_name(word: &str) -> bool {
    word != "-"
        && word.starts_with(|c: char| c.is_ascii_alphanumeric() || "./~".contains(c))
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-:/@+~".contains(c))
}

/// The prompt's text: words joined by spaces, stdin's text in the place of each `-`, on lines of
/// its own where it has neighbours.
pub fn join(words: &[String], stdin: &str) -> String {
    let mut out = String::new();
    let mut after_stdin = false;
    for (i, word) in words.iter().enumerate() {
        let is_stdin = word == "-";
        if i > 0 {
            out.push(if is_stdin || after_stdin { '\n' } else { ' ' });
        }
        out.push_str(if is_stdin { stdin } else { word });
        after_stdin = is_stdin;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(word: &str) -> bool {
        ["tiny", "smollm2:135m", "./a.gguf", "hf:a/b"].contains(&word)
    }

    /// `(-m, words)` and what they mean: `model | prompt words`, `model < ` for stdin, `? name`.
    #[test]
    fn the_word_rule() {
        let table: &[(Option<&str>, &[&str], &str)] = &[
            (None, &[], "default <"),
            (None, &["tiny"], "tiny <"),
            (None, &["./a.gguf"], "./a.gguf <"),
            (None, &["hf:a/b", "hi"], "hf:a/b | hi"),
            (None, &["tiny", "hi", "there"], "tiny | hi | there"),
            (None, &["What is it?"], "default | What is it?"),
            (None, &["What", "is", "it"], "default | What | is | it"),
            (None, &["nosuch"], "? nosuch"),
            (None, &["no-such:tag"], "? no-such:tag"),
            (None, &["./missing.gguf"], "? ./missing.gguf"),
            (None, &["Hello!"], "default | Hello!"),
            (None, &["2+2=?"], "default | 2+2=?"),
            (None, &["你好"], "default | 你好"),
            (None, &[""], "default | "),
            (None, &["-"], "default | -"),
            (None, &["tiny", "-"], "tiny | -"),
            (None, &["tiny", "tiny"], "tiny | tiny"),
            (Some("m"), &["tiny"], "m | tiny"),
            (Some("m"), &["nosuch"], "m | nosuch"),
            (Some("m"), &[], "m <"),
        ];
        for (explicit, words, meaning) in table {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            let sorted = sort(*explicit, &words, known);
            let model = sorted.model.as_deref().unwrap_or("default");
            let said = match sorted.prompt {
                Prompt::Words(words) => format!("{model} | {}", words.join(" | ")),
                Prompt::Stdin => format!("{model} <"),
                Prompt::UnknownName(name) => format!("? {name}"),
            };
            assert_eq!(&said, meaning, "{explicit:?} {words:?}");
        }
    }

    #[test]
    fn stdin_stands_where_the_dash_stands() {
        let words = |w: &[&str]| w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(join(&words(&["a", "b"]), "x"), "a b");
        assert_eq!(join(&words(&["-"]), "x"), "x");
        assert_eq!(join(&words(&["Sum up:", "-"]), "x"), "Sum up:\nx");
        assert_eq!(join(&words(&["a", "-", "b", "c"]), "x"), "a\nx\nb c");
    }
}
