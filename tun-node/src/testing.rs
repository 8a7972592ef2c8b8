//! What the tests of this crate share: fresh network namespaces and the wish to
//! say why a test did not run.

use std::os::fd::AsRawFd;
use std::thread;

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
