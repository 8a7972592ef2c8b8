//! What does a route lookup cost? By family, table, trace and way of asking; and a build, changes and publications.
//!
//! `WARREN_ROUTES=table.txt.gz cargo bench -p warren-benches --bench lookup`. The peers are in `lookup-ratios`.
#![allow(
    missing_docs,
    clippy::indexing_slicing,
    reason = "criterion's macros; traces of known size"
)]

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tun_node::sys::huge::HugePages;
use warren_benches::routes::{self, Family};
use warren_benches::tables::{Table, Warren, id};
use warren_core::fib::Fib;

#[global_allocator]
static HUGE_PAGES: HugePages = HugePages;

fn lookups<A: Family>(c: &mut Criterion, set: &str, routes: &[(A::Prefix, u16)]) {
    let (table, mut fib) = Warren::<A>::new(routes);
    let traces = [
        ("uniform", routes::uniform()),
        ("matched", routes::matched(routes)),
        ("zipf", routes::zipf(routes)),
    ];
    let mut group = c.benchmark_group(format!("lookup/{}/{set}", A::NAME));
    group.sample_size(10);
    for (name, trace) in &traces {
        let trace = &trace[..1 << 17];
        group.throughput(Throughput::Elements(trace.len() as u64));
        group.bench_function(format!("{name}/dependent"), |b| {
            b.iter(|| table.dependents(black_box(trace)))
        });
        group.bench_function(format!("{name}/single"), |b| {
            b.iter(|| table.singles(black_box(trace)))
        });
        for size in [8, 32, 256] {
            group.bench_function(format!("{name}/batch{size}"), |b| {
                b.iter(|| table.batches(black_box(trace), size))
            });
        }
    }
    group.finish();
    let mut group = c.benchmark_group(format!("update/{}/{set}", A::NAME));
    group.sample_size(10);
    let hops: Vec<_> = routes
        .iter()
        .map(|(prefix, next_hop)| (*prefix, id(*next_hop)))
        .collect();
    group.throughput(Throughput::Elements(hops.len() as u64));
    group.bench_function("build", |b| {
        b.iter_batched(
            || hops.clone(),
            |hops| Fib::<A>::from_routes(hops).expect("fits"),
            BatchSize::PerIteration,
        );
    });
    let mut rng = routes::Rng(9);
    group.throughput(Throughput::Elements(2));
    group.bench_function("remove and insert", |b| {
        b.iter(|| {
            let (prefix, next_hop) = hops[rng.below(hops.len())];
            fib.remove(prefix);
            fib.insert(prefix, next_hop).expect("fits")
        });
    });
    // As a worker sees it: the newest snapshot is held until the next is there.
    for changes in [2, 64, 1024] {
        let mut held = fib.reader();
        group.throughput(Throughput::Elements(changes));
        group.bench_function(format!("{changes} removed and inserted, published"), |b| {
            b.iter(|| {
                for _ in 0..changes / 2 {
                    let (prefix, next_hop) = hops[rng.below(hops.len())];
                    fib.remove(prefix);
                    fib.insert(prefix, next_hop).expect("fits");
                }
                drop(std::mem::replace(&mut held, fib.reader()));
            });
        });
    }
    let mut held = fib.reader();
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 next hops replaced, published", |b| {
        b.iter(|| {
            for _ in 0..64 {
                let (prefix, _) = hops[rng.below(hops.len())];
                let (_, next_hop) = hops[rng.below(hops.len())];
                fib.insert(prefix, next_hop).expect("fits");
            }
            drop(std::mem::replace(&mut held, fib.reader()));
        });
    });
    group.finish();
}

fn bench(c: &mut Criterion) {
    lookups::<Ipv4Addr>(c, "cluster", &routes::cluster::<Ipv4Addr>());
    lookups::<Ipv6Addr>(c, "cluster", &routes::cluster::<Ipv6Addr>());
    lookups::<Ipv4Addr>(c, "full", &routes::full::<Ipv4Addr>());
    lookups::<Ipv6Addr>(c, "full", &routes::full::<Ipv6Addr>());
}

criterion_group!(benches, bench);
criterion_main!(benches);
