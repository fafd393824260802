//! `puna doctor`: what this machine is, what Puna makes of it, and what would be slow and why.
//!
//! Reads the system's own text files; what is missing there is reported as unknown, never a failure.

use std::path::{Path, PathBuf};

use anyhow::Result;
use hub::{Hub, Reach};
use kernels::{Compute, Kernels, Level};
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::machine::{available_memory, physical_cores, size};
use crate::{load, machine, out};

#[derive(Serialize)]
struct Report {
    puna: &'static str,
    os: &'static str,
    cpu: Cpu,
    threads: Threads,
    memory: Memory,
    store: Store,
    hugging_face_cache: Vec<Folder>,
    /// `None` where the network must not be used.
    sources: Option<Vec<Reach>>,
    /// What is slow, and why; what will fail.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Cpu {
    model: Option<String>,
    arch: &'static str,
    features: Vec<&'static str>,
    /// Levels of vector instructions that can be forced here.
    levels: Vec<&'static str>,
    /// The one in use.
    level: &'static str,
    compute: &'static str,
}

#[derive(Serialize)]
struct Threads {
    used: usize,
    physical_cores: Option<usize>,
    /// Processors that this process may run on.
    affinity: Option<usize>,
    /// Processors' worth of time that the control group grants.
    quota: Option<f64>,
    /// Processes that wanted to run in the last minute, on average.
    load_average: Option<f64>,
}

