//! What this machine lends the process: threads and memory. Read from the kernel's own text files;
//! whatever is missing or odd there is left out of the reckoning, never a failure.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The default of `--threads`: the smallest of physical cores, CPU affinity and cgroup quota
/// (the standard library knows the last two). Two threads on one core share its vector units.
pub fn threads() -> usize {
    let allowed = processors();
    allowed.min(physical_cores().unwrap_or(allowed)).max(1)
}

/// Processors that the system gives this process: by CPU affinity and cgroup quota. A thread beyond them
/// would hold up, at the end of every product, those that have one.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Physical cores of all packages; `None` where the topology cannot be read.
pub fn physical_cores() -> Option<usize> {
    cores_under(Path::new("/sys/devices/system/cpu"))
}

fn cores_under(cpus: &Path) -> Option<usize> {
    let mut cores = HashSet::new();
    for entry in std::fs::read_dir(cpus).ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|n| n.strip_prefix("cpu")) else {
            continue;
        };
        if number.parse::<u32>().is_err() {
            continue;
        }
        let topology = entry.path().join("topology");
        let id = |file: &str| -> Option<i64> {
            std::fs::read_to_string(topology.join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        // An offline processor has no topology.
        if let (Some(package), Some(core)) = (id("physical_package_id"), id("core_id")) {
            cores.insert((package, core));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Memory in bytes that can still be used without swapping: the smaller of what the machine has
/// and what each enclosing control group leaves. Page cache counts as free, so a model file that
/// is already in memory is not counted twice.
pub fn available_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| field(&text, "MemAvailable:"))
        .map(|kib| kib.saturating_mul(1024));
    // What this process holds already is gone from the limit, as it is from the others.
    let limit = memory_limit().ok().flatten();
    let limit = limit.map(|limit| limit.saturating_sub(held()));
    [machine, cgroup_memory(Path::new("/")), limit]
        .into_iter()
        .flatten()
        .min()
}

/// Memory that this process holds and that is no file's.
pub fn held() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").ok();
    let kib = status.and_then(|text| field(&text, "RssAnon:"));
    kib.map_or(0, |kib| kib.saturating_mul(1024))
}

/// `PUNA_MEMORY`: bytes, or a number with K, M, G or T (1000, a million, ...).
pub fn memory_limit() -> anyhow::Result<Option<u64>> {
    let Some(text) = crate::env::text("PUNA_MEMORY") else {
        return Ok(None);
    };
    match bytes(&text) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(crate::exit::usage(
            format!("PUNA_MEMORY: {text:?} is no size"),
            "as in PUNA_MEMORY=4G, or in bytes",
        )),
    }
}

fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let scale = match text[digits.len()..]
        .to_ascii_uppercase()
        .trim_end_matches('B')
    {
        "" => 1,
        "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale)
}

/// The first number after a line's name: `MemAvailable:   123 kB`, `inactive_file 42`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

/// What the control groups leave, by version 2's files, else version 1's. `root` is `/` but in tests.
fn cgroup_memory(root: &Path) -> Option<u64> {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least: Option<u64> = None;
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (mount, files) = match controllers {
            "" => ("sys/fs/cgroup", &V2),
            c if c.split(',').any(|c| c == "memory") => ("sys/fs/cgroup/memory", &V1),
            _ => continue,
        };
        let mount = root.join(mount);
        // A container may see its group's path as the host names it: then only the mount's root is there.
        let mut group: PathBuf = mount.join(path.trim_start_matches('/'));
        while group.starts_with(&mount) {
            if let Some(left) = files.left(&group) {
                least = Some(least.map_or(left, |l| l.min(left)));
            }
            if !group.pop() {
                break;
            }
        }
    }
    least
}

/// The file names of one version of control groups.
struct GroupFiles {
    limit: &'static str,
    used: &'static str,
    cache: [&'static str; 2],
}

const V2: GroupFiles = GroupFiles {
    limit: "memory.max",
    used: "memory.current",
    cache: ["inactive_file", "active_file"],
};

const V1: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
};

impl GroupFiles {
    /// Limit minus use, where page cache is no use. `None` without a limit (`max` is no number).
    fn left(&self, group: &Path) -> Option<u64> {
        let number = |file: &str| -> Option<u64> {
            std::fs::read_to_string(group.join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let limit = number(self.limit)?;
        let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cache = self
            .cache
            .iter()
            .filter_map(|name| field(&stat, name))
            .fold(0u64, u64::saturating_add);
        let used = number(self.used).unwrap_or(0).saturating_sub(cache);
        Some(limit.saturating_sub(used))
    }
}

/// A size for people: `98.4 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    for (unit, scale) in UNITS {
        if bytes as f64 >= scale {
            return format!("{:.1} {unit}", bytes as f64 / scale);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn two_threads_of_a_core_are_one_core() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, package, core) in [(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1), (4, 1, 0)] {
            let base = format!("cpu{cpu}/topology");
            write(
                dir.path(),
                &format!("{base}/physical_package_id"),
                &format!("{package}\n"),
            );
            write(dir.path(), &format!("{base}/core_id"), &format!("{core}\n"));
        }
        write(dir.path(), "cpu5/online", "0\n");
        write(dir.path(), "cpufreq/topology/core_id", "9\n");
        assert_eq!(cores_under(dir.path()), Some(3));
        assert_eq!(cores_under(&dir.path().join("none")), None);
    }

    #[test]
    fn a_control_group_limits_memory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "proc/self/cgroup", "0::/a/b\n");
        write(root, "sys/fs/cgroup/a/memory.max", "1000\n");
        write(root, "sys/fs/cgroup/a/memory.current", "700\n");
        write(
            root,
            "sys/fs/cgroup/a/memory.stat",
            "anon 1\ninactive_file 100\nactive_file 50\n",
        );
        write(root, "sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(cgroup_memory(root), Some(450));
        write(root, "proc/self/cgroup", "4:cpu,memory:/x\n1:name=y:/x\n");
        write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n");
        assert_eq!(cgroup_memory(root), Some(5000));
        write(root, "proc/self/cgroup", "nonsense\n0:\n");
        assert_eq!(cgroup_memory(root), None);
    }

    #[test]
    fn sizes_are_read() {
        for (text, size) in [
            ("1", Some(1)),
            ("4G", Some(4_000_000_000)),
            ("4gb", Some(4_000_000_000)),
            ("12k", Some(12_000)),
            ("", None),
            ("G", None),
            ("-1", None),
            ("1.5G", None),
            ("4GiB", None),
            ("99999999T", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }

    #[test]
    fn threads_and_memory_of_this_machine() {
        assert!(threads() >= 1);
        assert!(available_memory().is_none_or(|m| m > 0));
    }
}
