//! New files that appear whole or not at all.
//!
//! The bytes go to a temporary file in the same directory, which is renamed into place at the
//! end. A reader never sees half a file, and one that has the old file mapped keeps it as it was.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// Makes names of temporary files distinct inside a process; its id does so between processes.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A file under way to `path`. Dropped before [`NewFile::commit`], it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct NewFile {
    out: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    done: bool,
}

impl NewFile {
    pub(crate) fn create(path: &Path) -> Result<NewFile, Error> {
        let Some(name) = path.file_name() else {
            return Err(Error::invalid(path, "not the name of a file"));
        };
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!(".{}-{serial}.part", std::process::id()));
        let temporary = path.with_file_name(temporary);
        let out = File::create_new(&temporary).map_err(|e| Error::io(path, e))?;
        Ok(NewFile {
            out: BufWriter::with_capacity(1 << 20, out),
            temporary,
            path: path.to_path_buf(),
            done: false,
        })
    }

    /// Writes out what is buffered and moves the file into place.
    pub(crate) fn commit(mut self) -> Result<(), Error> {
        let moved = self
            .out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path));
        moved.map_err(|e| Error::io(&self.path, e))?;
        self.done = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.done {
            // Nothing can be done about a failure here, and the file is only a leftover.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
