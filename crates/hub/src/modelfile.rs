//! Modelfiles: the text form of a [`Recipe`], as ollama has it.
//!
//! ```text
//! # a comment
//! FROM smollm2:135m
//! PARAMETER temperature 0.2
//! SYSTEM """several
//! lines"""
//! ```
//!
//! A keyword (in any case), then its value to the end of the line. A value that opens with `"""` or
//! `"` goes on, over line ends, to a closing one at the end of a line; nothing in it is an escape.
//! Pure: it looks at no file.

use crate::recipe::{Adapter, Message, ROLES, Recipe};

/// The largest Modelfile. Licences make them long.
pub const MODELFILE_MAX: usize = 4 << 20;
/// The most lines with a keyword.
const LINES_MAX: usize = 10_000;

/// What is wrong with a Modelfile, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct ModelfileError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// Reads a Modelfile.
///
/// # Errors
/// The first line that cannot be obeyed: an unknown keyword or parameter, a value of the wrong
/// form, something given twice, a quotation without an end. Line 0: there is no FROM, or the text is
/// too long.
pub fn parse_modelfile(text: &str) -> Result<Recipe, ModelfileError> {
    let wrong = |line: usize, why: String| ModelfileError { line, why };
    if text.len() > MODELFILE_MAX {
        return Err(wrong(0, format!("it is longer than {MODELFILE_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut recipe = Recipe::default();
    let mut rest = Lines { text, line: 0 };
    let mut count = 0;
    while let Some((line, words)) = rest.next_words() {
        count += 1;
        if count > LINES_MAX {
            return Err(wrong(line, format!("more than {LINES_MAX} instructions")));
        }
        let (keyword, value) = split_word(words);
        let word_first = ["PARAMETER", "MESSAGE"]
            .iter()
            .any(|k| keyword.eq_ignore_ascii_case(k));
        let value = rest
            .value(value, word_first)
            .map_err(|why| wrong(line, why))?;
        obey(&mut recipe, keyword, value).map_err(|why| wrong(line, why))?;
    }
    if recipe.from.is_empty() {
        return Err(wrong(0, "there is no FROM line: it names the base".into()));
    }
    Ok(recipe)
}

/// A value, without its quotation marks.
struct Value {
    /// What stands in front, in instructions that take a word and a text; else empty.
    word: String,
    text: String,
}

/// What is left of the text.
struct Lines<'t> {
    text: &'t str,
    /// The number of the line that was taken last.
    line: usize,
}

impl<'t> Lines<'t> {
    fn next(&mut self) -> Option<&'t str> {
        if self.text.is_empty() {
            return None;
        }
        let (line, rest) = self.text.split_once('\n').unwrap_or((self.text, ""));
        self.text = rest;
        self.line += 1;
        Some(line.strip_suffix('\r').unwrap_or(line))
    }

    /// The next line that is neither empty nor a comment, and its number.
    fn next_words(&mut self) -> Option<(usize, &'t str)> {
        loop {
            let line = self.next()?.trim_start();
            if !line.is_empty() && !line.starts_with('#') {
                return Some((self.line, line));
            }
        }
    }

    /// The whole of a value whose first line is here: of a quoted one, what stands between the
    /// marks. `MESSAGE role "..."` and `PARAMETER name "..."` are quoted behind their first word.
    fn value(&mut self, first: &str, word_first: bool) -> Result<Value, String> {
        let (word, text) = match word_first {
            true => split_word(first),
            false => ("", first),
        };
        let text = match text.starts_with('"') {
            true => self.quotation(text)?,
            false => text.trim_end().to_owned(),
        };
        Ok(Value {
            word: word.to_owned(),
            text,
        })
    }

    fn quotation(&mut self, first: &str) -> Result<String, String> {
        let mark = if first.starts_with(BLOCK) {
            BLOCK
        } else {
            "\""
        };
        let mut text = String::new();
        let mut line = &first[mark.len()..];
        loop {
            let trimmed = line.trim_end();
            if let Some(end) = trimmed.strip_suffix(mark) {
                text.push_str(end);
                return Ok(text);
            }
            if mark == BLOCK && line.contains(BLOCK) {
                return Err(format!("there is text behind the closing {BLOCK}"));
            }
            text.push_str(line);
            text.push('\n');
            line = self
                .next()
                .ok_or_else(|| format!("the {mark} that opens here is never closed"))?;
        }
    }
}

const BLOCK: &str = "\"\"\"";

/// The first word, and what follows it.
fn split_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim_start())
}

