//! What tells one model from another where nobody hashes files: for what is kept beyond a process.

use std::fs::{self, Metadata};
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::load::Loaded;

/// Another text for other weights, adapters or directions: their paths, sizes and times of change,
/// and the hash where it is known.
pub fn of(loaded: &Loaded) -> String {
    let mut text = format!("{:?}\n", loaded.sha256);
    text += &place(&loaded.path);
    let args = &loaded.load;
    for typed in args.adapter.iter().chain(&args.control_vector) {
        text += &format!("{typed:?}\n");
        text += &place(&crate::adapt::file(typed));
    }
    text + &format!("{:?}\n", args.control_vector_layers)
}

/// A file, or the files of a directory.
fn place(path: &Path) -> String {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let mut lines = vec![format!("{path:?}")];
    // The parts of a model in several files lie beside the first one.
    let parts = path.to_string_lossy().contains("-of-");
    let folder = path.parent().filter(|_| parts).unwrap_or(&path);
    let mut files = vec![path.clone()];
    if let Ok(list) = fs::read_dir(folder) {
        files = list.flatten().map(|file| file.path()).collect();
    }
    files.sort();
    // A link's file is what counts.
    let described = files.iter().map(|file| {
        let about = fs::metadata(file).ok();
        format!("{:?} {:?}", file.file_name(), about.as_ref().map(describe))
    });
    lines.extend(described);
    lines.join("\n") + "\n"
}

fn describe(about: &Metadata) -> (u64, Option<u128>) {
    let changed = about.modified().ok();
    let changed = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    (about.len(), changed.map(|time| time.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_another_model() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let (a, b) = (file("a", "1"), file("b", "1"));
        let before = place(&a);
        assert_eq!(place(&a), before);
        assert_ne!(place(&b), before);
        let all = place(folder.path());
        file("a", "12");
        assert_ne!(place(&a), before, "another size");
        assert_ne!(place(folder.path()), all);
    }
}
