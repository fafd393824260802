//! Kept beginnings in files: the same answers, in memory's stead and after a restart, never for
//! another tenant or model, and never at the cost of a request.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::scheduling::{Setup, collect, params, prompt, request, same, sampled, settled, setup};
use engine::{
    Adaptation, Beside, Error, KeptIn, Request, Root, Scheduler, SchedulerParams, Spill, Update,
};
use kernels::{Compute, Kernels, KvType, Level};
use model::PAGE;
use tempfile::TempDir;

fn open(folder: &Path) -> Arc<Spill> {
    Arc::new(Spill::open(folder, 1 << 20).unwrap())
}

/// A scheduler of `pages` pages with a folder.
fn start(setup: &Setup, spill: &Arc<Spill>, model: &str, params: SchedulerParams) -> Scheduler {
    let folder = KeptIn {
        spill: spill.clone(),
        model: model.to_owned(),
        adaptation: Adaptation::default(),
    };
    let beside = Beside {
        folder: Some(folder),
        ..Beside::default()
    };
    let (weights, tokenizer) = (setup.weights.clone(), setup.tokenizer.clone());
    Scheduler::start_beside(weights, tokenizer, params, beside).unwrap()
}

fn small() -> SchedulerParams {
    params(8 * PAGE, 1)
}

fn root(scope: &str, salt: &str) -> Root {
    Root {
        scope: scope.into(),
        salt: salt.into(),
        ..Root::default()
    }
}

/// Asks, checks the answer, and says how many tokens were there.
fn ask(setup: &Setup, scheduler: &Scheduler, root: Root, ids: &[u32]) -> usize {
    let request = Request {
        root,
        ..request(ids.to_vec(), sampled(5, 12))
    };
    let mut replies = scheduler.submit(request).unwrap();
    let Some(Update::Started(begun)) = replies.next_blocking() else {
        panic!("it starts first");
    };
    let got = collect(replies).unwrap();
    same(&got, &setup.alone(8 * PAGE, ids, &sampled(5, 12)));
    begun.cached
}

/// The folder's files, but for its key.
fn files(folder: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(folder).unwrap();
    let mut all: Vec<_> = list.map(|file| file.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|e| e == "kv"));
    all.sort();
    all
}

#[test]
fn what_went_comes_back() {
    let (setup, dir) = (setup("llama3"), TempDir::new().unwrap());
    let spill = open(dir.path());
    let scheduler = start(&setup, &spill, "m", small());
    let ids = prompt(1, 100);
    assert_eq!(ask(&setup, &scheduler, root("a", ""), &ids), 0);
    for seed in 20..24 {
        ask(&setup, &scheduler, root("a", ""), &prompt(seed, 200));
    }
    // Read back, pressed out, and read back.
    for round in 0..3 {
        assert_eq!(ask(&setup, &scheduler, root("a", ""), &ids), 96, "{round}");
        ask(&setup, &scheduler, root("a", ""), &prompt(30 + round, 200));
    }
    settled(&scheduler);
    let stats = scheduler.stats();
    assert!(stats.written > 0 && stats.restored >= 6, "{stats:?}");
    assert_eq!(stats.folder_errors, 0);
}

#[test]
fn what_was_kept_outlives_the_process() {
    let (setup, dir) = (setup("llama3"), TempDir::new().unwrap());
    let ids = prompt(1, 100);
    let cached = |root: Root, model: &str| {
        let spill = open(dir.path());
        let scheduler = start(&setup, &spill, model, small());
        ask(&setup, &scheduler, root, &ids)
    };
    assert_eq!(cached(root("a", ""), "m"), 0);
    assert_eq!(cached(root("a", ""), "m"), 96);
    for (root, model) in [
        (root("b", ""), "m"),
        (root("a", "x"), "m"),
        (root("", "a"), "m"),
        (root("a", ""), "n"),
    ] {
        assert_eq!(cached(root.clone(), model), 0, "{root:?} of {model}");
        assert_eq!(cached(root.clone(), model), 96, "{root:?} of {model}");
    }
    let common = |scope: &str| Root {
        common: 70,
        ..root(scope, "")
    };
    assert_eq!(cached(common("a"), "m"), 0);
    assert_eq!(cached(common("b"), "m"), 64, "the two blocks in common");
    for scope in ["a", "b"] {
        assert_eq!(cached(common(scope), "m"), 96, "and its own");
    }
    // What other tokens follow is found up to there.
    let mut other = ids.clone();
    other[70] += 1;
    let spill = open(dir.path());
    let scheduler = start(&setup, &spill, "m", small());
    assert_eq!(ask(&setup, &scheduler, root("a", ""), &other), 64);
}

