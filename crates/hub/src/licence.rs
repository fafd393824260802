//! The licence line of a model file.

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

/// One short line of a text from outside.
pub(crate) fn tidy(text: &str) -> Option<String> {
    let clean: String = text.chars().filter(|c| !c.is_control()).collect();
    let clean = clean.trim();
    (!clean.is_empty()).then(|| clean[..clean.floor_char_boundary(LENGTH_MAX)].to_owned())
}
