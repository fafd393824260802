//! GGUF: whatever is accepted must be the same after it has been written and read again.
#![no_main]

use files::{Blob, Tensor, gguf::Gguf, gguf::Writer};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(Blob::from_vec(bytes.to_vec())) else {
        return;
    };
    let infos: Vec<_> = gguf.tensors.iter().map(Tensor::info).collect();
    let mut writer =
        Writer::new(Vec::new(), &gguf.metadata, infos).expect("what was read can be written");
    gguf.tensors
        .iter()
        .for_each(|tensor| writer.tensor(&tensor.data).expect("its own bytes"));
    let again = Gguf::parse(Blob::from_vec(writer.finish().expect("all written")))
        .expect("what was written can be read");
    // As text, for a number that is not one does not equal itself.
    assert_eq!(
        format!("{:?}", gguf.metadata),
        format!("{:?}", again.metadata)
    );
    assert!(
        gguf.tensors
            .iter()
            .zip(&again.tensors)
            .all(|(a, b)| a.info() == b.info() && *a.data == *b.data)
    );
});
