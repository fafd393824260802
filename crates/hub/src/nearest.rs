//! "Did you mean": known names by edit distance.

/// At most three of `known` that are spelt nearly like `word`, the nearest first. A known name
/// is compared whole and without its tag; one that begins with the word counts as near.
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Vec<String> {
    const SHOWN: usize = 3;
    let word = word.to_ascii_lowercase();
    let letters = word.chars().count();
    // Quadratic work on a long word would be wasted: no name is that long.
    if letters == 0 || letters > 200 {
        return Vec::new();
    }
    let limit = (letters / 3).max(2);
    let mut found: Vec<(usize, &str)> = known
        .filter_map(|name| {
            let stem = name.split(':').next().unwrap_or(name);
            let leaf = stem.rsplit('/').next().unwrap_or(stem);
            let distance = [name, stem, leaf]
                .into_iter()
                .map(|form| distance(&word, form))
                .min()?;
            let begins = letters >= 3 && (name.starts_with(&word) || leaf.starts_with(&word));
            (distance <= limit || begins).then_some((distance, name))
        })
        .collect();
    found.sort();
    found.dedup();
    found
        .into_iter()
        .take(SHOWN)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// Edits (insert, delete, replace, swap of neighbours) between two words: the optimal string
/// alignment distance, three rows of its table at a time.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1; b.len() + 1];
        for j in 0..b.len() {
            let replace = above[j] + usize::from(a[i] != b[j]);
            row[j + 1] = replace.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("smolm2", "smollm2", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn near_names_come_first_and_far_ones_not_at_all() {
        let known = [
            "smollm2:135m",
            "org/llama-3.2:q4_k_m",
            "smollm2:1.7b",
            "zephyr:latest",
        ];
        let near = |word| nearest(word, known.into_iter());
        assert_eq!(near("smolm2:135m")[0], "smollm2:135m");
        assert_eq!(near("smol"), ["smollm2:1.7b", "smollm2:135m"]);
        assert_eq!(near("llama-3.1"), ["org/llama-3.2:q4_k_m"]);
        assert!(near("mistral").is_empty());
        assert!(near("").is_empty());
    }
}
