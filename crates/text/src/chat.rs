//! From a conversation to the ids that a model is fed.
//!
//! What a user types must never become a special token, and what the template writes must. The rendered text alone
//! cannot tell them apart, so the rendering is made so that it can:
//!
//! 1. Every character of the messages (tools, variables) that could begin a special token's text is replaced by a
//!    stand-in, a noncharacter that occurs nowhere in the input: `<|eot_id|>` that a user typed reaches the template
//!    as `X|eot_id|>`. A stand-in is one character like the one it stands for, so lengths, slices and trimming are
//!    as they were; `tojson` and printed lists write it raw.
//! 2. A template may look for a text in a message (`'</think>' in content`): where one of its own string literals
//!    occurs, the characters stay as they are, unless a special token begins right there, or the string ends
//!    within one that what follows could complete.
//! 3. The special tokens' texts that are whole in the rendering are the template's: they become their ids. What is
//!    between them gets its characters back and is encoded as plain text.
//!
//! This module knows templates and tokenizers by their doors; it knows nothing of models.

use crate::error::Error;
use crate::python;
use crate::special::{Fragment, Matcher};
use crate::template::{ChatTemplate, Place, RenderOptions};
use crate::tokenizer::{Special, Tokenizer};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Literals of a template that are looked for in messages: at most so many, none longer than so many bytes.
const MAX_LITERALS: usize = 256;
const MAX_LITERAL: usize = 64;
/// How far into a string the end of a special token is looked for, in bytes.
const MAX_TAIL: usize = 64;

/// A message of the user.
pub fn user(content: impl Into<String>) -> Value {
    message("user", content.into())
}

/// A message of the assistant.
pub fn assistant(content: impl Into<String>) -> Value {
    message("assistant", content.into())
}

/// A system message.
pub fn system(content: impl Into<String>) -> Value {
    message("system", content.into())
}

fn message(role: &str, content: String) -> Value {
    json!({ "role": role, "content": content })
}

impl ChatTemplate {
    /// The ids of a conversation, as `run` and `serve` feed them: the rendering of [`ChatTemplate::render`], in
    /// which only what the template itself writes becomes special tokens, with one begin-of-text token in front
    /// where the model wants one.
    ///
    /// # Errors
    /// As for `render`, and those of [`Tokenizer::encode`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
        options: &RenderOptions,
    ) -> Result<Vec<u32>, Error> {
        let guard = Guard::new(self, tokenizer, messages, options);
        let marks: String = guard.originals.keys().collect();
        let rendered = self.render_with(messages, options, &marks, &mut |place, text| {
            guard.protect(place, text)
        })?;

        let mut ids = Vec::with_capacity(rendered.len() / 3);
        let mut failed = None;
        guard.special.split(&rendered, |fragment| match fragment {
            Fragment::Token(id) => ids.push(id),
            Fragment::Text(_) if failed.is_some() => {}
            Fragment::Text(text) => match tokenizer.encode(&guard.restore(text), Special::Text) {
                Ok(text) => ids.extend(text),
                Err(error) => failed = Some(error),
            },
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(with_one_bos(ids, tokenizer)),
        }
    }
}

/// The ids with one begin-of-text token in front if the model adds one, and never two.
fn with_one_bos(mut ids: Vec<u32>, tokenizer: &Tokenizer) -> Vec<u32> {
    let Some(bos) = tokenizer.bos() else {
        return ids;
    };
    let leading = ids.iter().take_while(|&&id| id == bos).count();
    if leading > 1 {
        ids.drain(1..leading);
    } else if leading == 0 && tokenizer.adds_bos() {
        ids.insert(0, bos);
    }
    ids
}

/// What keeps the text of one conversation apart from its template's.
struct Guard<'t> {
    /// The special tokens' texts, by their first character.
    by_first: HashMap<char, Vec<&'t str>>,
    /// Their last characters.
    lasts: HashSet<char>,
    special: &'t Matcher,
    /// The template's literals that hold the first character of a special token.
    literals: Vec<&'t str>,
    stand_ins: HashMap<char, char>,
    /// The other way round.
    originals: HashMap<char, char>,
}

impl<'t> Guard<'t> {
    fn new(
        template: &'t ChatTemplate,
        tokenizer: &'t Tokenizer,
        messages: &[Value],
        options: &RenderOptions,
    ) -> Self {
        let specials: Vec<(&str, u32)> = tokenizer.special_strings().collect();
        let mut by_first: HashMap<char, Vec<&str>> = HashMap::new();
        let mut lasts = HashSet::new();
        for &(text, _) in &specials {
            let mut chars = text.chars();
            if let Some(first) = chars.next() {
                by_first.entry(first).or_default().push(text);
                lasts.insert(chars.next_back().unwrap_or(first));
            }
        }
        let literals = template.literals().iter().map(String::as_str);
        let literals = literals
            .filter(|l| l.len() <= MAX_LITERAL && l.contains(|c| by_first.contains_key(&c)));
        let mut guard = Guard {
            lasts,
            special: tokenizer.special_matcher(),
            literals: literals.take(MAX_LITERALS).collect(),
            stand_ins: HashMap::new(),
            originals: HashMap::new(),
            by_first,
        };
        let mut taken: HashSet<char> = HashSet::new();
        let mut take = |text: &str| taken.extend(text.chars().filter(|&c| c > '\u{d7ff}'));
        take(template.source());
        template.token_texts().into_iter().for_each(&mut take);
        specials.iter().for_each(|(text, _)| take(text));
        options.vars.keys().for_each(|name| take(name));
        let outside = messages
            .iter()
            .chain(&options.tools)
            .chain(options.vars.values());
        each_string(outside.collect(), &mut take);
        guard.choose_stand_ins(&taken);
        guard
    }

