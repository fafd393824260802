//! GPT-2's spelling of bytes as printable characters, which GGUF and tokenizer.json use for byte-level vocabularies.
//!
//! The bytes 33-126, 161-172 and 174-255 are the characters with those numbers; the other 68, in
//! increasing order, are U+0100 and up: a space is U+0120, a line feed U+010A.

/// The byte that a character spells.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        n @ (33..=126 | 161..=172 | 174..=255) => Some(n as u8),
        n @ 0x100..=0x120 => Some((n - 0x100) as u8),
        n @ 0x121..=0x142 => Some((n - 0x121 + 127) as u8),
        0x143 => Some(173),
        _ => None,
    }
}

/// The character that spells a byte.
fn char_of(byte: u8) -> char {
    let number = match byte {
        33..=126 | 161..=172 | 174..=255 => u32::from(byte),
        0..=32 => 0x100 + u32::from(byte),
        127..=160 => 0x121 - 127 + u32::from(byte),
        173 => 0x143,
    };
    char::from_u32(number).unwrap_or_default()
}

/// The spelling of bytes.
pub(crate) fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char_of(*b)).collect()
}

/// Appends the bytes that `token` spells. If a character of it is outside the table, `bytes` stays as it was
/// and the answer is false.
pub(crate) fn unspell(token: &str, bytes: &mut Vec<u8>) -> bool {
    let start = bytes.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(b) => bytes.push(b),
            None => {
                bytes.truncate(start);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_spelled_once_in_the_published_order() {
        let mut spelled: Vec<u8> = (0..0x144)
            .filter_map(|n| byte_of(char::from_u32(n)?))
            .collect();
        let tail: Vec<u8> = (0x100..0x144)
            .filter_map(|n| byte_of(char::from_u32(n)?))
            .collect();
        assert!(tail.is_sorted());
        assert!(spelled.iter().all(|b| byte_of(char_of(*b)) == Some(*b)));
        spelled.sort_unstable();
        assert_eq!(spelled, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn spellings() {
        let mut bytes = b"x".to_vec();
        assert!(unspell("ĠhelloĊ", &mut bytes));
        assert_eq!(bytes, b"x hello\n");
        assert!(!unspell("a b", &mut bytes));
        assert_eq!(bytes, b"x hello\n");
    }
}
