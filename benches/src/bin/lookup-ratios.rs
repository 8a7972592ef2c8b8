//! Longest-prefix match, ours and its peers, taking turns: nanoseconds a lookup, and ratios.
//!
//! ```text
//! WARREN_ROUTES=table.txt.gz cargo run --profile bench -p warren-benches --bin lookup-ratios [-- WORD...]
//! WARREN_DPDK=1 ...                                  beside rte_fib and rte_fib6 too (libdpdk-dev, huge pages)
//! ```
//!
//! Words choose: `ipv4 ipv6 full cluster uniform matched zipf dep one b8 b32 b256`; none of a kind means all.
//! `rounds=N` (3) sets the rounds, `json=FILE` writes the medians, `crates=no` leaves the Rust peers out, `hops=N` (251)
//! sets the number of next hops, `pages=small` leaves the process no transparent huge pages (DPDK's are reserved ones).
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "measurements of known sizes"
)]
#![allow(clippy::print_stdout, reason = "the output is the product")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Instant;
use std::{env, fs};

use ipnet::{Ipv4Net, Ipv6Net};
use tun_node::sys::huge::{self, HugePages};
use warren_benches::routes::{self, Family};
use warren_benches::tables::{Poptrie, PrefixTrie, Table, TreeBitmap, Warren};
use warren_core::fib::SimdLevel;

#[global_allocator]
static HUGE_PAGES: HugePages = HugePages;

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    if words.iter().any(|word| word == "pages=small") {
        huge::disable().expect("every kernel of these years has the call");
    }
    let mut json = String::from("[\n");
    for set in ["full", "cluster"] {
        if !wanted(&words, set, &["full", "cluster"]) {
            continue;
        }
        if wanted(&words, "ipv4", &["ipv4", "ipv6"]) {
            measure::<Ipv4Addr>(set, &words, &mut json);
        }
        if wanted(&words, "ipv6", &["ipv4", "ipv6"]) {
            measure::<Ipv6Addr>(set, &words, &mut json);
        }
    }
    json.truncate(json.trim_end_matches([',', '\n']).len());
    json.push_str("\n]\n");
    if let Some(path) = words.iter().find_map(|word| word.strip_prefix("json=")) {
        fs::write(path, json).expect("the file named by json= can be written");
    }
}

/// All tables of a family, over the routes of a set.
fn measure<A: Peers>(set: &str, words: &[String], json: &mut String)
where
    A::Prefix: FromStr,
{
    let mut routes = if set == "full" {
        routes::full::<A>()
    } else {
        routes::cluster::<A>()
    };
    if let Some(hops) = number(words, "hops=") {
        routes::spread_next_hops::<A>(&mut routes, hops);
    }
    let (ours, fib) = Warren::new(&routes);
    let count = routes.len();
    println!("\n{set} {}: {count} routes, {:?}", A::NAME, fib.memory());
    let mut tables = every_level::<A>(ours);
    tables.extend(A::dpdk(&routes));
    if !words.iter().any(|word| word == "crates=no") {
        tables.extend(A::crates(&routes));
    }
    compare(set, &routes, &tables, words, json);
}

/// The tables of others.
trait Peers: Family {
    /// DPDK's, if this program has it and it can be set up.
    fn dpdk(routes: &[(Self::Prefix, u16)]) -> Option<Box<dyn Table<Self>>>;

    /// Those of Rust crates.
    fn crates(routes: &[(Self::Prefix, u16)]) -> [Box<dyn Table<Self>>; 3];
}

impl Peers for Ipv4Addr {
    fn dpdk(routes: &[(Ipv4Net, u16)]) -> Option<Box<dyn Table<Self>>> {
        #[cfg(warren_dpdk)]
        let table = warren_benches::dpdk::RteFib::new(routes).map(|table| Box::new(table) as _);
        #[cfg(not(warren_dpdk))]
        let table = none(routes);
        set_up("rte_fib", table)
    }

    fn crates(routes: &[(Ipv4Net, u16)]) -> [Box<dyn Table<Self>>; 3] {
        [
            Box::new(TreeBitmap::new(routes)),
            Box::new(PrefixTrie::new(routes)),
            Box::new(Poptrie::new(routes)),
        ]
    }
}

impl Peers for Ipv6Addr {
    fn dpdk(routes: &[(Ipv6Net, u16)]) -> Option<Box<dyn Table<Self>>> {
        #[cfg(warren_dpdk)]
        let table = warren_benches::dpdk::RteFib6::new(routes).map(|table| Box::new(table) as _);
        #[cfg(not(warren_dpdk))]
        let table = none(routes);
        set_up("rte_fib6", table)
    }