/// Bits differ between storage types, compute modes and levels.
#[test]
fn keys_and_values_of_other_bits_are_others() {
    let (mut setup, dir) = (setup("llama3"), TempDir::new().unwrap());
    let ids = prompt(1, 100);
    let cached = |setup: &Setup, kv: KvType| {
        let spill = open(dir.path());
        let params = SchedulerParams { kv, ..small() };
        let scheduler = start(setup, &spill, "m", params);
        let mut replies = scheduler
            .submit(request(ids.clone(), sampled(5, 4)))
            .unwrap();
        let Some(Update::Started(begun)) = replies.next_blocking() else {
            panic!("it starts first");
        };
        collect(replies).unwrap();
        begun.cached
    };
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        assert_eq!((cached(&setup, kv), cached(&setup, kv)), (0, 96), "{kv}");
    }
    for (level, compute) in [
        (Level::Scalar, Compute::F32),
        (Level::Scalar, Compute::Fast),
    ] {
        let kernels = Arc::new(Kernels::new(level, compute, 1).unwrap());
        setup.weights = Arc::new(setup.weights.with_kernels(kernels));
        let twice = (cached(&setup, KvType::F32), cached(&setup, KvType::F32));
        assert_eq!(twice, (0, 96), "{level:?} {compute:?}");
    }
}

/// What was done to the files: nothing of them is used, and they go.
#[test]
fn damaged_files_are_deleted_and_change_nothing() {
    let setup = setup("llama3");
    let ids = prompt(1, 100);
    type Harm = fn(&Path, &[PathBuf]);
    let harms: [(&str, Harm); 6] = [
        ("cut", |file, _| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("empty", |file, _| fs::write(file, "").unwrap()),
        ("longer", |file, _| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, [&bytes[..], b"x"].concat()).unwrap();
        }),
        ("one bit", |file, _| {
            let mut bytes = fs::read(file).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 4;
            fs::write(file, bytes).unwrap();
        }),
        ("another block's", |file, all| {
            let other = all.iter().find(|other| *other != file).unwrap();
            let bytes = fs::read(other).unwrap();
            fs::write(file, bytes).unwrap();
        }),
        ("gone", |file, _| fs::remove_file(file).unwrap()),
    ];
    for (what, harm) in harms {
        let dir = TempDir::new().unwrap();
        let spill = open(dir.path());
        let scheduler = start(&setup, &spill, "m", small());
        ask(&setup, &scheduler, root("a", ""), &ids);
        drop(scheduler);
        drop(spill);
        let all = files(dir.path());
        assert!(all.len() >= 3, "{all:?}");
        let spill = open(dir.path());
        // After the folder was listed.
        for file in &all {
            if file != &all[0] || what != "another block's" {
                harm(file, &all);
            }
        }
        let scheduler = start(&setup, &spill, "m", small());
        let cached = ask(&setup, &scheduler, root("a", ""), &ids);
        assert!(cached <= PAGE, "{what}: {cached}");
        assert!(what == "gone" || spill.errors() > 0, "{what}");
        drop(scheduler);
        drop(spill);
        // It was written anew.
        let spill = open(dir.path());
        let scheduler = start(&setup, &spill, "m", small());
        assert_eq!(ask(&setup, &scheduler, root("a", ""), &ids), 96, "{what}");
    }
}

