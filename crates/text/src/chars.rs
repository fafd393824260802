//! Classes of characters as the pre-tokenizers' patterns use them: `\p{L}`, `\p{N}`, `\s` and their kin.
//!
//! A class is a set of bits, so that one look-up answers every question about a character. ASCII comes from
//! a table made at compile time, the rest from the Unicode tables of a crate. `\s` is Unicode's White_Space.

use unicode_general_category::{GeneralCategory as G, get_general_category};

/// What a character is; several bits may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class(u16);

impl Class {
    /// No character: the end of the text, and the class that matches nothing.
    pub(crate) const END: Class = Class(0);
    pub(crate) const NOTHING: Class = Class(0);
    /// `\p{L}`
    pub(crate) const LETTER: Class = Class(1);
    /// `\p{N}`
    pub(crate) const NUMBER: Class = Class(2);
    /// `\s`
    pub(crate) const SPACE: Class = Class(4);
    /// `[^\s\p{L}\p{N}]`
    pub(crate) const OTHER: Class = Class(8);
    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
    pub(crate) const UPPER: Class = Class(16);
    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
    pub(crate) const LOWER: Class = Class(32);
    /// `[\p{P}\$\+<=>\^~\|]`
    pub(crate) const DEFAULT_MARK: Class = Class(64);
    /// `OTHER` without `DEFAULT_MARK`
    pub(crate) const DEFAULT_OTHER: Class = Class(128);
    pub(crate) const LETTER_OR_NUMBER: Class = Class(1 | 2);

    /// Whether the character is in `class` (in any of them, where `class` joins several).
    #[inline]
    pub(crate) const fn is(self, class: Class) -> bool {
        self.0 & class.0 != 0
    }

    const fn and(self, other: Class) -> Class {
        Class(self.0 | other.0)
    }
}

/// The class and byte length of the character of `text` at `at`; [`Class::END`] and 0 at the end.
#[inline]
pub(crate) fn class_at(text: &str, at: usize) -> (Class, usize) {
    match text.as_bytes().get(at) {
        None => (Class::END, 0),
        Some(&b) if b < 128 => (ASCII[b as usize], 1),
        Some(_) => text[at..]
            .chars()
            .next()
            .map_or((Class::END, 0), |c| (class(c), c.len_utf8())),
    }
}

/// The class of a character outside ASCII.
fn class(c: char) -> Class {
    let both = Class::UPPER.and(Class::LOWER);
    let class = match get_general_category(c) {
        G::UppercaseLetter | G::TitlecaseLetter => return Class::LETTER.and(Class::UPPER),
        G::LowercaseLetter => return Class::LETTER.and(Class::LOWER),
        G::ModifierLetter | G::OtherLetter => return Class::LETTER.and(both),
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => return Class::NUMBER,
        G::NonspacingMark | G::SpacingMark | G::EnclosingMark => {
            Class::OTHER.and(both).and(Class::DEFAULT_OTHER)
        }
        G::ConnectorPunctuation
        | G::DashPunctuation
        | G::OpenPunctuation
        | G::ClosePunctuation
        | G::InitialPunctuation
        | G::FinalPunctuation
        | G::OtherPunctuation => Class::OTHER.and(Class::DEFAULT_MARK),
        _ => Class::OTHER.and(Class::DEFAULT_OTHER),
    };
    if c.is_whitespace() {
        Class::SPACE
    } else {
        class
    }
}

const ASCII: [Class; 128] = {
    let mut table = [Class::END; 128];
    let mut b = 0;
    while b < 128 {
        table[b as usize] = match b {
            b'A'..=b'Z' => Class::LETTER.and(Class::UPPER),
            b'a'..=b'z' => Class::LETTER.and(Class::LOWER),
            b'0'..=b'9' => Class::NUMBER,
            b' ' | b'\t'..=b'\r' => Class::SPACE,
            // Not punctuation but symbols, and not listed in the `default` pattern.
            b'`' => Class::OTHER.and(Class::DEFAULT_OTHER),
            b'!'..=b'~' => Class::OTHER.and(Class::DEFAULT_MARK),
            _ => Class::OTHER.and(Class::DEFAULT_OTHER),
        };
        b += 1;
    }
    table
};
