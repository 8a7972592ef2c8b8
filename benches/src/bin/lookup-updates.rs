//! Updates of the forwarding table: how long one takes, how many a second while another core looks up, what the
//! reader notices, and how long a build takes.
//!
//! ```text
//! WARREN_ROUTES=table.txt.gz cargo run --profile bench -p warren-benches --bin lookup-updates [ipv4] [ipv6] [pairs] [snapshots]
//! ```
//!
//! With a family only that one; with `pairs` only what updates cost the reader; with `snapshots` the reader of these has no
//! replica of its own.
//!
//! The reader takes the newest snapshot the way a worker does: an atomic epoch once a batch, the handle under a lock
//! when the epoch moved. The writer removes and inserts random routes of the table; it
//! spins when it has nothing to do. The kinds take turns, three rounds.
//!
//! Single changes are timed in the same sequence several times over, each time on a fresh table. What the table does
//! at one place of the sequence it does there every time; what the machine does meanwhile it does elsewhere the next
//! time. So the least of the times at each place is the table's, the rest the machine's: a loop that only spins,
//! timed in the same run, shows how much that is.
//!
//! What updates cost the reader is asked in pairs of 10 ms each, one with updates and one without, next to each
//! other: the median of their ratios, with what two idle halves of such pairs give. Before each pair the two threads pass
//! a cache line to and fro: what updates cost depends on how far apart the host has put their CPUs (`cpus.rs`), and the
//! pairs are told apart by it.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "measurements of known sizes"
)]
#![allow(clippy::print_stdout, reason = "the output is the product")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tun_node::sys::huge::HugePages;
use warren_benches::cpus::{Alone, Ball, NEAR};
use warren_benches::routes::{self, Family, Rng};
use warren_benches::tables::{Warren, id};
use warren_core::fib::{Fib, FibReplica};

#[global_allocator]
static HUGE_PAGES: HugePages = HugePages;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    if let Some(other) = words
        .iter()
        .find(|word| !["ipv4", "ipv6", "pairs", "snapshots"].contains(&word.as_str()))
    {
        eprintln!(
            "lookup-updates: {other}: what can be asked for is ipv4, ipv6, pairs and snapshots"
        );
        std::process::exit(2);
    }
    if has("ipv4") || !has("ipv6") {
        report::<Ipv4Addr>(&routes::full::<Ipv4Addr>(), has("pairs"), !has("snapshots"));
    }
    if has("ipv6") || !has("ipv4") {
        report::<Ipv6Addr>(&routes::full::<Ipv6Addr>(), has("pairs"), !has("snapshots"));
    }
    if !words.is_empty() {
        return;
    }
    many::<Ipv4Addr>(24, 10);
    many::<Ipv6Addr>(64, 10);
    many::<Ipv4Addr>(24, 100);
    many::<Ipv6Addr>(64, 100);
}

/// Thousands of small tables at once, one for each VNI.
fn many<A: Family>(len: u8, routes: u32) {
    let start = Instant::now();
    let tables: Vec<_> = (0..TABLES)
        .map(|vni| {
            let mut fib = Fib::<A>::new();
            for n in 0..routes {
                let key = 0x0a_u128 << 120 | u128::from(n) << (128 - u32::from(len));
                fib.insert(A::join(key, len), id((vni + n) as u16 % 251))
                    .expect("far below the limit");
            }
            let reader = fib.reader();
            (fib, reader)
        })
        .collect();
    let took = start.elapsed().as_secs_f64() * 1e3;
    let octets: usize = tables
        .iter()
        .map(|(fib, _)| fib.memory().total_octets)
        .sum();
    println!(
        "{TABLES} {} tables of {routes} routes, each published: {took:.1} ms, {} octets each",
        A::NAME,
        octets / TABLES as usize
    );
}

