//! The hand-written splitters against the published patterns, run by a regex engine.

use fancy_regex::Regex;
use proptest::prelude::*;
use text::pretokenize::Pattern;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA4: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The cuts of each pattern, one after the other, each inside the pieces of the one before. What a pattern does
/// not match is a piece too.
fn published(pattern: Pattern) -> Vec<Regex> {
    let stages: &[&str] = match pattern {
        Pattern::Gpt2 => &[GPT2],
        Pattern::Smollm => &[r"\p{N}", GPT2],
        Pattern::Llama3 => &[LLAMA3],
        Pattern::Llama4 => &[LLAMA4],
        Pattern::Default => &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            "[0-9][0-9][0-9]",
        ],
    };
    stages.iter().map(|s| Regex::new(s).unwrap()).collect()
}

fn split_by<'t>(regex: &Regex, text: &'t str) -> Vec<&'t str> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    for found in regex.find_iter(text) {
        let found = found.unwrap();
        pieces.push(&text[at..found.start()]);
        pieces.push(found.as_str());
        at = found.end();
    }
    pieces.push(&text[at..]);
    pieces.retain(|p| !p.is_empty());
    pieces
}

const ALL: [Pattern; 5] = [
    Pattern::Gpt2,
    Pattern::Smollm,
    Pattern::Llama3,
    Pattern::Llama4,
    Pattern::Default,
];

fn check(text: &str) -> Result<(), TestCaseError> {
    thread_local!(static REGEXES: Vec<Vec<Regex>> = ALL.map(published).into());
    REGEXES.with(|regexes| {
        for (pattern, stages) in ALL.iter().zip(regexes) {
            let mut want = vec![text];
            for regex in stages {
                want = want
                    .iter()
                    .flat_map(|piece| split_by(regex, piece))
                    .collect();
            }
            let got: Vec<&str> = pattern.split(text).collect();
            prop_assert_eq!(got, want, "{:?} on {:?}", pattern, text);
        }
        Ok(())
    })
}

/// Characters of every class that a pattern names, and pieces in which the branches meet.
fn fragment() -> impl Strategy<Value = String> {
    let characters = "aZé Ωß中文のنшѐǅʰªᵃ\u{301}\u{903}\u{20dd}٣५Ⅳ²½7 0\u{a0}\u{3000}\u{85}\u{2028}\u{1680}\t\r\n\u{b}\u{c}\u{1c}\u{1f}'’\"!?.,-_/()<>=+$^~|`#@&*%§¿«»“”—₿€×÷¬±🦙👩‍💻\u{200b}\u{200d}\u{feff}\u{ad}\u{e000}\u{378}\0\u{7f}ſK";
    let characters: Vec<char> = characters.chars().collect();
    prop_oneof![
        6 => prop::sample::select(characters).prop_map(String::from),
        2 => prop::sample::select(vec![
            " ", "  ", "   ", "\n", "\r\n", "\n\n", " \n", "\n ", "'s", "'S", "'ſ", "'re", "'VE", "'ll", "'lL", "'m", "'D", "'t", "''", "'l",
            "'r", "12", "123", "1234", "٣٣٣", "1٣23", "AB", "Ab", "aB", "中A", "A中a", "/\n", "//", "...", "\u{301}a", "a\u{301}", " \u{301}",
        ]).prop_map(String::from),
        2 => "[a-z]{1,6}",
        1 => "[A-Z]{1,4}[a-z]{0,3}",
        1 => any::<char>().prop_map(String::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
    #[test]
    fn splitters_equal_the_published_patterns(parts in prop::collection::vec(fragment(), 0..24)) {
        check(&parts.concat())?;
    }
}

/// Every character alone, doubled, and among its neighbours: so every class of every character counts.
#[test]
fn every_character_is_classed_as_the_regex_engine_does() {
    let characters = (0..0x11_0000u32).filter_map(char::from_u32);
    let mut text = String::new();
    for c in characters {
        text.push_str(" a");
        text.extend([c, c]);
        text.push_str("A1");
        text.push(c);
        text.push_str(". ");
        if text.len() > 4000 {
            check(&text).unwrap();
            text.clear();
        }
    }
    check(&text).unwrap();
}

#[test]
fn pieces_of_a_sentence() {
    let split = |pattern: Pattern, text| pattern.split(text).collect::<Vec<&str>>();
    let text = "I'LL take  12345\n\n it's";
    assert_eq!(
        split(Pattern::Llama3, text),
        [
            "I", "'LL", " take", " ", " ", "123", "45", "\n\n", " it", "'s"
        ]
    );
    assert_eq!(
        split(Pattern::Llama4, text),
        ["I'LL", " take", " ", " ", "123", "45", "\n\n", " it's"]
    );
    assert_eq!(
        split(Pattern::Gpt2, text),
        ["I", "'", "LL", " take", " ", " 12345", "\n\n", " it", "'s"]
    );
    assert_eq!(
        split(Pattern::Smollm, text),
        [
            "I", "'", "LL", " take", "  ", "1", "2", "3", "4", "5", "\n\n", " it", "'s"
        ]
    );
    assert_eq!(
        split(Pattern::Default, text),
        [
            "I", "'", "LL", " take", " ", " ", "123", "45", "\n\n", " it", "'", "s"
        ]
    );
}
