//! PyTorch checkpoints: no panic, and every tensor has the bytes that its type and shape call for;
//! copies take no more than the file has.
#![no_main]

use files::{Blob, torch};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(tensors) = torch::parse(Blob::from_vec(bytes.to_vec())) else {
        return;
    };
    assert!(
        tensors
            .iter()
            .all(|tensor| tensor.dtype.bytes(&tensor.shape) == Some(tensor.data.len()))
    );
});