#[derive(Serialize)]
struct Memory {
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Store {
    path: PathBuf,
    exists: bool,
    writable: bool,
    models: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Folder {
    path: PathBuf,
    exists: bool,
}

pub fn run(args: &DoctorArgs) -> Result<()> {
    let kernels = load::kernels(&args.machine)?;
    let hub = load::hub(args.net)?;
    let offline = hub.settings().offline;
    let mut report = Report {
        puna: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        cpu: Cpu {
            model: cpu(),
            arch: std::env::consts::ARCH,
            features: features(),
            levels: Level::available()
                .iter()
                .map(|level| level.name())
                .collect(),
            level: kernels.level().name(),
            compute: kernels.compute().name(),
        },
        threads: Threads {
            used: kernels.threads(),
            physical_cores: physical_cores(),
            affinity: read("/proc/self/status").and_then(|status| allowed(&status)),
            quota: quota(),
            load_average: read("/proc/loadavg")
                .and_then(|text| text.split(' ').next()?.parse().ok()),
        },
        memory: Memory {
            total_bytes: total_memory(),
            available_bytes: available_memory(),
        },
        store: store(&hub),
        hugging_face_cache: folders(&hub.settings().hf_cache),
        sources: (!offline).then(|| hub.sources_reachable(&mut crate::progress::Shown::new())),
        notes: Vec::new(),
    };
    report.notes = notes(&report, &kernels);
    out::print(args.format.format, &report, || describe(&report))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// What the processor calls itself.
pub(super) fn cpu() -> Option<String> {
    read("/proc/cpuinfo").and_then(|text| cpu_name(&text))
}

fn cpu_name(cpuinfo: &str) -> Option<String> {
    let of = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        let value = line.split_once(':')?.1.trim();
        (!value.is_empty()).then(|| value.to_owned())
    };
    of("model name")
        .or_else(|| of("Model"))
        .or_else(|| of("Hardware"))
}

/// Memory of the machine in bytes.
pub(super) fn total_memory() -> Option<u64> {
    let text = read("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Vector instructions that matter here and that this processor has.
fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! present {
            ($($name:tt),*) => {
                [$(($name, std::arch::is_x86_feature_detected!($name))),*]
            };
        }
        let all = present!(
            "sse4.2",
            "avx",
            "avx2",
            "fma",
            "f16c",
            "avxvnni",
            "avx512f",
            "avx512bw",
            "avx512vl",
            "avx512vbmi",
            "avx512vnni",
            "avx512bf16"
        );
        all.into_iter()
            .filter(|(_, here)| *here)
            .map(|(name, _)| name)
            .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// How many processors a mask such as `Cpus_allowed_list: 0-3,8` names.
fn allowed(status: &str) -> Option<usize> {
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut count = 0usize;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// The time that the own control group and those around it grant, in processors (version 2's files).
fn quota() -> Option<f64> {
    let own = read("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mount = Path::new("/sys/fs/cgroup");
    let mut group = mount.join(path.trim_start_matches('/'));
    let mut least: Option<f64> = None;
    while group.starts_with(mount) {
        if let Some(grant) = read(group.join("cpu.max")).and_then(|text| grant(&text)) {
            least = Some(least.map_or(grant, |least| least.min(grant)));
        }
        if !group.pop() {
            break;
        }
    }
    least
}

/// `200000 100000` -> 2 processors; `max 100000` -> no limit.
fn grant(cpu_max: &str) -> Option<f64> {
    let mut words = cpu_max.split_whitespace().map(str::parse::<f64>);
    let (quota, period) = (words.next()?.ok()?, words.next()?.ok()?);
    (period > 0.0).then_some(quota / period)
}

fn store(hub: &Hub) -> Store {
    let path = hub.home().to_path_buf();
    let models = hub.list().unwrap_or_default();
    Store {
        exists: path.is_dir(),
        writable: writable(&path),
        models: models.len(),
        bytes: models.iter().map(|model| model.bytes).sum(),
        path,
    }
}

/// Can files be made in the folder, or in the nearest one around it that is there?
fn writable(folder: &Path) -> bool {
    let Some(there) = folder.ancestors().find(|folder| folder.is_dir()) else {
        return false;
    };
    let probe = there.join(format!(".puna-doctor-{}", std::process::id()));
    let made = std::fs::File::create_new(&probe).is_ok();
    if made {
        // It was ours a moment ago; a leftover of no bytes harms nobody.
        let _ = std::fs::remove_file(&probe);
    }
    made
}

fn folders(paths: &[PathBuf]) -> Vec<Folder> {
    let folder = |path: &PathBuf| Folder {
        path: path.clone(),
        exists: path.is_dir(),
    };
    paths.iter().map(folder).collect()
}

fn notes(report: &Report, kernels: &Kernels) -> Vec<String> {
    let mut notes = Vec::new();
    let mut say = |when: bool, what: String| {
        if when {
            notes.push(what);
        }
    };
    let (t, best) = (&report.threads, Level::best());
    say(
        cfg!(debug_assertions),
        "this is a debug build: `cargo build --release` is much faster".into(),
    );
    say(
        kernels.level() == Level::Scalar && best == Level::Scalar,
        "no vector instructions that Puna uses (AVX2 is the least): the scalar path is many times slower".into(),
    );
    say(
        kernels.level() != best,
        format!(
            "the level {} is forced; {} is here and faster",
            kernels.level().name(),
            best.name()
        ),
    );
    say(
        kernels.compute() == Compute::F32,
        "the reference mode (--compute f32) is slower than fast".into(),
    );
    if let Some(cores) = t.physical_cores {
        let granted = machine::threads();
        say(
            granted < cores,
            format!("{cores} cores, of which affinity or quota leave {granted} to this process"),
        );
        say(
            t.used > granted,
            format!("{} threads on {granted} cores wait for one another", t.used),
        );
        say(
            t.used < granted,
            format!(
                "{} of {granted} cores are used: --threads or PUNA_THREADS says so",
                t.used
            ),
        );
        say(
            t.load_average.is_some_and(|load| load > cores as f64 * 0.5),
            "other programs are busy on these cores: every measurement will be too low".into(),
        );
    }
    let free = report.memory.available_bytes;
    say(
        free.is_some_and(|free| free < 1 << 30),
        format!(
            "only {} of memory are free: models larger than that are read from disk again and again",
            size(free.unwrap_or(0))
        ),
    );
    say(
        !report.store.writable,
        format!(
            "{} cannot be written: no model can be pulled",
            report.store.path.display()
        ),
    );
    for source in report.sources.iter().flatten().filter(|source| !source.ok) {
        say(
            true,
            format!("{} does not answer: {}", source.source, source.detail),
        );
    }
    notes
}

fn describe(r: &Report) -> String {
    let number = |n: Option<usize>| n.map_or("unknown".to_owned(), |n| n.to_string());
    let bytes = |n: Option<u64>| n.map_or("unknown".to_owned(), size);
    let yes = |b: bool| if b { "yes" } else { "no" };
    let mut lines = vec![
        format!("puna     {} on {} {}", r.puna, r.os, r.cpu.arch),
        format!("cpu      {}", r.cpu.model.as_deref().unwrap_or("unknown")),
        format!("         {}", r.cpu.features.join(" ")),
        format!(
            "level    {} (here: {}), compute {}",
            r.cpu.level,
            r.cpu.levels.join(", "),
            r.cpu.compute
        ),
        format!(
            "threads  {} (cores {}, affinity {}, quota {})",
            r.threads.used,
            number(r.threads.physical_cores),
            number(r.threads.affinity),
            r.threads
                .quota
                .map_or("none".to_owned(), |q| format!("{q:.1}"))
        ),
        format!(
            "memory   {} free of {}",
            bytes(r.memory.available_bytes),
            bytes(r.memory.total_bytes)
        ),
        format!(
            "store    {} (there: {}, writable: {}; {} models, {})",
            r.store.path.display(),
            yes(r.store.exists),
            yes(r.store.writable),
            r.store.models,
            size(r.store.bytes)
        ),
    ];
    for folder in &r.hugging_face_cache {
        lines.push(format!(
            "hf cache {} (there: {})",
            folder.path.display(),
            yes(folder.exists)
        ));
    }
    match &r.sources {
        None => lines.push("sources  not asked: offline".into()),
        Some(sources) => lines.extend(sources.iter().map(|s| {
            let state = if s.ok { "ok" } else { "fails" };
            format!(
                "source   {}: {state}, {} ({} ms)",
                s.source, s.detail, s.millis
            )
        })),
    }
    lines.extend(r.notes.iter().map(|note| format!("note     {note}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_processors() {
        let of = |list: &str| allowed(&format!("Name:\tx\nCpus_allowed_list:\t{list}\n"));
        assert_eq!(of("0-1"), Some(2));
        assert_eq!(of("0-3,8,10-11"), Some(7));
        assert_eq!(of("3-1"), None);
        assert_eq!(of(""), None);
        assert_eq!(allowed("nothing"), None);
    }

    #[test]
    fn grants_of_time() {
        assert_eq!(grant("150000 100000\n"), Some(1.5));
        assert_eq!(grant("max 100000\n"), None);
        assert_eq!(grant("1 0"), None);
        assert_eq!(grant(""), None);
    }

    #[test]
    fn names_of_processors() {
        assert_eq!(
            cpu_name("processor\t: 0\nmodel name\t: A B\n"),
            Some("A B".into())
        );
        assert_eq!(cpu_name("Model\t\t: Board\n"), Some("Board".into()));
        assert_eq!(cpu_name("model name\t:\n"), None);
    }

    #[test]
    fn a_folder_that_is_not_there_is_judged_by_the_one_around_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(writable(&dir.path().join("a/b")));
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(writable(&file.join("x")), "the folder around the file");
    }
}
