//! Where the control socket is.

use std::env;
use std::path::PathBuf;

/// The socket of the node called `name`: `/run/tun-node/NAME.sock` as root,
/// `$XDG_RUNTIME_DIR/tun-node/NAME.sock` as an ordinary user, and
/// `/tmp/tun-node-UID/NAME.sock` where that variable is not set.
///
/// A node that is told no other path listens there, and a command that is told none asks there.
#[must_use]
pub fn default_path(name: &str) -> PathBuf {
    default_directory().join(format!("{name}.{EXTENSION}"))
}

/// The directory of [`default_path`].
#[must_use]
pub fn default_directory() -> PathBuf {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/tun-node");
    }
    match env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => PathBuf::from(directory).join("tun-node"),
        None => PathBuf::from(format!("/tmp/tun-node-{uid}")),
    }
}

/// The sockets in [`default_directory`], sorted: the nodes of this user that run, or did.
#[must_use]
pub fn known_sockets() -> Vec<PathBuf> {
    let Ok(entries) = default_directory().read_dir() else {
        return Vec::new();
    };
    let mut sockets: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
        .collect();
    sockets.sort();
    sockets
}

/// The socket that the environment names, as that of a COMMAND in a node's namespace does: there the
/// user looks like root, and [`default_directory`] is another one.
#[must_use]
pub fn named_by_environment() -> Option<PathBuf> {
    let path = env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    path.map(PathBuf::from)
}

/// What names a node's control socket to the commands that COMMAND runs.
pub const SOCKET_VARIABLE: &str = "TUN_NODE_SOCKET";

const EXTENSION: &str = "sock";
