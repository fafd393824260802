//! Saved log-probabilities: what is written is read, what is damaged is refused, and the
//! statistics are those of the definition.

use engine::{Error, KlComparison, KlHeader, KlReader, KlRow, KlStorage, KlWriter, LogSoftmax};
use proptest::prelude::*;

const VOCAB: usize = 50;
const CTX: usize = 9;

fn row(seed: usize) -> Vec<f32> {
    (0..VOCAB)
        .map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 60.0)
        .collect()
}

fn ids() -> Vec<u32> {
    (0..3 * CTX as u32 + 4).map(|i| i % VOCAB as u32).collect()
}

fn file(storage: KlStorage) -> Vec<u8> {
    let header = KlHeader::new(storage, VOCAB, CTX, &ids()).unwrap();
    let mut writer = KlWriter::new(Vec::new(), &header).unwrap();
    for i in 0..header.rows() {
        writer.push(&row(i)).unwrap();
    }
    writer.finish().unwrap()
}

fn open(bytes: &[u8]) -> Result<KlReader<&[u8]>, Error> {
    KlReader::new(bytes, bytes.len() as u64)
}

fn read_all(bytes: &[u8]) -> Result<usize, Error> {
    let mut reader = open(bytes)?;
    let mut row = KlRow::default();
    let mut rows = 0;
    while reader.next_row(&mut row)? {
        rows += 1;
    }
    Ok(rows)
}

#[test]
fn what_is_written_is_read() {
    for (storage, tolerance) in [(KlStorage::F32, 1e-6), (KlStorage::F16, 1e-2)] {
        let bytes = file(storage);
        let mut reader = open(&bytes).unwrap();
        assert_eq!(
            reader.header(),
            &KlHeader::new(storage, VOCAB, CTX, &ids()).unwrap()
        );
        assert_eq!(reader.header().ids.len(), 3 * CTX);
        // Half of each chunk: positions 4..=7.
        assert_eq!(reader.header().rows(), 3 * 4);
        let mut got = KlRow::default();
        for i in 0..reader.header().rows() {
            assert!(reader.next_row(&mut got).unwrap());
            let logits = row(i);
            let softmax = LogSoftmax::new(&logits);
            for (a, b) in got.logprobs.iter().zip(&logits) {
                assert!((f64::from(*a) - softmax.of(*b)).abs() < tolerance);
            }
            assert_eq!(got.top, engine::filters::greedy(&logits).unwrap());
        }
        assert!(!reader.next_row(&mut got).unwrap());
    }
}

#[test]
fn a_run_equals_itself() {
    for (storage, tolerance) in [(KlStorage::F32, 1e-12), (KlStorage::F16, 1e-5)] {
        let bytes = file(storage);
        let reader = open(&bytes).unwrap();
        let mut comparison = KlComparison::new(reader, VOCAB, CTX, &ids()).unwrap();
        assert_eq!(comparison.stats(), None);
        for i in 0..12 {
            comparison.push(&row(i)).unwrap();
        }
        let stats = comparison.stats().unwrap();
        assert!(stats.max < tolerance, "{storage:?}: {stats:?}");
        assert_eq!((stats.same_top, stats.tokens), (1.0, 12));
        assert!(matches!(
            comparison.push(&row(0)),
            Err(Error::KlMismatch { .. })
        ));
    }
}

