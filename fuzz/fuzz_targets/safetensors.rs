//! safetensors: no panic, and every tensor that is accepted lies inside the file.
#![no_main]

use files::{Blob, safetensors};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(tensors) = safetensors::parse(Blob::from_vec(bytes.to_vec())) else {
        return;
    };
    let covered: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
    assert!(covered + 8 <= bytes.len());
    assert!(
        tensors
            .iter()
            .all(|tensor| tensor.dtype.bytes(&tensor.shape) == Some(tensor.data.len()))
    );
});
