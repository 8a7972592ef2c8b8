//! What the tests of this crate share: fresh network namespaces and the wish to
//! say why a test did not run.

use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tun::AbstractDevice;

/// Runs `test` on a thread of its own in a fresh, empty network namespace where
/// only the loopback device is, and is up; says so and returns where that is not
/// permitted.
///
/// The namespace ends with the thread and the descriptors opened in it.
pub(crate) fn in_netns(test: impl FnOnce() + Send + 'static) {
    let outcome = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: a network namespace needs CAP_SYS_ADMIN ({error})");
            return;
        }
        loopback_up();
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with these arguments in the namespace of the calling thread.
pub(crate) fn ip(arguments: &str) -> String {
    let output = std::process::Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `holds` does, for up to ten seconds.
///
/// For what a dropped descriptor brings about: another test that starts a process
/// at that moment holds a duplicate of it from fork to exec, and no event tells
/// of its end.
pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to hold");
        thread::yield_now();
    }
}

/// Makes the calling thread an ordinary user: `nobody`, without any capability.
/// The thread must end with the test.
pub(crate) fn become_nobody_on_this_thread() {
    crate::sys::process::become_user_on_this_thread(NOBODY).unwrap();
}

/// Whether the tests may make TUN devices; says why where they may not.
pub(crate) fn tun_is_usable() -> bool {
    match crate::sys::tun::open() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: {}: {error}", crate::sys::tun::DEVICE_FILE);
            false
        }
    }
}

fn loopback_up() {
    let mut config = tun::Configuration::default();
    let null = std::fs::File::open("/dev/null").unwrap();
    // The crate's ioctl works on any interface name; a descriptor it must have.
    config
        .raw_fd(null.as_raw_fd())
        .close_fd_on_drop(false)
        .tun_name("lo");
    tun::create(&config).unwrap().enabled(true).unwrap();
}

/// User and group id of `nobody` by long custom.
const NOBODY: u32 = 65534;
