//! Saved log-probabilities: no panic, rows are what the header says, and a file that is accepted
//! compares with a run over the same tokens.
#![no_main]

use engine::{KlComparison, KlReader, KlRow};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let open = || KlReader::new(bytes, bytes.len() as u64);
    let Ok(mut reader) = open() else { return };
    let header = reader.header().clone();
    let mut row = KlRow::default();
    let mut rows = Vec::new();
    while let Ok(true) = reader.next_row(&mut row) {
        assert_eq!(row.logprobs.len(), header.vocab);
        assert!((row.top as usize) < header.vocab);
        rows.push(row.logprobs.clone());
    }
    assert!(rows.len() <= header.rows());
    let saved = open().expect("it opened before");
    let mut comparison = KlComparison::new(saved, header.vocab, header.ctx, &header.ids)
        .expect("its own header");
    for row in &rows {
        comparison.push(row).expect("its own rows");
    }
    if let Some(stats) = comparison.stats() {
        assert!(stats.mean < 1e-6, "a run equals itself: {stats:?}");
    }
});
