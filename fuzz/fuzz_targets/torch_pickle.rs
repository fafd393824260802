//! The pickle of a PyTorch checkpoint, in an archive that is sound: no panic.
#![no_main]

use std::sync::LazyLock;

use files::{Blob, torch};

/// An empty dictionary opens: it is not the archive that is refused.
static SOUND: LazyLock<bool> =
    LazyLock::new(|| torch::parse(Blob::from_vec(archive(b"\x80\x02}."))).is_ok());

/// An archive of data.pkl and a storage of 64 bytes.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let storage = [7u8; 64];
    let entries: [(&[u8], &[u8]); 2] = [(b"m/data.pkl", pickle), (b"m/data/0", &storage)];
    let (mut out, mut records) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let begin = (out.len() as u32).to_le_bytes();
        let size = (data.len() as u32).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        out.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        out.extend([size, size].as_flattened());
        out.extend([name_len, [0; 2]].as_flattened());
        out.extend([name, data].concat());
        records.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        records.extend([size, size].as_flattened());
        records.extend([name_len, [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]].as_flattened());
        records.extend(begin);
        records.extend(name);
    }
    let begin = (out.len() as u32).to_le_bytes();
    let size = (records.len() as u32).to_le_bytes();
    out.extend(records);
    out.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    out.extend([size, begin].as_flattened());
    out.extend([0; 2]);
    out
}

libfuzzer_sys::fuzz_target!(|pickle: &[u8]| {
    assert!(*SOUND);
    let _ = torch::parse(Blob::from_vec(archive(pickle)));
});
