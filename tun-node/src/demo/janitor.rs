//! The demo's directory, and the process that removes it whatever happens to the demo.
//!
//! A process that is killed cannot clean up after itself. So the directory belongs to a small
//! child, the janitor, which waits for the end of its standard input: the demo holds the other
//! end and never writes. Whether the demo closes it or is killed, the janitor then removes the
//! directory and ends. It is in a process group of its own, out of reach of the terminal's
//! Ctrl-C.

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A directory that lasts no longer than this process.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    janitor: Child,
}

impl Directory {
    /// Makes one, readable by this user alone, in `$TMPDIR` or /tmp.
    ///
    /// # Errors
    ///
    /// The file system's, or the janitor could not be started.
    pub(super) fn new(program: &Path) -> io::Result<Self> {
        // The janitor works elsewhere, where a relative path would mean another place.
        let mut parent = std::path::absolute(std::env::temp_dir())?;
        if parent.as_os_str().as_bytes().len() > PARENT_OCTETS_MAX {
            parent = PathBuf::from("/tmp");
        }
        let path = nix::unistd::mkdtemp(&parent.join(format!("{PREFIX}XXXXXX")))?;
        let janitor = Command::new(program)
            .args(["demo", "janitor"])
            .arg(&path)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match janitor {
            Ok(janitor) => Ok(Self { path, janitor }),
            Err(error) => {
                let _ = std::fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes the directory before it returns.
impl Drop for Directory {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// The janitor: waits for the end of standard input, then removes `directory`.
///
/// # Errors
///
/// The directory could not be removed, or is not one that a demo made.
pub(super) fn run(directory: &Path) -> io::Result<()> {
    let name = directory.file_name().unwrap_or_default().as_bytes();
    if !name.starts_with(PREFIX.as_bytes()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Whatever way the reading ends, the demo is done.
    let _ = io::stdin().lock().read_to_end(&mut Vec::new());
    // Nodes that are ending may still write to their logs and sockets.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(()) => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// What the directory's name begins with; the janitor touches no other.
const PREFIX: &str = "warren-demo-";
/// The path of a Unix socket has at most 107 octets; this leaves room for the names below.
const PARENT_OCTETS_MAX: usize = 70;
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_janitor_leaves_foreign_directories_alone() {
        let foreign = tempfile::tempdir().unwrap();
        let error = run(foreign.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(foreign.path().exists());
    }
}
