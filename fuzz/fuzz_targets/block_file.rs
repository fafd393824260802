//! Files of kept blocks: no panic; what is not sealed is refused; what is sealed and accepted is
//! written as it was.
#![no_main]

use engine::block_file::{Secret, keyed, read, write};

const SECRET: Secret = [7; 32];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // What is behind the seal is looked at as well.
    check(&[bytes, &keyed(&SECRET, &[bytes])].concat());
});

fn check(file: &[u8]) {
    if let Some(found) = read(&SECRET, file) {
        let again = write(&SECRET, &found.name, &found.tokens, found.bytes);
        assert_eq!(again, file);
    }
}