#[test]
fn a_folder_takes_no_more_than_it_may() {
    let (setup, dir) = (setup("llama3"), TempDir::new().unwrap());
    let one = {
        let spill = open(dir.path());
        let scheduler = start(&setup, &spill, "m", small());
        ask(&setup, &scheduler, root("a", ""), &prompt(1, 40));
        drop(scheduler);
        drop(spill);
        fs::metadata(&files(dir.path())[0]).unwrap().len()
    };
    let limit = 7 * one + one / 2;
    let spill = Arc::new(Spill::open(dir.path(), limit).unwrap());
    let scheduler = start(&setup, &spill, "m", small());
    for seed in 40..48 {
        ask(&setup, &scheduler, root("a", ""), &prompt(seed, 150));
    }
    drop(scheduler);
    assert!(spill.bytes() <= limit);
    drop(spill);
    let size = |file: &PathBuf| fs::metadata(file).unwrap().len();
    let sum: u64 = files(dir.path()).iter().map(size).sum();
    assert!(sum <= limit && sum >= 5 * one, "{sum} of {limit}");
    // The newest stayed.
    let spill = Arc::new(Spill::open(dir.path(), limit).unwrap());
    let scheduler = start(&setup, &spill, "m", small());
    assert_eq!(
        ask(&setup, &scheduler, root("a", ""), &prompt(47, 150)),
        128
    );
    drop(scheduler);
    drop(spill);
    // A smaller limit holds from the start on.
    let spill = Spill::open(dir.path(), 2 * one).unwrap();
    assert!(files(dir.path()).len() <= 2 && spill.bytes() <= 2 * one);
    drop(spill);
    // And none at all keeps nothing, and harms nobody.
    let spill = Arc::new(Spill::open(dir.path(), 0).unwrap());
    let scheduler = start(&setup, &spill, "m", small());
    assert_eq!(ask(&setup, &scheduler, root("a", ""), &prompt(1, 100)), 0);
    drop(scheduler);
    assert!(files(dir.path()).is_empty());
}

/// A folder that cannot be written is nobody's trouble.
#[test]
fn a_folder_that_fails_fails_no_request() {
    let (setup, dir) = (setup("llama3"), TempDir::new().unwrap());
    let folder = dir.path().join("cache");
    let spill = open(&folder);
    let scheduler = start(&setup, &spill, "m", small());
    fs::remove_dir_all(&folder).unwrap();
    for seed in 0..6 {
        ask(&setup, &scheduler, root("a", ""), &prompt(seed, 150));
    }
    settled(&scheduler);
    drop(scheduler);
    // Its thread has tried, at the latest when it ends.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while spill.errors() == 0 && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(spill.errors() > 0);
}

#[test]
fn a_folder_is_ones_own() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("deep").join("cache");
    let spill = open(&folder);
    let taken = Spill::open(&folder, 1).unwrap_err();
    assert!(matches!(taken, Error::CacheDir { .. }), "{taken}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("puna-cache.key")), 0o600);
        let setup = setup("llama3");
        let scheduler = start(&setup, &spill, "m", small());
        ask(&setup, &scheduler, root("a", ""), &prompt(1, 100));
        drop(scheduler);
        drop(spill);
        let files = files(&folder);
        assert!(!files.is_empty());
        assert!(files.iter().all(|file| mode(file) == 0o600));
    }
    // Somebody's own files are no cache, and none of them is touched.
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letter"), "dear").unwrap();
    let refused = Spill::open(&home, 1 << 20).unwrap_err().to_string();
    assert!(refused.contains("not empty"), "{refused}");
    fs::write(folder.join("letter"), "dear").unwrap();
    let half = format!("{}.part", "0".repeat(64));
    fs::write(folder.join(&half), "half").unwrap();
    let spill = open(&folder);
    assert!(folder.join("letter").exists() && !folder.join(half).exists());
    drop(spill);
    // Without its secret the files are another's.
    fs::write(folder.join("puna-cache.key"), "short").unwrap();
    let spill = open(&folder);
    let setup = setup("llama3");
    let scheduler = start(&setup, &spill, "m", small());
    assert_eq!(ask(&setup, &scheduler, root("a", ""), &prompt(1, 100)), 0);
}