#[test]
fn statistics_are_those_of_the_definition() {
    let bytes = file(KlStorage::F32);
    let mut comparison = KlComparison::new(open(&bytes).unwrap(), VOCAB, CTX, &ids()).unwrap();
    let mut expected = Vec::new();
    let mut same = 0;
    for i in 0..12 {
        let (saved, own) = (row(i), row(if i < 6 { i } else { i + 1 }));
        let softmax = |logits: &[f32]| {
            let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            let p = |l: &f32| f64::from(*l).exp() / total;
            logits.iter().map(p).collect::<Vec<f64>>()
        };
        let (p, q) = (softmax(&saved), softmax(&own));
        expected.push(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
        same += usize::from(engine::filters::greedy(&saved) == engine::filters::greedy(&own));
        comparison.push(&own).unwrap();
    }
    expected.sort_unstable_by(f64::total_cmp);
    let stats = comparison.stats().unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    near(stats.mean, expected.iter().sum::<f64>() / 12.0);
    near(stats.median, (expected[5] + expected[6]) / 2.0);
    near(
        stats.p99,
        expected[10] + 0.89 * (expected[11] - expected[10]),
    );
    near(stats.max, expected[11]);
    near(stats.same_top, same as f64 / 12.0);
    assert!(stats.mean > 0.1, "the rows do differ");
}

#[test]
fn another_run_is_refused() {
    let bytes = file(KlStorage::F16);
    let new = |vocab, ctx, ids: &[u32]| {
        KlComparison::new(open(&bytes).unwrap(), vocab, ctx, ids).map(|_| ())
    };
    new(VOCAB, CTX, &ids()).unwrap();
    let mut other = ids();
    other[5] = 40;
    let cases = [
        (VOCAB + 1, CTX, ids(), "vocabulary"),
        (VOCAB, CTX + 1, ids(), "ctx"),
        (VOCAB, CTX, ids()[..20].to_vec(), "number of tokens"),
        (VOCAB, CTX, other, "index 5"),
    ];
    for (vocab, ctx, ids, what) in cases {
        let error = new(vocab, ctx, &ids).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn an_unfinished_run_leaves_no_valid_file() {
    let header = KlHeader::new(KlStorage::F16, VOCAB, CTX, &ids()).unwrap();
    let mut out = Vec::new();
    let mut writer = KlWriter::new(&mut out, &header).unwrap();
    writer.push(&row(0)).unwrap();
    assert!(matches!(writer.finish(), Err(Error::KlMismatch { .. })));
    assert!(matches!(open(&out), Err(Error::KlFile { .. })));
}

#[test]
fn damage_is_refused_with_its_place() {
    let whole = file(KlStorage::F32);
    assert_eq!(read_all(&whole).unwrap(), 12);
    let rows_at = 28 + 4 * 3 * CTX;
    let nan = f32::NAN.to_le_bytes();
    let likely = 0.5f32.to_le_bytes();
    let cases: [(usize, &[u8], u64); 11] = [
        (0, b"X", 0),
        (8, &[2], 8),
        (12, &[9], 12),
        (16, &[0], 16),       // vocab 0
        (20, &[2], 16),       // ctx 2
        (24, &[0], 16),       // no chunk
        (24, &[255; 4], 16),  // more chunks than bytes
        (16, &[255; 12], 16), // everything overflows
        (28, &[200], 28),     // an unknown token
        (rows_at, &[200], rows_at as u64),
        (rows_at + 4 + 8, &nan, rows_at as u64 + 12),
    ];
    for (at, bytes, offset) in cases {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        match read_all(&damaged) {
            Err(Error::KlFile { offset: got, .. }) => assert_eq!(got, offset, "byte {at}"),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    let mut damaged = whole.clone();
    damaged[rows_at + 4..rows_at + 8].copy_from_slice(&likely);
    assert!(read_all(&damaged).is_err(), "a probability above 1");
    for len in [0, 7, 27, 28, rows_at, whole.len() - 1] {
        assert!(matches!(read_all(&whole[..len]), Err(Error::KlFile { .. })));
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(read_all(&longer), Err(Error::KlFile { .. })));
    // A length that lies: the reader runs out of bytes.
    let lying = KlReader::new(&whole[..40], whole.len() as u64);
    assert!(matches!(lying, Err(Error::Io { .. })));
}

#[test]
fn rows_that_cannot_be_saved_are_refused() {
    let header = KlHeader::new(KlStorage::F16, VOCAB, CTX, &ids()).unwrap();
    let mut writer = KlWriter::new(Vec::new(), &header).unwrap();
    assert!(matches!(
        writer.push(&[0.0; 3]),
        Err(Error::LogitsShape { .. })
    ));
    let mut bad = row(0);
    bad[7] = f32::NAN;
    assert!(matches!(
        writer.push(&bad),
        Err(Error::BadLogit { id: 7, .. })
    ));
    for (vocab, ctx) in [(0, CTX), (VOCAB, 2)] {
        assert!(KlHeader::new(KlStorage::F16, vocab, ctx, &ids()).is_err());
    }
    let short = KlHeader::new(KlStorage::F16, VOCAB, 1000, &ids());
    assert!(matches!(short, Err(Error::TooShort { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        numbers in prop::collection::vec(0u8..6, 12),
    ) {
        let _ = read_all(&bytes);
        // With a header that is nearly right.
        let mut header = b"PUNALOGP\x01\0\0\0\x01\0\0\0".to_vec();
        for number in numbers.iter().take(3) {
            header.extend([*number, 0, 0, 0]);
        }
        header.append(&mut bytes);
        let _ = read_all(&header);
    }
}
