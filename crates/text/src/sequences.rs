//! Galactica's sequences: molecules, proteins and DNA between two tags are tokenized character by
//! character.
//!
//! The vocabulary cannot do that alone. The model's own library writes a marker before every
//! character of such a sequence and before the tag that ends it, and the pre-tokenizer of the
//! model's tokenizer.json cuts the text there and drops the marker (Taylor et al. 2022,
//! arXiv:2211.09085, section 3.1; galai, `escape_custom_split_sequence`). A sequence that does not
//! end, or not on its line, is left as it is there, and so it is here.

use std::borrow::Cow;

use serde_json::Value;

/// The marker. Put together, so that it does not stand in this text: a model that reads it should
/// not learn it.
const MARKER: &str = concat!("SPL", 1, "T-TH", 1, "S-Pl3A5E");
/// What stands between `[START_` and `]`, and between `[END_` and `]`.
const KINDS: [&str; 4] = ["DNA", "SMILES", "I_SMILES", "AMINO"];
const START: &str = "[START_";

/// Whether a tokenizer.json's pre-tokenizer knows the marker.
pub(crate) fn are_marked(pre_tokenizer: &Value) -> bool {
    let mut open = vec![pre_tokenizer];
    while let Some(value) = open.pop() {
        match value {
            Value::String(text) if text == MARKER => return true,
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => open.extend(fields.values()),
            _ => {}
        }
    }
    false
}

/// Whether a special token is part of the text: the tags around references, working memory and
/// sequences are, and galai shows them; the marks of beginning, end and padding are not.
pub(crate) fn is_text(tag: &str) -> bool {
    !["<s>", "<pad>", "</s>", "<unk>"].contains(&tag)
}

/// The text with a marker before every character of its sequences.
pub(crate) fn mark(text: &str) -> Cow<'_, str> {
    let mut marked = String::new();
    let (mut copied, mut from) = (0, 0);
    // The next end of a line and of each kind, found once and kept until the search has passed it,
    // so that starts without ends do not cost a search each.
    let mut line_end = Next::default();
    let mut ends: [Next; KINDS.len()] = Default::default();
    while let Some(at) = text[from..].find(START).map(|i| from + i) {
        from = at + START.len();
        let rest = &text[from..];
        let kind = KINDS.iter().position(|kind| {
            let after = rest.strip_prefix(kind);
            after.is_some_and(|after| after.starts_with(']'))
        });
        let Some(kind) = kind else { continue };
        let first = from + KINDS[kind].len() + 1;
        let end = ends[kind].after(first, text, &format!("[END_{}]", KINDS[kind]));
        if end == text.len() || line_end.after(first, text, "\n") < end {
            continue;
        }
        marked.push_str(&text[copied..first]);
        for c in text[first..end].chars() {
            marked.push_str(MARKER);
            marked.push(c);
        }
        marked.push_str(MARKER);
        (copied, from) = (end, end);
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    marked.push_str(&text[copied..]);
    Cow::Owned(marked)
}

/// Where a string stands next, remembered.
#[derive(Default)]
struct Next(Option<usize>);

impl Next {
    /// The first place from `from` on, the text's length if there is none.
    fn after(&mut self, from: usize, text: &str, what: &str) -> usize {
        match self.0 {
            Some(at) if at >= from => at,
            _ => {
                let found = text[from..].find(what).map_or(text.len(), |i| from + i);
                *self.0.insert(found)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The marker as a dot.
    fn shown(text: &str) -> String {
        mark(text).replace(MARKER, ".")
    }

    /// Results of galai's own function.
    #[test]
    fn sequences_are_marked_as_galai_does() {
        for (text, want) in [
            ("", ""),
            ("[START_DNA]ACG[END_DNA]", "[START_DNA].A.C.G.[END_DNA]"),
            (
                "a [START_SMILES]C(=O)[END_SMILES] b [START_AMINO]MK[END_AMINO]",
                "a [START_SMILES].C.(.=.O.).[END_SMILES] b [START_AMINO].M.K.[END_AMINO]",
            ),
            ("[START_DNA][END_DNA]", "[START_DNA].[END_DNA]"),
            ("[START_DNA]A é[END_DNA]", "[START_DNA].A. .é.[END_DNA]"),
            // The other kind's end, no end, an end on another line, no kind.
            ("[START_DNA]A[END_AMINO]", "[START_DNA]A[END_AMINO]"),
            ("[START_I_SMILES]CC", "[START_I_SMILES]CC"),
            ("[START_DNA]A\nC[END_DNA]", "[START_DNA]A\nC[END_DNA]"),
            ("[START_REF]A[END_REF]", "[START_REF]A[END_REF]"),
            // A start inside is text; so is one that does not end.
            (
                "[START_DNA][START_DNA]A[END_DNA]",
                "[START_DNA].[.S.T.A.R.T._.D.N.A.].A.[END_DNA]",
            ),
            (
                "[START_AMINO]\n[START_AMINO]M[END_AMINO]",
                "[START_AMINO]\n[START_AMINO].M.[END_AMINO]",
            ),
            (
                "[START_AMINO]x[START_DNA]A[END_DNA]",
                "[START_AMINO]x[START_DNA].A.[END_DNA]",
            ),
        ] {
            assert_eq!(shown(text), want, "{text:?}");
        }
    }

    #[test]
    fn starts_without_ends_take_time_in_proportion() {
        let text = "[START_DNA][START_AMINO]".repeat(200_000);
        assert_eq!(mark(&text), text);
        let text = format!("{}\n[END_DNA]", "[START_DNA]".repeat(200_000));
        assert_eq!(mark(&text), text);
    }

    #[test]
    fn the_marker_is_found_in_a_pre_tokenizer() {
        let split = |pattern: &str| {
            serde_json::json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"String": pattern}, "behavior": "Removed"},
                {"type": "ByteLevel"},
            ]})
        };
        assert!(are_marked(&split(MARKER)));
        assert!(!are_marked(&split("x")));
        assert!(!are_marked(&Value::Null));
    }
}