    fn crates(routes: &[(Ipv6Net, u16)]) -> [Box<dyn Table<Self>>; 3] {
        [
            Box::new(TreeBitmap::new(routes)),
            Box::new(PrefixTrie::new(routes)),
            Box::new(Poptrie::new(routes)),
        ]
    }
}

/// A program without DPDK has no table of it.
#[cfg(not(warren_dpdk))]
fn none<R, T: ?Sized>(_: &[R]) -> Option<Box<T>> {
    None
}

fn set_up<T>(name: &str, table: Option<T>) -> Option<T> {
    if cfg!(warren_dpdk) && table.is_none() {
        println!("{name}: could not be set up (huge pages? permissions?)");
    }
    table
}

/// The number behind `key` among the words.
fn number<N: FromStr>(words: &[String], key: &str) -> Option<N> {
    words
        .iter()
        .find_map(|word| word.strip_prefix(key)?.parse().ok())
}

/// The table as the machine can look it up best, then by each lower level.
fn every_level<A: Family>(ours: Warren<A>) -> Vec<Box<dyn Table<A>>> {
    let most = ours.reader().simd_level();
    let lower = SimdLevel::ALL
        .into_iter()
        .rev()
        .filter(|level| *level < most);
    let lower: Vec<Box<dyn Table<A>>> = lower
        .map(|level| Box::new(ours.at(level)) as Box<dyn Table<A>>)
        .collect();
    let mut tables: Vec<Box<dyn Table<A>>> = vec![Box::new(ours)];
    tables.extend(lower);
    tables
}

fn wanted(words: &[String], word: &str, kind: &[&str]) -> bool {
    !words.iter().any(|given| kind.contains(&given.as_str()))
        || words.iter().any(|given| given == word)
}

fn compare<A: Family>(
    set: &str,
    routes: &[(A::Prefix, u16)],
    tables: &[Box<dyn Table<A>>],
    words: &[String],
    json: &mut String,
) {
    let rounds = number(words, "rounds=").unwrap_or(3);
    let traces = [
        ("uniform", routes::uniform()),
        ("matched", routes::matched(routes)),
        ("zipf", routes::zipf(routes)),
    ];
    for table in &tables[1..] {
        let wrong = |trace: &[A]| {
            let differ = |address: &&A| tables[0].single(**address) != table.single(**address);
            trace.iter().step_by(7).filter(differ).count()
        };
        let wrong: usize = traces.iter().map(|(_, trace)| wrong(trace)).sum();
        if wrong > 0 {
            println!("{}: {wrong} answers differ from ours", table.name());
        }
    }
    print!("{:16}", "ns (ratio)");
    for table in tables {
        print!("{:>22}", table.name());
    }
    println!();
    for (name, trace) in &traces {
        if !wanted(words, name, &["uniform", "matched", "zipf"]) {
            continue;
        }
        for mode in ["dep", "one", "b8", "b32", "b256"] {
            if !wanted(words, mode, &["dep", "one", "b8", "b32", "b256"]) {
                continue;
            }
            let mut times = vec![Vec::new(); tables.len()];
            for _ in 0..rounds {
                for (table, times) in tables.iter().zip(&mut times) {
                    let mut passes: Vec<f64> =
                        (0..5).map(|_| pass(table.as_ref(), trace, mode)).collect();
                    times.push(median(&mut passes));
                }
            }
            let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
            print!("{name:8}{mode:8}");
            for ((table, ns), times) in tables.iter().zip(&medians).zip(&times) {
                let ratio = format!("{ns:.2} ({:.2}x)", ns / medians[0]);
                print!("{ratio:>22}");
                let (low, high) = (times[0], times[times.len() - 1]);
                let _ = writeln!(
                    json,
                    "{{\"set\":\"{set}\",\"family\":\"{}\",\"routes\":{},\"trace\":\"{name}\",\"mode\":\"{mode}\",\
                     \"table\":\"{}\",\"ns\":{ns:.3},\"low\":{low:.3},\"high\":{high:.3}}},",
                    A::NAME,
                    routes.len(),
                    table.name()
                );
            }
            println!();
        }
    }
}

fn pass<A: Family>(table: &dyn Table<A>, trace: &[A], mode: &str) -> f64 {
    let trace = black_box(trace);
    let start = Instant::now();
    black_box(match mode {
        "dep" => table.dependents(trace),
        "one" => table.singles(trace),
        "b8" => table.batches(trace, 8),
        "b32" => table.batches(trace, 32),
        _ => table.batches(trace, 256),
    });
    start.elapsed().as_nanos() as f64 / trace.len() as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