fn report<A: Family>(routes: &[(A::Prefix, u16)], pairs_only: bool, replicas: bool) {
    println!("\n{}: {} routes", A::NAME, routes.len());
    if !pairs_only {
        build::<A>(routes);
    }
    let (_, mut fib) = Warren::<A>::new(routes);
    let memory = fib.memory();
    let per_route = |octets: usize| octets as f64 / routes.len() as f64;
    println!(
        "octets a route: lookup part {:.2}, everything {:.2}",
        per_route(memory.lookup_octets),
        per_route(memory.total_octets)
    );
    if !pairs_only {
        single::<A>(routes);
    }
    let trace = routes::matched::<A>(routes);
    for (name, rate) in [
        ("pairs of two idle writers", 0.0),
        ("pairs, 100,000 updates a second", 100_000.0),
        ("pairs, as fast as it goes", f64::INFINITY),
    ] {
        paired(&mut fib, routes, &trace, (name, rate), replicas);
    }
    if pairs_only {
        return;
    }
    let kinds = [
        ("idle", 0, 0.0),
        ("100,000/s in batches of 100", 100, 100_000.0),
        ("as fast as it goes, batches of 64", 64, 0.0),
        ("as fast as it goes, batches of 1,024", 1024, 0.0),
    ];
    let mut readers = vec![Vec::new(); kinds.len()];
    for _ in 0..ROUNDS {
        for ((name, batch, rate), readers) in kinds.iter().zip(&mut readers) {
            readers.push(beside_a_reader(
                &mut fib, routes, &trace, name, *batch, *rate,
            ));
        }
    }
    for ((name, _, _), readers) in kinds.iter().zip(&mut readers) {
        readers.sort_by(f64::total_cmp);
        let ns = readers[readers.len() / 2];
        println!("median of {ROUNDS} rounds, {name}: reader {ns:.2} ns a lookup");
    }
    println!("after all: {:?}", fib.memory());
}

fn build<A: Family>(routes: &[(A::Prefix, u16)]) {
    let sorted: Vec<_> = routes
        .iter()
        .map(|(prefix, next_hop)| (*prefix, id(*next_hop)))
        .collect();
    let mut shuffled = sorted.clone();
    let mut rng = Rng(5);
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, rng.below(at + 1));
    }
    for (name, set) in [("sorted", &sorted), ("shuffled", &shuffled)] {
        let mut times: Vec<_> = (0..5)
            .map(|_| {
                let start = Instant::now();
                let fib = Fib::<A>::from_routes(set.iter().copied()).expect("far below the limit");
                let time = start.elapsed();
                drop(fib);
                time
            })
            .collect();
        times.sort();
        println!(
            "build from {name} routes: {:.1} ms",
            times[2].as_secs_f64() * 1e3
        );
    }
    let start = Instant::now();
    let mut fib = Fib::<A>::new();
    for (prefix, next_hop) in &shuffled {
        fib.insert(*prefix, *next_hop).expect("far below the limit");
    }
    println!("one by one: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
}

/// Times of one kind, in nanoseconds.
#[derive(Default)]
struct Series {
    all: Vec<u128>,
    /// The least time at each place of the sequence.
    least: Vec<u128>,
    next: usize,
}

impl Series {
    fn add(&mut self, time: Duration) {
        let nanos = time.as_nanos();
        self.all.push(nanos);
        match self.least.get_mut(self.next) {
            Some(least) => *least = nanos.min(*least),
            None => self.least.push(nanos),
        }
        self.next += 1;
    }

    fn print(&mut self, name: &str) {
        for (kind, times) in [
            ("each", &mut self.all),
            ("least of all rounds", &mut self.least),
        ] {
            times.sort_unstable();
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
            let over = times.len() - times.partition_point(|time| *time <= 50_000);
            println!(
                "{name}, {kind}: median {} ns, 99 % {} ns, 99.9 % {} ns, most {} ns; {over} of {} over 50 us",
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0),
                times.len()
            );
        }
    }
}

