//! The old form of importance matrices: no panic, and no more values than the bytes hold.
#![no_main]

use files::{Blob, imatrix};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(matrix) = imatrix::parse(&Blob::from_vec(bytes.to_vec())) {
        let values: usize = matrix.entries.iter().map(|e| e.values.len()).sum();
        assert!(values * 4 <= bytes.len());
    }
});
