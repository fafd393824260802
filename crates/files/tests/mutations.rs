//! Files with random damage: never a panic, never more memory than a small multiple of the file.
//!
//! One test only: the peak of memory is that of the whole process.

use std::cell::Cell;

use files::gguf::{Array, Gguf, Metadata, Strings, Writer};
use files::{Blob, Dtype, TensorInfo, llama2c, safetensors, torch};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes in memory for each byte of a file: lists of tiny entries cost the most.
const GGUF_FACTOR: usize = 10;

/// The same for safetensors, whose header is read twice and buffered by its crate.
const SAFETENSORS_FACTOR: usize = 20;

/// The same for PyTorch: an instruction of one byte makes a value.
const TORCH_FACTOR: usize = 120;

/// The same for llama2.c, whose arrays may be one number each; it has no more than 4096 layers.
const LLAMA2C_FACTOR: usize = 80;

/// For error messages and the like.
const FLAT: usize = 16 << 10;

fn gguf() -> Vec<u8> {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    m.set("general.alignment", 32u32);
    m.set("f", 1.5f64);
    m.set("yes", true);
    let words: Strings = ["one", "two", "three"].into_iter().collect();
    m.set("words", Array::String(words));
    m.set("numbers", Array::I32(vec![1, 2, 3]));
    m.set(
        "nested",
        Array::Array(vec![Array::U8(vec![1]), Array::Bool(vec![true])]),
    );
    let infos: Vec<TensorInfo> = [
        ("a", Dtype::F32, vec![3, 5]),
        ("b", Dtype::Q8_0, vec![2, 32]),
    ]
    .map(|(name, dtype, shape)| TensorInfo {
        name: name.to_string(),
        dtype,
        shape,
    })
    .to_vec();
    let sizes: Vec<usize> = infos.iter().filter_map(TensorInfo::bytes).collect();
    let mut writer = Writer::new(Vec::new(), &m, infos).expect("header");
    for size in sizes {
        writer.tensor(&vec![1; size]).expect("tensor");
    }
    writer.finish().expect("finish")
}

fn safetensors_file() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("x.safetensors");
    let tensors: [(&str, Dtype, &[usize], &[u8]); 2] = [
        ("a", Dtype::F32, &[2, 2], &[1; 16]),
        ("b", Dtype::U8, &[3], &[2; 3]),
    ];
    safetensors::write(&path, &tensors).expect("write");
    std::fs::read(&path).expect("read")
}

/// Many of the smallest keys and tensors that there can be: the worst for memory.
fn crowded_gguf(n: usize) -> Vec<u8> {
    let mut m = Metadata::new();
    for i in 0..n {
        m.set(format!("{i:x}"), i as u8);
    }
    m.set("s", Array::String((0..n).map(|_| "").collect()));
    m.set("a", Array::Array(vec![Array::U8(vec![]); n]));
    let infos = (0..n).map(|i| TensorInfo {
        name: format!("{i:x}"),
        dtype: Dtype::I8,
        shape: vec![1],
    });
    let mut m8 = m;
    m8.set("general.alignment", 8u32);
    let mut writer = Writer::new(Vec::new(), &m8, infos.collect()).expect("header");
    for _ in 0..n {
        writer.tensor(&[0]).expect("tensor");
    }
    writer.finish().expect("finish")
}