/// Times each change and each publication by itself.
fn single<A: Family>(routes: &[(A::Prefix, u16)]) {
    let [mut growing, mut changes, mut publications, mut spins]: [Series; 4] = Default::default();
    for _ in 0..SINGLE_ROUNDS {
        for series in [&mut growing, &mut changes, &mut publications, &mut spins] {
            series.next = 0;
        }
        let mut rng = Rng(11);
        let mut shuffled = routes.to_vec();
        for at in (1..shuffled.len()).rev() {
            shuffled.swap(at, rng.below(at + 1));
        }
        let mut fib = Fib::<A>::new();
        for (prefix, next_hop) in &shuffled {
            let start = Instant::now();
            fib.insert(*prefix, id(*next_hop))
                .expect("far below the limit");
            growing.add(start.elapsed());
        }
        let mut held = fib.reader();
        for _ in 0..50_000 {
            let (prefix, next_hop) = routes[rng.below(routes.len())];
            let start = Instant::now();
            fib.remove(prefix);
            changes.add(start.elapsed());
            let start = Instant::now();
            drop(std::mem::replace(&mut held, fib.reader()));
            publications.add(start.elapsed());
            let start = Instant::now();
            fib.insert(prefix, id(next_hop))
                .expect("far below the limit");
            changes.add(start.elapsed());
            let start = Instant::now();
            drop(std::mem::replace(&mut held, fib.reader()));
            publications.add(start.elapsed());
        }
        drop(held);
        for _ in 0..200_000 {
            let start = Instant::now();
            while start.elapsed() < Duration::from_nanos(1_200) {
                std::hint::spin_loop();
            }
            spins.add(start.elapsed());
        }
    }
    growing.print("one insertion into a growing table");
    changes.print("one change after a publication");
    publications.print("one publication");
    spins.print("nothing but 1.2 us of spinning");
}

/// What the reader takes beside a writer, as a ratio to what it takes beside one that only spins: the median of many
/// short pairs, and the 95 % interval of that median.
fn paired<A: Family>(
    fib: &mut Fib<A>,
    routes: &[(A::Prefix, u16)],
    trace: &[A],
    (name, rate): (&str, f64),
    replicas: bool,
) {
    let published = Alone(Mutex::new(fib.reader()));
    let epoch = Alone(AtomicU64::new(0));
    let lookups = Alone(AtomicU64::new(0));
    let done = Alone(AtomicBool::new(false));
    let (ball, throws) = (Ball::default(), Alone(AtomicBool::new(false)));
    let pairs = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut table = published.0.lock().expect("no holder panics").clone();
            let mut replica = replicas.then(|| FibReplica::new(table.clone()));
            let (mut seen, mut count, mut answers) = (0, 0_u64, [None; 32]);
            for addresses in trace.chunks(32).cycle() {
                let now = epoch.0.load(Ordering::Acquire);
                if now != seen {
                    if done.0.load(Ordering::Relaxed) {
                        return;
                    }
                    if throws.0.swap(false, Ordering::Acquire) {
                        ball.answer();
                    }
                    seen = now;
                    table = published.0.lock().expect("no holder panics").clone();
                    match &mut replica {
                        Some(replica) => replica.follow(table.clone()),
                        None => table.ask_for_changes(),
                    }
                }
                match &mut replica {
                    Some(replica) => replica.lookup_batch(addresses, &mut answers),
                    None => table.lookup_batch(addresses, &mut answers),
                }
                count += addresses.len() as u64;
                lookups.0.store(count, Ordering::Relaxed);
            }
        });
        let mut rng = Rng(23);
        let mut half = |rate: f64| {
            let (start, before) = (Instant::now(), lookups.0.load(Ordering::Relaxed));
            let mut updates = 0;
            while start.elapsed() < Duration::from_millis(10) {
                if f64::from(updates) >= start.elapsed().as_secs_f64() * rate {
                    std::hint::spin_loop();
                    continue;
                }
                for _ in 0..PAIRED_BATCH / 2 {
                    let (prefix, next_hop) = routes[rng.below(routes.len())];
                    fib.remove(prefix);
                    fib.insert(prefix, id(next_hop))
                        .expect("far below the limit");
                }
                *published.0.lock().expect("no holder panics") = fib.reader();
                epoch.0.fetch_add(1, Ordering::Release);
                updates += PAIRED_BATCH;
            }
            let count = lookups.0.load(Ordering::Relaxed) - before;
            start.elapsed().as_secs_f64() / count as f64
        };
        let pairs: Vec<(f64, f64)> = (0..PAIRS)
            .map(|pair| {
                throws.0.store(true, Ordering::Release);
                epoch.0.fetch_add(1, Ordering::Release);
                let nanos = ball.nanos();
                let (idle, busy);
                if pair % 2 == 0 {
                    idle = half(0.0);
                    busy = half(rate);
                } else {
                    busy = half(rate);
                    idle = half(0.0);
                }
                (nanos, busy / idle)
            })
            .collect();
        done.0.store(true, Ordering::Relaxed);
        epoch.0.fetch_add(1, Ordering::Release);
        pairs
    });
    let all = pairs.iter().map(|(_, ratio)| *ratio).collect();
    println!(
        "{name}: the reader takes {} of what it takes beside an idle writer",
        median(all)
    );
    for (place, near) in [("near", true), ("far", false)] {
        let (nanos, ratios): (Vec<f64>, Vec<f64>) = pairs
            .iter()
            .filter(|(nanos, _)| (*nanos < NEAR) == near)
            .copied()
            .unzip();
        if ratios.len() >= LEAST_PAIRS {
            let count = ratios.len();
            println!(
                "    {} on {place} CPUs ({count} pairs, a line takes {} ns)",
                median(ratios),
                median(nanos)
            );
        }
    }
}

