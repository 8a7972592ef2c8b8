//! What the fuzz targets do, one function a target; see [`TARGETS`].
//!
//! Each function takes octets and panics on a finding. The programs in `fuzz_targets/` hand them to
//! libFuzzer; the test in this file runs the same functions over the committed seeds and over random
//! changes of them, on any machine and without libFuzzer. etherparse is the second opinion on every
//! header that it knows.
#![allow(
    clippy::indexing_slicing,
    reason = "a panic is how a target reports a finding"
)]

pub mod config;
pub mod ctl;
pub mod engine;
pub mod fib;
pub mod packet;
pub mod random;
pub mod wire;

/// Every target: the name of its program and of its folder of seeds, and what it runs.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config::config),
    ("ctl", ctl::ctl),
    ("engine", engine::engine),
    ("ethernet", wire::ethernet),
    ("fib", fib::fib),
    ("geneve", wire::geneve),
    ("gue", wire::gue),
    ("icmp", wire::icmp),
    ("icmpv6", wire::icmpv6),
    ("ipv4", wire::ipv4),
    ("ipv6", wire::ipv6),
    ("packet", packet::packet),
    ("tcp", wire::tcp),
    ("udp", wire::udp),
    ("vxlan", wire::vxlan),
];

/// Takes octets and panics on a finding.
pub type Target = fn(&[u8]);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::env;
    use std::fmt::Write as _;
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::random::Random;

    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let mut files: Vec<PathBuf> = fs::read_dir(folder("seeds").join(target))
            .unwrap_or_else(|error| panic!("seeds of {target}: {error}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files.iter().map(|file| fs::read(file).unwrap()).collect()
    }

    fn run(target: &str, function: Target, input: &[u8]) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| function(input))) {
            let hex = input.iter().fold(String::new(), |mut hex, octet| {
                let _ = write!(hex, "{octet:02x}");
                hex
            });
            eprintln!("target {target} fails with these octets: {hex}");
            resume_unwind(panic);
        }
    }

    #[test]
    fn every_program_is_a_target_with_seeds() {
        let programs: BTreeSet<String> = fs::read_dir(folder("fuzz_targets"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).into()).collect();
        assert_eq!(programs, targets);
        for target in targets {
            assert!(!seeds(&target).is_empty(), "no seeds for {target}");
        }
    }

    #[test]
    fn no_target_finds_anything_in_its_seeds() {
        for (target, function) in TARGETS {
            for seed in seeds(target) {
                run(target, *function, &seed);
            }
        }
    }

    /// The octets are the same in every run. `WARREN_FUZZ_RUNS` changes how many are tried for each
    /// target, `WARREN_FUZZ_SEED` where the random numbers start.
    #[test]
    fn no_target_finds_anything_in_changed_seeds() {
        let number = |name, default| env::var(name).map_or(default, |text| text.parse().unwrap());
        let (runs, start) = (
            number("WARREN_FUZZ_RUNS", 30_000),
            number("WARREN_FUZZ_SEED", 1),
        );
        for (target, function) in TARGETS {
            let mut random = Random::new(start);
            let mut pool = seeds(target);
            let fixed = pool.len();
            for _ in 0..runs {
                let input = random.mutate(&pool);
                run(target, *function, &input);
                // A drifting sample of what was made is changed further, as a corpus would be.
                if pool.len() < fixed + 64 {
                    pool.push(input);
                } else if random.below(8) == 0 {
                    let at = fixed + random.below(64);
                    pool[at] = input;
                }
            }
        }
    }
}