/// Does what one instruction says.
fn obey(recipe: &mut Recipe, keyword: &str, value: Value) -> Result<(), String> {
    let name = keyword.to_ascii_uppercase();
    let Value { word, text } = value;
    if text.contains('\0') {
        return Err(format!("{name} has a NUL character"));
    }
    let once = |slot: &mut Option<String>, text: String| match slot.replace(text) {
        Some(_) => Err(format!("{name} stands twice")),
        None => Ok(()),
    };
    match name.as_str() {
        "FROM" if !recipe.from.is_empty() => Err("FROM stands twice".into()),
        // What no quotation can hold could not be printed again.
        "FROM" if text.is_empty() || text.contains(char::is_control) || quoted(&text).is_none() => {
            Err("FROM takes one model".into())
        }
        "FROM" => {
            recipe.from = text;
            Ok(())
        }
        "SYSTEM" => once(&mut recipe.system, text),
        "TEMPLATE" => once(&mut recipe.template, text),
        "PARAMETER" if text.is_empty() => Err("PARAMETER takes a name and a value".into()),
        "PARAMETER" => recipe.set(&word, &text),
        "MESSAGE" => {
            let role = word.to_ascii_lowercase();
            if text.is_empty() || !ROLES.contains(&role.as_str()) {
                let roles = ROLES.join(", ");
                return Err(format!("MESSAGE takes a role ({roles}) and what is said"));
            }
            recipe.messages.push(Message {
                role,
                content: text,
            });
            Ok(())
        }
        "ADAPTER" => {
            recipe.adapters.push(adapter(&text)?);
            Ok(())
        }
        "LICENSE" => {
            recipe.licences.push(text);
            Ok(())
        }
        _ => {
            let keyword = &keyword[..keyword.floor_char_boundary(80)];
            Err(format!("there is no instruction {keyword:?}"))
        }
    }
}

/// `FILE[:SCALE]`: what stands behind the last colon is a scale if it is a number.
fn adapter(text: &str) -> Result<Adapter, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err("ADAPTER takes a file, FILE[:SCALE]".into());
    }
    let is_scale = |scale: &str| scale.parse::<f32>().is_ok_and(f32::is_finite);
    Ok(match text.rsplit_once(':') {
        Some((path, scale)) if !path.is_empty() && is_scale(scale) => Adapter {
            path: path.to_owned(),
            scale: Some(scale.to_owned()),
        },
        _ => Adapter {
            path: text.to_owned(),
            scale: None,
        },
    })
}

/// A recipe as a Modelfile that [`parse_modelfile`] reads as the same recipe. A text that no
/// quotation holds (with `"""` inside) is left out, with a comment in its place.
#[must_use]
pub fn print_modelfile(recipe: &Recipe) -> String {
    let from = quoted(&recipe.from).unwrap_or_else(|| recipe.from.clone());
    let mut out = format!("FROM {from}\n");
    let mut add = |words: &str, text: &str| match quoted(text) {
        Some(text) => out.push_str(&format!("{words} {text}\n")),
        None => out.push_str(&format!("# {words}: no quotation can hold this text\n")),
    };
    for (name, value) in &recipe.parameters {
        let row = crate::recipe::PARAMETERS.iter().find(|row| row.1 == name);
        add(
            &format!("PARAMETER {}", row.map_or(name.as_str(), |row| row.0)),
            value,
        );
    }
    for adapter in &recipe.adapters {
        let scale = adapter
            .scale
            .as_ref()
            .map_or(String::new(), |s| format!(":{s}"));
        add("ADAPTER", &format!("{}{scale}", adapter.path));
    }
    for (words, text) in [("TEMPLATE", &recipe.template), ("SYSTEM", &recipe.system)] {
        if let Some(text) = text {
            add(words, text);
        }
    }
    for message in &recipe.messages {
        add(&format!("MESSAGE {}", message.role), &message.content);
    }
    for text in &recipe.licences {
        add("LICENSE", text);
    }
    out
}