/// The median, and its 95 % interval.
fn median(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let (half, spread) = (values.len() / 2, (values.len() as f64).sqrt() as usize);
    let [low, middle, high] = [half - spread, half, half + spread].map(|at| values[at]);
    let digits = if middle < 10.0 { 3 } else { 0 };
    format!("{middle:.digits$} ({low:.digits$} to {high:.digits$})")
}

fn beside_a_reader<A: Family>(
    fib: &mut Fib<A>,
    routes: &[(A::Prefix, u16)],
    trace: &[A],
    name: &str,
    batch: usize,
    rate: f64,
) -> f64 {
    let published = Alone(Mutex::new(fib.reader()));
    let epoch = Alone(AtomicU64::new(0));
    let done = Alone(AtomicBool::new(false));
    let (mut updates, mut longest) = (0_u64, Duration::ZERO);
    let mut busy = Duration::ZERO;
    let ns = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let first = published.0.lock().expect("no holder panics").clone();
            let mut table = FibReplica::new(first);
            let (mut seen, mut lookups, mut answers) = (0, 0_u64, [None; 32]);
            let start = Instant::now();
            while !done.0.load(Ordering::Relaxed) {
                for addresses in trace.chunks(32) {
                    let now = epoch.0.load(Ordering::Acquire);
                    if now != seen {
                        seen = now;
                        table.follow(published.0.lock().expect("no holder panics").clone());
                    }
                    table.lookup_batch(addresses, &mut answers);
                }
                lookups += trace.len() as u64;
            }
            start.elapsed().as_nanos() as f64 / lookups as f64
        });
        let mut rng = Rng(17);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1_000) {
            // The other core is never at rest: a virtual machine that wakes and halts one costs the other more than
            // any update does.
            if batch == 0 {
                std::hint::spin_loop();
                continue;
            }
            if rate > 0.0 && updates as f64 > start.elapsed().as_secs_f64() * rate {
                std::hint::spin_loop();
                continue;
            }
            let began = Instant::now();
            for _ in 0..batch / 2 {
                let (prefix, next_hop) = routes[rng.below(routes.len())];
                fib.remove(prefix);
                fib.insert(prefix, id(next_hop))
                    .expect("far below the limit");
            }
            let next = fib.reader();
            *published.0.lock().expect("no holder panics") = next;
            epoch.0.fetch_add(1, Ordering::Release);
            updates += batch as u64 / 2 * 2;
            longest = longest.max(began.elapsed() / batch as u32);
            busy += began.elapsed();
        }
        done.0.store(true, Ordering::Relaxed);
        reader.join().expect("the reader does not panic")
    });
    let rate = if busy.is_zero() {
        0.0
    } else {
        updates as f64 / busy.as_secs_f64() / 1e6
    };
    println!(
        "{name}: reader {ns:.2} ns a lookup; {updates} updates, {rate:.2} M/s of writer time, slowest batch {longest:?} an update"
    );
    ns
}

const ROUNDS: usize = 3;
/// Small tables at once.
const TABLES: u32 = 4_000;
/// Rounds of single changes.
const SINGLE_ROUNDS: usize = 5;
/// Pairs of 10 ms with and without updates.
const PAIRS: usize = 400;
/// As few are not told apart.
const LEAST_PAIRS: usize = 16;
/// Updates published at once in these pairs.
const PAIRED_BATCH: u32 = 100;
