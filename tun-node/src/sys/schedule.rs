//! How the kernel schedules the calling thread: `sched_getattr(2)`, `sched_setattr(2)`,
//! `sched_setaffinity(2)`; and what it has used of a CPU: `clock_gettime(2)`.

use std::io::Result;
use std::time::Duration;

use super::done;

/// Asks for slices of that length for the calling thread: one that asks for short ones is let run
/// sooner after it woke up, for as long as it uses no more than its share. Between 0.1 and 100 ms,
/// kernel 6.12 and later; earlier ones take no notice. Policy and niceness stay as they are.
///
/// # Errors
///
/// The kernel's; nothing has changed then.
pub fn set_slice(slice: Duration) -> Result<()> {
    let octets = u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0);
    let mut attributes = libc::sched_attr {
        size: octets,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the pointer is to a live structure of `octets` octets, which is the length that the
    // kernel is told and does not write beyond; thread 0 is the calling one; no flag exists.
    returned(unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            0,
            &raw mut attributes,
            octets,
            0_u32,
        )
    })?;
    attributes.size = octets;
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the pointer is to a live structure whose `size` says how long it is; read only.
    returned(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0_u32) })
}

/// The CPUs that the calling thread may run on, in order.
///
/// # Errors
///
/// The kernel's.
pub fn cpus() -> Result<Vec<usize>> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    let all = 0..nix::sched::CpuSet::count();
    Ok(all.filter(|cpu| set.is_set(*cpu) == Ok(true)).collect())
}

/// Keeps the calling thread to these CPUs.
///
/// # Errors
///
/// `EINVAL` where the thread may use none of them.
pub fn keep_to(cpus: &[usize]) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(nix::sched::sched_setaffinity(
        nix::unistd::Pid::from_raw(0),
        &set,
    )?)
}

/// The CPU time that the calling thread has used (`CLOCK_THREAD_CPUTIME_ID`).
///
/// # Errors
///
/// The kernel's.
pub fn cpu_time() -> Result<Duration> {
    Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn returned(value: libc::c_long) -> Result<()> {
    done(libc::c_int::try_from(value).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_to_its_cpus_and_the_others_have_all() {
        let before = cpus().unwrap();
        let last = *before.last().unwrap();
        let kept = std::thread::spawn(move || {
            keep_to(&[last]).unwrap();
            cpus().unwrap()
        });
        assert_eq!(kept.join().unwrap(), [last]);
        assert_eq!(cpus().unwrap(), before);
    }

    #[test]
    fn a_thread_may_ask_for_short_slices() {
        std::thread::spawn(|| set_slice(Duration::from_micros(100)))
            .join()
            .unwrap()
            .unwrap();
    }
}