/// A text as a value: bare where that is enough.
fn quoted(text: &str) -> Option<String> {
    let bare = !text.is_empty() && text.trim() == text && !text.contains(['\n', '\r', '"', '\0']);
    if bare {
        return Some(text.to_owned());
    }
    // A carriage return at a line's end is read as part of the line's end.
    let safe = !text.contains(BLOCK)
        && !text.ends_with('"')
        && !text.contains("\r\n")
        && !text.contains('\0');
    safe.then(|| format!("{BLOCK}{text}{BLOCK}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Recipe {
        parse_modelfile(text).unwrap()
    }

    fn refused(text: &str) -> String {
        parse_modelfile(text).unwrap_err().to_string()
    }

    #[test]
    fn every_instruction() {
        let recipe = parse(
            "\u{feff}# a comment\n\nfrom  smollm2:135m \r\n\
             PARAMETER temperature 0.2\nparameter num_ctx 512\nPARAMETER stop \"User:\"\n\
             PARAMETER stop <|x|>\nPARAMETER num_predict -1\nPARAMETER dry_base 2\n\
             System \"\"\"one\n# two\n\"three\" \"\"\"\nTEMPLATE \"{{ x }}\"\n\
             MESSAGE user Hello there\nmessage assistant \"\"\"Hi\nyou\"\"\"\n\
             ADAPTER ./a.gguf:0.5\nADAPTER b:c\nLICENSE \"\"\"MIT\"\"\"\nLICENSE two",
        );
        let pairs: Vec<(&str, &str)> = recipe
            .parameters
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("temperature", "0.2"),
                ("ctx", "512"),
                ("stop", "User:"),
                ("stop", "<|x|>"),
                ("dry-base", "2")
            ]
        );
        assert_eq!(recipe.from, "smollm2:135m");
        assert_eq!(recipe.system.as_deref(), Some("one\n# two\n\"three\" "));
        assert_eq!(recipe.template.as_deref(), Some("{{ x }}"));
        let said: Vec<(&str, &str)> = recipe
            .messages
            .iter()
            .map(|m| (m.role.as_str(), m.content.as_str()))
            .collect();
        assert_eq!(said, [("user", "Hello there"), ("assistant", "Hi\nyou")]);
        assert_eq!(
            recipe.adapters,
            [
                Adapter {
                    path: "./a.gguf".into(),
                    scale: Some("0.5".into())
                },
                Adapter {
                    path: "b:c".into(),
                    scale: None
                }
            ]
        );
        assert_eq!(recipe.licences, ["MIT", "two"]);
        assert_eq!(parse(&print_modelfile(&recipe)), recipe);
    }

    #[test]
    fn what_cannot_be_obeyed_is_named() {
        for (text, why) in [
            ("", "no FROM"),
            ("# FROM x", "no FROM"),
            ("FROM", "FROM takes one model"),
            ("FROM a\"", "FROM takes one model"),
            ("FROM \"a\"\"\"b\"", "FROM takes one model"),
            ("FROM a\nFROM b", "line 2: FROM stands twice"),
            ("FROM a\n\nFLY b", "line 3: there is no instruction \"FLY\""),
            ("FROM a\nPARAMETER heat 1", "no parameter \"heat\""),
            (
                "FROM a\nPARAMETER num_gpu 1",
                "num_gpu is a setting of ollama's",
            ),
            ("FROM a\nPARAMETER temperature", "takes a name and a value"),
            (
                "FROM a\nPARAMETER temperature hot",
                "takes a number, not \"hot\"",
            ),
            ("FROM a\nPARAMETER temperature NaN", "takes a number"),
            ("FROM a\nPARAMETER top_k 1.5", "takes a whole number"),
            (
                "FROM a\nPARAMETER top_k 1\nPARAMETER TOP_K 2",
                "TOP_K is set twice",
            ),
            ("FROM a\nSYSTEM \"\"\"x", "never closed"),
            ("FROM a\nSYSTEM \"x", "never closed"),
            ("FROM a\nSYSTEM \"\"\"x\"\"\" y", "behind the closing"),
            ("FROM a\nSYSTEM x\nSYSTEM y", "SYSTEM stands twice"),
            ("FROM a\nMESSAGE tool x", "takes a role"),
            ("FROM a\nMESSAGE user", "takes a role"),
            ("FROM a\nMESSAGE \"\"\"user\"\"\"", "takes a role"),
            ("FROM a\nSYSTEM say \"this\nFLY", "no instruction \"FLY\""),
            ("FROM a\nSYSTEM a\0b", "NUL"),
            ("FROM a\nADAPTER", "takes a file"),
        ] {
            let said = refused(text);
            assert!(said.contains(why), "{text:?}: {said}");
        }
        assert!(refused(&format!("FROM a\n{}", "x".repeat(MODELFILE_MAX))).contains("longer"));
        assert!(refused(&"LICENSE x\n".repeat(LINES_MAX + 1)).contains("more than"));
    }

    #[test]
    fn texts_survive_printing() {
        for text in [
            "a",
            " a ",
            "a\nb",
            "a \"b\" c",
            "\"a",
            "",
            "# a",
            "\n",
            "\"\"x",
            "a\r b",
        ] {
            let recipe = Recipe {
                from: "x".into(),
                system: Some(text.to_owned()),
                messages: vec![Message {
                    role: "user".into(),
                    content: format!("x{text}"),
                }],
                ..Recipe::default()
            };
            assert_eq!(parse(&print_modelfile(&recipe)), recipe, "{text:?}");
        }
        let recipe = Recipe {
            from: "x".into(),
            system: Some("a \"\"\" b".into()),
            ..Recipe::default()
        };
        assert_eq!(parse(&print_modelfile(&recipe)).system, None);
        for from in ["a b", " a ", "\"a\"b", "./x\"y.gguf"] {
            let recipe = Recipe {
                from: from.into(),
                ..Recipe::default()
            };
            assert_eq!(parse(&print_modelfile(&recipe)), recipe, "{from:?}");
        }
    }
}
