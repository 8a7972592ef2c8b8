//! Which CPUs take in what a worker has written to its device.
//!
//! The kernel takes a packet in within the call that writes it, up to the socket that it is for. So the acknowledgements
//! of a stream that leaves cost the worker which carries it, together with all that TCP then sends at once. Where the
//! worker keeps to CPUs of its own because it carries bulk, others can do that beside it: the device's receive queue is
//! given the other CPUs (`rps_cpus`). The sending program is there, too, and has the memory of what was acknowledged back
//! in its own cache.
//!
//! Only while bulk leaves and what arrives is small: bulk is best read on the CPU that has written it, and a single packet
//! would have to wait for another CPU to wake up. On the way there packets wait in that CPU's backlog
//! (`net.core.netdev_max_backlog`); the device counts as dropped what that has no room for. A queue that somebody else has
//! given CPUs to is left alone, and so is one that this process may not write to, or that is not known to be the device's:
//! `/sys` may show another network namespace.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::tun::DeviceName;

/// A receive queue of a device, and the CPUs that may be given to it.
#[derive(Debug)]
pub(super) struct Steering {
    /// `None` where there is nothing to decide.
    queue: Option<File>,
    /// The CPUs, and none, as the queue wants to be told.
    some: String,
    none: String,
    is_on: bool,
    /// For how many stretches, one after the other, the contrary has been wanted.
    against: u32,
}

impl Steering {
    /// Of queue `number` of `device`, as the calling thread's network namespace calls it, to `cpus`, if that is possible.
    pub(super) fn of(device: DeviceName, number: u32, cpus: &[usize]) -> Self {
        let folder = Path::new("/sys/class/net").join(device.as_str());
        match nix::net::if_::if_nametoindex(device.as_str()) {
            Ok(index) => Self::within(&folder, index, number, cpus),
            Err(_) => Self::off(),
        }
    }

    /// Of no queue.
    pub(super) const fn off() -> Self {
        Self {
            queue: None,
            some: String::new(),
            none: String::new(),
            is_on: false,
            against: 0,
        }
    }

    /// Of queue `number` of the device that has `folder`, if that is the one with that index.
    fn within(folder: &Path, index: u32, number: u32, cpus: &[usize]) -> Self {
        Self {
            queue: (!cpus.is_empty())
                .then(|| open(folder, index, number))
                .flatten(),
            some: mask(cpus, true),
            none: mask(cpus, false),
            is_on: false,
            against: 0,
        }
    }

    /// To be called once for each stretch of time in which packets were carried that want it, or do not. It begins when
    /// they have wanted it for a while, and ends when they have not for longer: each change stops all CPUs for a moment.
    pub(super) fn follow(&mut self, wanted: bool) {
        if wanted == self.is_on {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.against >= if self.is_on { TO_END } else { TO_BEGIN } {
            self.set(wanted);
        }
    }

    /// Ends it at once.
    pub(super) fn end(&mut self) {
        self.set(false);
    }

    fn set(&mut self, on: bool) {
        self.against = 0;
        let Some(queue) = self.queue.as_ref().filter(|_| on != self.is_on) else {
            return;
        };
        let mask = if on { &self.some } else { &self.none };
        match queue.write_all_at(mask.as_bytes(), 0) {
            Ok(()) => self.is_on = on,
            // The device is gone.
            Err(_) => self.queue = None,
        }
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        self.end();
    }
}

/// The queue's file, where it is that of the device and nobody has given CPUs to it.
fn open(folder: &Path, index: u32, number: u32) -> Option<File> {
    let found = fs::read_to_string(folder.join("ifindex")).ok()?;
    let path = folder.join(format!("queues/rx-{number}/rps_cpus"));
    let given = fs::read_to_string(&path).ok()?;
    let is_free = given.trim().chars().all(|digit| matches!(digit, '0' | ','));
    if found.trim() != index.to_string() || !is_free {
        return None;
    }
    OpenOptions::new().write(true).open(path).ok()
}

/// A set of CPUs as the kernel reads it, 32 to a word, the highest first; or, as long as that, none.
fn mask(cpus: &[usize], are_in: bool) -> String {
    let words = cpus.iter().max().map_or(1, |most| most / 32 + 1);
    let mut text = String::new();
    for number in (0..words).rev() {
        let own = cpus.iter().filter(|cpu| are_in && *cpu / 32 == number);
        let word = own.fold(0_u32, |word, cpu| word | 1 << (cpu % 32));
        let comma = if text.is_empty() { "" } else { "," };
        // A string takes everything.
        let _ = write!(text, "{comma}{word:08x}");
    }
    text
}

/// Stretches after which it begins, and ends: 10 ms each at least (`place.rs`).
const TO_BEGIN: u32 = 4;
const TO_END: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_written_as_words_of_32_the_highest_first() {
        for (cpus, expected, none) in [
            (&[][..], "00000000", "00000000"),
            (&[1], "00000002", "00000000"),
            (&[1, 3, 31], "8000000a", "00000000"),
            (&[1, 33], "00000002,00000002", "00000000,00000000"),
            (
                &[64],
                "00000001,00000000,00000000",
                "00000000,00000000,00000000",
            ),
        ] {
            assert_eq!(mask(cpus, true), expected, "{cpus:?}");
            assert_eq!(mask(cpus, false), none, "{cpus:?}");
        }
    }

    #[test]
    fn a_queue_is_given_cpus_while_it_is_wanted_and_has_none_behind_it() {
        let (folder, queue) = device("7\n", "0\n");
        let given = || fs::read_to_string(&queue).unwrap();
        let mut steering = Steering::within(folder.path(), 7, 0, &[1, 3]);
        for _ in 1..TO_BEGIN {
            steering.follow(true);
        }
        steering.follow(false);
        for _ in 1..TO_BEGIN {
            steering.follow(true);
            assert_eq!(given(), "0\n");
        }
        steering.follow(true);
        assert_eq!(given(), "0000000a");
        for _ in 1..TO_END {
            steering.follow(false);
        }
        steering.follow(true);
        for _ in 1..TO_END {
            steering.follow(false);
            assert_eq!(given(), "0000000a");
        }
        steering.follow(false);
        assert_eq!(given(), "00000000");
        steering.set(true);
        steering.end();
        assert_eq!(given(), "00000000");
        steering.set(true);
        assert_eq!(given(), "0000000a");
        drop(steering);
        assert_eq!(given(), "00000000");
    }

    #[test]
    fn another_device_and_a_queue_with_cpus_are_left_alone_and_so_is_one_that_is_not_there() {
        for (index, before, number, cpus) in [
            ("8\n", "0\n", 0, &[1][..]),
            ("7\n", "00000000,00000001\n", 0, &[1]),
            ("7\n", "0\n", 1, &[1]),
            ("7\n", "0\n", 0, &[]),
        ] {
            let (folder, queue) = device(index, before);
            let mut steering = Steering::within(folder.path(), 7, number, cpus);
            steering.set(true);
            assert!(!steering.is_on);
            assert_eq!(fs::read_to_string(&queue).unwrap(), before);
        }
        let nowhere = "steer-nowhere".parse().unwrap();
        let mut steering = Steering::of(nowhere, 0, &[1]);
        steering.set(true);
        assert!(!steering.is_on);
    }

    /// A folder such as a device has, and the file of its first queue.
    fn device(index: &str, cpus: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("queues/rx-0");
        fs::create_dir_all(&queue).unwrap();
        fs::write(folder.path().join("ifindex"), index).unwrap();
        let file = queue.join("rps_cpus");
        fs::write(&file, cpus).unwrap();
        (folder, file)
    }
}
