//! The state file on its disk: who may have written it, and how a new generation takes the place
//! of the one before.
//!
//! ```text
//!  FILE.new   written, fsync     ─┐
//!  FILE       whole? then renamed │─> FILE.old
//!  FILE.new   renamed            ─┴─> FILE, fsync of the directory
//! ```
//!
//! After a crash at any point one of `FILE` and `FILE.old` is a whole generation, if one ever was.
//! Reading opens no symbolic link, no device, nothing of another user and nothing that others may
//! write.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::geteuid;

use super::codec::{self, Damage, Moment};
use super::{Saved, codec::HEADER_OCTETS};

/// Where a node's state is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StateFile {
    path: PathBuf,
}

/// Which file was believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Generation {
    /// The newest.
    Newest,
    /// The one before it.
    Previous,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The state, and which file it is from; `None` for a clean start.
    pub state: Option<(Saved, Generation)>,
    /// What was not believed, and why. A file that is not there is not named.
    pub refused: Vec<StateFileError>,
}

/// A file of which only the head was read.
#[derive(Debug)]
pub(super) struct Rest {
    path: PathBuf,
    octets: Vec<u8>,
    now: Moment,
}

impl Rest {
    /// Reads the whole.
    ///
    /// # Errors
    ///
    /// [`StateFileError::Damaged`] when a value in it cannot be, which its head did not show.
    pub(super) fn read(self) -> Result<Saved, StateFileError> {
        codec::decode(&self.octets, &self.now).map_err(|damage| StateFileError::Damaged {
            path: self.path,
            damage,
        })
    }
}

/// A state file that cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The file system refused.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another user could have written it.
    #[error("{path} is not believed: {why}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is larger than any state.
    #[error("{path} has {octets} octets, more than a state file can have")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        octets: u64,
    },
    /// Its octets are no state.
    #[error("{path} is not believed: {damage}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
}

impl StateFile {
    /// The state file at `path`; its neighbours `path.new` and `path.old` are used too.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the newest generation that can be believed.
    #[must_use]
    pub fn load(&self) -> Loaded {
        self.load_by(codec::decode).0
    }

    /// The same without the entries, which [`Rest::read`] has.
    pub(super) fn load_head(&self) -> (Loaded, Option<Rest>) {
        self.load_by(codec::decode_head)
    }

    fn load_by(
        &self,
        decode: impl Fn(&[u8], &Moment) -> Result<Saved, Damage>,
    ) -> (Loaded, Option<Rest>) {
        let mut loaded = Loaded::default();
        let mut rest = None;
        let now = moment();
        for (path, generation) in [
            (self.path.clone(), Generation::Newest),
            (self.beside("old"), Generation::Previous),
        ] {
            let octets = match read(&path) {
                Ok(Some(octets)) => octets,
                Ok(None) => continue,
                Err(error) => {
                    loaded.refused.push(error);
                    continue;
                }
            };
            match decode(&octets, &now) {
                Ok(saved) => {
                    loaded.state = Some((saved, generation));
                    rest = Some(Rest { path, octets, now });
                    break;
                }
                Err(damage) => loaded
                    .refused
                    .push(StateFileError::Damaged { path, damage }),
            }
        }
        (loaded, rest)
    }

    /// Makes `saved` the newest generation, on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`StateFileError::Io`], for one when the disk is full; what was there before is still
    /// there. [`StateFileError::TooLarge`] for a state that would not be read again.
    pub fn store(&self, saved: &Saved) -> Result<(), StateFileError> {
        let octets = codec::encode(saved, &moment());
        if octets.len() as u64 > FILE_OCTETS_MAX {
            return Err(StateFileError::TooLarge {
                path: self.path.clone(),
                octets: octets.len() as u64,
            });
        }
        let fresh = self.beside("new");
        let written = write(&fresh, &octets);
        if written.is_err() {
            // What is half written would only take room.
            let _ = fs::remove_file(&fresh);
        }
        written?;
        // What is damaged does not take the place of what is whole.
        let is_whole = read(&self.path)
            .ok()
            .flatten()
            .is_some_and(|octets| codec::verify(&octets).is_ok());
        if is_whole {
            rename(&self.path, &self.beside("old"))?;
        }
        rename(&fresh, &self.path)?;
        let directory = self.directory();
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(io_error("syncing directory", directory))
    }

    /// Makes the directory of the file, for this user alone, where there is none.
    ///
    /// # Errors
    ///
    /// [`StateFileError::Io`].
    pub fn make_directory(&self) -> Result<(), StateFileError> {
        let directory = self.directory();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io_error("making directory", directory))
    }

    /// Forgets every generation.
    ///
    /// # Errors
    ///
    /// [`StateFileError::Io`].
    pub fn remove(&self) -> Result<(), StateFileError> {
        for path in [self.path.clone(), self.beside("old"), self.beside("new")] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("removing", &path)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".");
        name.push(extension);
        PathBuf::from(name)
    }

    fn directory(&self) -> &Path {
        let parent = self.path.parent();
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or_else(|| Path::new("."))
    }
}

/// The octets of a file that can be believed; `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
    let opened = OpenOptions::new()
        .read(true)
        // A pipe in its place must not make the start wait for a writer.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("opening", path)(error)),
    };
    let metadata = file.metadata().map_err(io_error("looking at", path))?;
    let foreign = |why| {
        Err(StateFileError::Foreign {
            path: path.to_owned(),
            why,
        })
    };
    if !metadata.is_file() {
        return foreign("it is no ordinary file");
    }
    if metadata.uid() != geteuid().as_raw() {
        return foreign("it belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return foreign("other users may write it");
    }
    let too_large = |octets| StateFileError::TooLarge {
        path: path.to_owned(),
        octets,
    };
    if metadata.len() > FILE_OCTETS_MAX {
        return Err(too_large(metadata.len()));
    }
    let mut octets = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(HEADER_OCTETS));
    // It may grow while it is read.
    let taken = Read::by_ref(&mut file)
        .take(FILE_OCTETS_MAX + 1)
        .read_to_end(&mut octets)
        .map_err(io_error("reading", path))?;
    if taken as u64 > FILE_OCTETS_MAX {
        return Err(too_large(taken as u64));
    }
    Ok(Some(octets))
}

/// Writes a new file, down to the disk.
fn write(path: &Path, octets: &[u8]) -> Result<(), StateFileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(io_error("removing", path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)
        .map_err(io_error("making", path))?;
    // The process' umask may have taken bits away that the owner needs.
    file.set_permissions(fs::Permissions::from_mode(MODE))
        .and_then(|()| file.write_all(octets))
        .and_then(|()| file.sync_all())
        .map_err(io_error("writing", path))
}

fn rename(from: &Path, to: &Path) -> Result<(), StateFileError> {
    fs::rename(from, to).map_err(io_error("renaming to", to))
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateFileError {
    move |source| StateFileError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// This moment, by both clocks.
pub(super) fn moment() -> Moment {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
    Moment {
        // Without a clock that goes with it the boot's name says nothing.
        boot: match (boot, since_boot) {
            (Ok(boot), Ok(_)) => boot.trim().to_owned(),
            (Ok(_) | Err(_), _) => String::new(),
        },
        since_boot: since_boot.unwrap_or_default(),
        wall: wall.unwrap_or_default(),
    }
}

/// The user alone may read and write it.
const MODE: u32 = 0o600;

/// A state of twice 262,144 entries, the most that a source may have, is half as large.
pub(super) const FILE_OCTETS_MAX: u64 = 128 << 20;
