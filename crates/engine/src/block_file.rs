//! A file of one kept block: what it was made from, and its keys and values.
//!
//! ```text
//! magic   8 bytes      PUNAKV01
//! name    32 bytes     of the block: see `Namer`
//! count   u32          tokens
//! tokens  count x u32
//! bytes   the rest     the page's keys and values, as the cache holds them
//! seal    32 bytes     HMAC-SHA256 of all before it, by the folder's secret
//! ```
//!
//! Numbers are little-endian. A name is a hash of everything that shaped the block, keyed by the
//! folder's secret: that a file has the right name and seal says that this folder's server wrote
//! it, whole, for the same model, tenant and tokens.
//!
//! Knows bytes. Must not know folders or caches.

use sha2::{Digest, Sha256};

/// The keyed hash of what shaped a block.
pub type Name = [u8; 32];

/// What a folder's names and seals are keyed by.
pub type Secret = [u8; 32];

const MAGIC: &[u8; 8] = b"PUNAKV01";
/// Bytes before the tokens, and of the seal.
const HEAD: usize = 8 + 32 + 4;
const SEAL: usize = 32;

/// What a file says.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockFile<'f> {
    /// Of the block.
    pub name: Name,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Its keys and values.
    pub bytes: &'f [u8],
}

/// Bytes of a file of a block of so many tokens and bytes.
#[must_use]
pub fn size(tokens: usize, bytes: usize) -> usize {
    HEAD.saturating_add(tokens.saturating_mul(4))
        .saturating_add(bytes)
        .saturating_add(SEAL)
}

/// The bytes of a file.
#[must_use]
pub fn write(secret: &Secret, name: &Name, tokens: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(size(tokens.len(), bytes.len()));
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(name);
    // Blocks have a page of tokens.
    file.extend_from_slice(
        &u32::try_from(tokens.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    file.extend(tokens.iter().flat_map(|id| id.to_le_bytes()));
    file.extend_from_slice(bytes);
    let seal = keyed(secret, &[&file]);
    file.extend_from_slice(&seal);
    file
}

/// Reads a file; `None` if it is cut, damaged, or another folder's.
#[must_use]
pub fn read<'f>(secret: &Secret, file: &'f [u8]) -> Option<BlockFile<'f>> {
    let (body, seal) = file.split_last_chunk::<SEAL>()?;
    let (magic, rest) = body.split_first_chunk::<8>()?;
    let (name, rest) = rest.split_first_chunk::<32>()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    let (tokens, bytes) = rest.split_at_checked(count.checked_mul(4)?)?;
    if magic != MAGIC || keyed(secret, &[body]) != *seal {
        return None;
    }
    let (tokens, _) = tokens.as_chunks::<4>();
    Some(BlockFile {
        name: *name,
        tokens: tokens.iter().map(|b| u32::from_le_bytes(*b)).collect(),
        bytes,
    })
}

/// HMAC-SHA256 (RFC 2104) of the parts, one after the other.
#[must_use]
pub fn keyed(secret: &Secret, parts: &[&[u8]]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let padded = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(secret).for_each(|(b, s)| *b ^= s);
        block
    };
    let mut inner = Sha256::new();
    inner.update(padded(0x36));
    parts.iter().for_each(|part| inner.update(part));
    let mut outer = Sha256::new();
    outer.update(padded(0x5c));
    outer.update(inner.finalize());
    outer.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = [7; 32];

    #[test]
    fn hmac_is_that_of_the_standard() {
        // RFC 4231, test case 2, whose key is padded with zeros.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let hash = keyed(&key, &[b"what do ya want ", b"for nothing?"]);
        let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let (name, tokens, bytes) = ([3; 32], [1, u32::MAX, 0], b"keys and values");
        let file = write(&SECRET, &name, &tokens, bytes);
        assert_eq!(file.len(), size(tokens.len(), bytes.len()));
        let found = read(&SECRET, &file).unwrap();
        assert_eq!((found.name, found.bytes), (name, &bytes[..]));
        assert_eq!(found.tokens, tokens);
        assert_eq!(read(&[8; 32], &file), None, "another folder's");
        for cut in 0..file.len() {
            assert_eq!(read(&SECRET, &file[..cut]), None, "cut at {cut}");
        }
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] ^= 1;
            assert_eq!(read(&SECRET, &other), None, "changed at {at}");
        }
        let mut longer = file.clone();
        longer.push(0);
        assert_eq!(read(&SECRET, &longer), None);
    }

    /// Whoever knows the secret may still lie about counts.
    #[test]
    fn sealed_lies_are_refused() {
        for count in [1, 2, u32::MAX] {
            let mut file = write(&SECRET, &[3; 32], &[], b"abc");
            file.truncate(file.len() - SEAL);
            file[40..44].copy_from_slice(&count.to_le_bytes());
            let seal = keyed(&SECRET, &[&file]);
            file.extend_from_slice(&seal);
            assert_eq!(read(&SECRET, &file), None, "{count} tokens");
        }
    }
}