fn crowded_safetensors(n: usize) -> Vec<u8> {
    let entries: Vec<String> = (0..n)
        .map(|i| {
            format!(
                r#""{i:x}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{}]}}"#,
                i + 1
            )
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.resize(file.len() + n, 0);
    file
}

/// A small checkpoint as PyTorch would save it.
fn torch_file() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/torch/sound");
    std::fs::read(path).expect("a seed")
}

/// An archive of nothing but a pickle with `n` empty lists in it.
fn crowded_torch(n: usize) -> Vec<u8> {
    let pickle = [b"\x80\x02}X\x01\0\0\0w(", &vec![b']'; n][..], b"t."].concat();
    let name = b"m/data.pkl";
    let size = (pickle.len() as u32).to_le_bytes();
    let sizes = [size, size].concat();
    let mut file = [
        &b"PK\x03\x04"[..],
        &[0; 14],
        &sizes,
        &[10, 0, 0, 0],
        name,
        &pickle,
    ]
    .concat();
    let begin = (file.len() as u32).to_le_bytes();
    let record = [
        &b"PK\x01\x02"[..],
        &[0; 16],
        &sizes,
        &[10, 0],
        &[0; 16],
        name,
    ]
    .concat();
    file.extend(&record);
    file.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    file.extend((record.len() as u32).to_le_bytes());
    file.extend(begin);
    file.extend([0, 0]);
    file
}

/// A model of width 1 with `layers` layers.
fn llama2c_file(layers: usize) -> Vec<u8> {
    let config = [1, 1, layers as i32, 1, 1, 1, 2];
    let mut file: Vec<u8> = config.iter().flat_map(|n| n.to_le_bytes()).collect();
    file.resize(file.len() + 4 * (1 + 9 * layers + 1 + 2), 0);
    file
}

/// Runs `parse` on `file` and gives whether it succeeded and how much memory it took at most.
fn peak(file: Vec<u8>, parse: fn(Blob) -> bool) -> (bool, usize) {
    let blob = Blob::from_vec(file);
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let parsed = parse(blob);
    (parsed, MEMORY.peak_usage().saturating_sub(before))
}

fn parse_gguf(file: Blob) -> bool {
    Gguf::parse(file).is_ok()
}

fn parse_safetensors(file: Blob) -> bool {
    safetensors::parse(file).is_ok()
}

fn parse_torch(file: Blob) -> bool {
    torch::parse(file).is_ok()
}

fn parse_llama2c(file: Blob) -> bool {
    llama2c::parse(file).is_ok()
}

/// One piece of damage: where (as a fraction of the file), how, and with what.
type Damage = (prop::sample::Index, u8, u64);

fn damage(mut file: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for (place, kind, value) in damages {
        let at = place.index(file.len().max(1));
        let bytes = value.to_le_bytes();
        match kind {
            _ if file.is_empty() => {}
            0 => file.truncate(at),
            1 => file.extend(bytes),
            2 => drop(file.splice(at..at, bytes)),
            3 => drop(file.drain(at..(at + 4).min(file.len()))),
            // A whole number: counts and lengths live at any offset.
            4 | 5 if at + 8 <= file.len() => file[at..at + 8].copy_from_slice(&bytes),
            _ => file[at] = bytes[0],
        }
    }
    file
}

fn fuzz(seed: &[u8], factor: usize, parse: fn(Blob) -> bool) {
    let whole = peak(seed.to_vec(), parse);
    assert!(whole.0, "the seed is sound");
    let value = prop_oneof![
        any::<u64>(),
        0..100u64,
        (0..64u32).prop_map(|bit| 1 << bit),
        (0..64u64).prop_map(|n| u64::MAX - n),
    ];
    let damages = prop::collection::vec((any::<prop::sample::Index>(), 0..12u8, value), 1..4);
    let config = Config {
        cases: 20_000,
        failure_persistence: None,
        ..Config::default()
    };
    let (sound, broken) = (Cell::new(0), Cell::new(0));
    let run = TestRunner::new(config).run(&damages, |damages| {
        let file = damage(seed.to_vec(), &damages);
        let limit = factor * file.len() + FLAT;
        let (parsed, peak) = peak(file, parse);
        prop_assert!(
            peak <= limit,
            "{peak} bytes of memory, the limit is {limit}"
        );
        let count = if parsed { &sound } else { &broken };
        count.set(count.get() + 1);
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    let (sound, broken) = (sound.get(), broken.get());
    assert!(
        sound > 100 && broken > 100,
        "{sound} sound, {broken} broken"
    );
}

#[test]
fn damage_neither_panics_nor_eats_memory() {
    for (file, factor, parse) in [
        (
            crowded_gguf(2000),
            GGUF_FACTOR,
            parse_gguf as fn(Blob) -> bool,
        ),
        (
            crowded_safetensors(2000),
            SAFETENSORS_FACTOR,
            parse_safetensors,
        ),
        (llama2c_file(2000), LLAMA2C_FACTOR, parse_llama2c),
        (crowded_torch(100_000), TORCH_FACTOR, |file| {
            // Lists are no tensors.
            let error = torch::parse(file).expect_err("no tensors").to_string();
            error.contains("items") || error.contains("no dictionary")
        }),
    ] {
        let length = file.len();
        let (parsed, peak) = peak(file, parse);
        assert!(parsed, "crowded, but sound");
        assert!(
            peak <= factor * length + FLAT,
            "{peak} bytes for a file of {length}"
        );
    }
    fuzz(&gguf(), GGUF_FACTOR, parse_gguf);
    fuzz(&safetensors_file(), SAFETENSORS_FACTOR, parse_safetensors);
    fuzz(&torch_file(), TORCH_FACTOR, parse_torch);
    fuzz(&llama2c_file(2), LLAMA2C_FACTOR, parse_llama2c);
}
