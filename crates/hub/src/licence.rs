//! The licence line of a model file.

use std::io::Read as _;
use std::path::Path;

/// The longest licence name that is kept.
const LENGTH_MAX: usize = 100;

/// What a GGUF file says of its licence (`general.license`, and the name behind "other"); `None`
/// for other files, for broken ones, and for files that say nothing. Takes milliseconds: it is
/// asked once, when a model is pulled.
pub(crate) fn of_file(path: &Path) -> Option<String> {
    if !path.is_file() {
        return None;
    }
    let gguf = files::gguf::Gguf::open(path).ok()?;
    let licence = match gguf.metadata.str("general.license")? {
        "other" => gguf.metadata.str("general.license.name").unwrap_or("other"),
        known => known,
    };
    tidy(licence)
}

/// What a file or a directory says of its licence: a GGUF file in its metadata, a directory in the
/// card beside its weights.
#[must_use]
pub fn licence_of(path: &Path) -> Option<String> {
    match path.is_dir() {
        true => of_card(&path.join("README.md")),
        false => of_file(path),
    }
}

/// The licence in the head of a card: `license: llama3.2`, or the name behind "other". The head is
/// YAML; only lines of this one form are looked for.
fn of_card(path: &Path) -> Option<String> {
    const HEAD_MAX: u64 = 64 << 10;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(HEAD_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let head = text.strip_prefix("---")?.split("\n---").next()?;
    let field = |name: &str| {
        let mut values = head
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        tidy(values.next()?.trim().trim_matches(['"', '\'']))
    };
    match field("license")? {
        other if other == "other" => field("license_name").or(Some(other)),
        known => Some(known),
    }
}

/// One short line of a text from outside.
pub(crate) fn tidy(text: &str) -> Option<String> {
    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
    let clean = clean.trim();
    (!clean.is_empty()).then(|| clean[..clean.floor_char_boundary(LENGTH_MAX)].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_says_its_licence() {
        let dir = tempfile::tempdir().unwrap();
        let card = dir.path().join("README.md");
        for (text, licence) in [
            (
                "---\nlanguage: en\nlicense: llama3.2\n---\n# x",
                Some("llama3.2"),
            ),
            ("---\nlicense: \"mit\"\r\n---\n", Some("mit")),
            (
                "---\nlicense: other\nlicense_name: llama4\n---\n",
                Some("llama4"),
            ),
            ("---\nlicense: other\n---\n", Some("other")),
            ("---\n---\nlicense: mit", None),
            ("license: mit", None),
            ("", None),
        ] {
            std::fs::write(&card, text).unwrap();
            assert_eq!(licence_of(dir.path()).as_deref(), licence, "{text:?}");
        }
        std::fs::write(&card, [0xff; 10]).unwrap();
        assert_eq!(licence_of(dir.path()), None);
    }
}