    /// Gives each character that may need it a stand-in: the noncharacters first, then the private planes.
    fn choose_stand_ins(&mut self, taken: &HashSet<char>) {
        let free = ('\u{fdd0}'..='\u{fdef}')
            .chain('\u{f0000}'..='\u{10fffd}')
            .filter(|c| !taken.contains(c));
        let mut needed: Vec<char> = self.by_first.keys().chain(&self.lasts).copied().collect();
        needed.sort_unstable();
        needed.dedup();
        for (original, stand_in) in needed.into_iter().zip(free) {
            self.stand_ins.insert(original, stand_in);
            self.originals.insert(stand_in, original);
        }
    }

    /// A string from outside as the template gets it.
    fn protect(&self, place: Place, text: &str) -> minijinja::Value {
        // A role or a key that is one plain word names something to the template.
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        if place != Place::Content && text.chars().all(word) {
            return minijinja::Value::from(text);
        }
        let mut out = String::new();
        let mut copied = 0;
        let tails = self.tails_of_specials(text);
        let trimmed = text.trim_end_matches(python::space).len();
        let mut covered = None;
        for (at, c) in text.char_indices() {
            let begins = self.by_first.get(&c).is_some_and(|specials| {
                let covered = covered.get_or_insert_with(|| self.covered(text));
                // Replacing letters would show wherever a template compares words.
                let plain = c.is_alphanumeric() || python::space(c);
                !plain && !covered.get(at).is_some_and(|covered| *covered)
                    || begins_special(specials, text, at, trimmed)
            });
            if !begins && !tails.contains(&at) {
                continue;
            }
            if let Some(stand_in) = self.stand_ins.get(&c) {
                out.push_str(&text[copied..at]);
                out.push(*stand_in);
                copied = at + c.len_utf8();
            }
        }
        if copied == 0 {
            return minijinja::Value::from(text);
        }
        out.push_str(&text[copied..]);
        minijinja::Value::from(out)
    }

    /// For each byte of a text, whether it stands in an occurrence of one of the template's literals; empty where
    /// none occurs.
    fn covered(&self, text: &str) -> Vec<bool> {
        let mut covered = Vec::new();
        for literal in &self.literals {
            for (at, _) in text.match_indices(literal) {
                covered.resize(text.len(), false);
                covered[at..at + literal.len()].fill(true);
            }
        }
        covered
    }

    /// Where a text, whatever white space is before, starts with the rest of a special token: the places of the
    /// last characters. A template that writes the token's beginning right before would complete it.
    fn tails_of_specials(&self, text: &str) -> Vec<usize> {
        let from = text.len() - text.trim_start_matches(python::space).len();
        let near = text[from..]
            .char_indices()
            .take_while(|(at, _)| *at < MAX_TAIL);
        near.filter(|(_, c)| self.lasts.contains(c))
            .map(|(at, c)| (from + at, from + at + c.len_utf8()))
            .filter(|&(_, end)| {
                let head = &text[from..end];
                self.by_first
                    .values()
                    .flatten()
                    .any(|special| special.len() > head.len() && special.ends_with(head))
            })
            .map(|(at, _)| at)
            .collect()
    }

    /// A piece of the rendering with its own characters again.
    fn restore<'r>(&self, text: &'r str) -> Cow<'r, str> {
        if !text.contains(|c| self.originals.contains_key(&c)) {
            return Cow::Borrowed(text);
        }
        Cow::Owned(
            text.chars()
                .map(|c| self.originals.get(&c).copied().unwrap_or(c))
                .collect(),
        )
    }
}

/// Whether one of these special tokens begins at byte `at` of `text`: whole, or cut off by the end of the text or
/// by the white space before it (from byte `trimmed` on), which a template may trim away.
fn begins_special(specials: &[&str], text: &str, at: usize, trimmed: usize) -> bool {
    let rest = &text[at..];
    let cut = text.get(at..trimmed).unwrap_or_default();
    specials.iter().any(|s| {
        rest.starts_with(s) || s.starts_with(rest) || !cut.is_empty() && s.starts_with(cut)
    })
}

/// Calls `each` with every string in the values, keys too.
fn each_string(mut values: Vec<&Value>, each: &mut impl FnMut(&str)) {
    while let Some(value) = values.pop() {
        match value {
            Value::String(text) => each(text),
            Value::Array(items) => values.extend(items),
            Value::Object(fields) => {
                fields.keys().for_each(|name| each(name));
                values.extend(fields.values());
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}
