//! Wheels: no panic, and never more bytes written than the answer says or the caller allows.
#![no_main]

use std::io::Cursor;

use hub::take_member;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (member, promised) in [(None, None), (Some("m.gguf"), Some(4))] {
        let mut out = Vec::new();
        let taken = take_member(Cursor::new(bytes), "w", member, promised, &mut out, &mut ());
        if let Ok(taken) = taken {
            assert_eq!(taken.bytes, out.len() as u64);
            assert!(promised.is_none_or(|promised| promised == taken.bytes));
        }
    }
});
