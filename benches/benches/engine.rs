//! What does a packet cost in the library, without any I/O? By direction, encapsulation, family, packet size and
//! number of routes; and how much it allocates.
//!
//! `cargo bench -p warren-benches --bench engine`. `parse` is the walk over the inner headers alone, `shim` reading the
//! encapsulation and that walk; `encap` and `decap` are the engine over a batch of 64 packets to and from random
//! prefixes of the table: parse, every check, and the encapsulation or its removal. The flows of these packets are
//! known after the first batch, so that no route is looked up for them. `flows` is the same by family, routes and
//! remembered flows: 1024, or none, which has every packet's routes looked up, and then with the table's portable code
//! too. `routes` is what a batch of new flows asks, two addresses for each packet, by the table that the engine has (`warren`) and one by one by the `prefix-trie`
//! crate. Filling the batch is not measured. Before each measurement the allocations of one batch are counted, and any
//! ends the run.
#![allow(
    missing_docs,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "criterion's macros; figures are printed"
)]

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use prefix_trie::{Prefix, PrefixMap};
use warren_benches::allocations::{self, Counting};
use warren_benches::overlay::{self, BATCH, Overlay, SLOT_OCTETS, encapsulations};
use warren_core::Batch;
use warren_core::encap::shim;
use warren_core::fib::{Address, FibReader, NextHopId, SimdLevel};
use warren_core::packet::Packet;
use warren_core::units::{Family, Time};

#[global_allocator]
static COUNTING: Counting = Counting;

const FAMILIES: [(&str, Family); 2] = [("ipv4", Family::V4), ("ipv6", Family::V6)];
const PACKET_OCTETS: [usize; 3] = [64, 512, 1400];
const ROUTES: [usize; 2] = [10, 10_000];

fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(BATCH as u64));
    for encapsulation in encapsulations() {
        for (family_name, family) in FAMILIES {
            for octets in PACKET_OCTETS {
                let overlay = Overlay::new(encapsulation, family, octets, 10);
                let shimmed = format!("shim/{}/{family_name}/{octets}", encapsulation.name());
                let local = overlay.receiver.tables().local();
                let open = || {
                    for (link, bytes) in &overlay.carried {
                        let opened = shim::open(black_box(bytes), link.transport, local);
                        assert!(black_box(opened).is_ok());
                    }
                };
                assert_none_allocated(&shimmed, open);
                group.bench_function(&shimmed, |b| b.iter(open));
                if !shimmed.contains("fou") {
                    continue;
                }
                let inner = format!("inner/{family_name}/{octets}");
                let parse = || {
                    for packet in &overlay.packets {
                        assert!(black_box(Packet::parse(black_box(packet))).is_ok());
                    }
                };
                assert_none_allocated(&inner, parse);
                group.bench_function(&inner, |b| b.iter(parse));
            }
        }
    }
    group.finish();
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(BATCH as u64));
    for encapsulation in encapsulations() {
        for (family_name, family) in FAMILIES {
            for octets in PACKET_OCTETS {
                for routes in ROUTES {
                    let overlay = Overlay::new(encapsulation, family, octets, routes);
                    let Overlay {
                        mut sender,
                        mut receiver,
                        packets,
                        carried,
                    } = overlay;
                    let mut batch = Batch::new(BATCH, SLOT_OCTETS);
                    let of = |direction| {
                        let encapsulation = encapsulation.name();
                        format!("{direction}/{encapsulation}/{family_name}/{octets}/{routes}")
                    };

                    overlay::fill(&mut batch, &packets);
                    assert_none_allocated(&of("encap"), || sender.encap(&mut batch, Time::ZERO));
                    group.bench_function(of("encap"), |b| {
                        measure(
                            b,
                            |batch| overlay::fill(batch, &packets),
                            |batch| {
                                sender.encap(batch, Time::ZERO);
                            },
                        );
                    });

                    overlay::fill_carried(&mut batch, &carried);
                    assert_none_allocated(&of("decap"), || receiver.decap(&mut batch, Time::ZERO));
                    group.bench_function(of("decap"), |b| {
                        measure(
                            b,
                            |batch| overlay::fill_carried(batch, &carried),
                            |batch| {
                                receiver.decap(batch, Time::ZERO);
                            },
                        );
                    });
                }
            }
        }
    }
    group.finish();
}

/// What remembering flows saves: with as many places as the batch has flows several times over, and
/// with none, so that each packet takes the whole way.
fn flows(c: &mut Criterion) {
    let mut group = c.benchmark_group("flows");
    group.throughput(Throughput::Elements(BATCH as u64));
    let [vxlan, _] = encapsulations();
    for (family_name, family) in FAMILIES {
        for routes in ROUTES {
            for flows in [1024, 0] {
                let Overlay {
                    mut sender,
                    mut receiver,
                    packets,
                    carried,
                } = Overlay::with_flows(vxlan, family, 64, routes, flows);
                let of = |direction| format!("{direction}/{family_name}/{routes}/{flows}");
                group.bench_function(of("encap"), |b| {
                    measure(
                        b,
                        |batch| overlay::fill(batch, &packets),
                        |batch| {
                            sender.encap(batch, Time::ZERO);
                        },
                    );
                });
                group.bench_function(of("decap"), |b| {
                    measure(
                        b,
                        |batch| overlay::fill_carried(batch, &carried),
                        |batch| {
                            receiver.decap(batch, Time::ZERO);
                        },
                    );
                });
                if flows > 0 {
                    continue;
                }
                let portable = sender.tables().with_simd_level(SimdLevel::Portable);
                sender.set_tables(Arc::new(portable));
                group.bench_function(of("encap portable"), |b| {
                    measure(
                        b,
                        |batch| overlay::fill(batch, &packets),
                        |batch| {
                            sender.encap(batch, Time::ZERO);
                        },
                    );
                });
            }
        }
    }
    group.finish();
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("routes");
    group.throughput(Throughput::Elements(BATCH as u64));
    let [encapsulation, ..] = encapsulations();
    for routes in ROUTES {
        let overlay = |family| Overlay::new(encapsulation, family, PACKET_OCTETS[0], routes);
        let v4 = overlay(Family::V4);
        let pairs = addresses(&v4.packets, 12, |octets: [u8; 4]| Ipv4Addr::from(octets));
        lookups_of(
            &mut group,
            &format!("ipv4/{routes}"),
            v4.sender.tables().fib_v4(),
            &pairs,
        );
        let v6 = overlay(Family::V6);
        let pairs = addresses(&v6.packets, 8, |octets: [u8; 16]| Ipv6Addr::from(octets));
        lookups_of(
            &mut group,
            &format!("ipv6/{routes}"),
            v6.sender.tables().fib_v6(),
            &pairs,
        );
    }
    group.finish();
}

fn lookups_of<A: Address>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    fib: &FibReader<A>,
    addresses: &[A],
) where
    A::Prefix: Prefix,
{
    let naive: PrefixMap<A::Prefix, NextHopId> = fib.iter().collect();
    let mut answers = vec![None; addresses.len()];
    let mut expected = answers.clone();
    let ask_naive = |answers: &mut [Option<NextHopId>]| {
        for (address, answer) in addresses.iter().zip(answers) {
            let host = A::join(address.to_key(), A::BITS);
            *answer = naive.get_lpm(&host).map(|(_, next_hop)| *next_hop);
        }
    };
    fib.lookup_batch(addresses, &mut answers);
    ask_naive(&mut expected);
    assert_eq!(answers, expected);
    assert!(
        answers.iter().all(Option::is_some),
        "{name}: every address has a route"
    );
    group.bench_function(format!("warren/{name}"), |b| {
        b.iter(|| fib.lookup_batch(black_box(addresses), black_box(&mut answers)));
    });
    let portable = fib.clone().with_simd_level(SimdLevel::Portable);
    group.bench_function(format!("warren portable/{name}"), |b| {
        b.iter(|| portable.lookup_batch(black_box(addresses), black_box(&mut answers)));
    });
    group.bench_function(format!("prefix-trie/{name}"), |b| {
        b.iter(|| ask_naive(black_box(&mut expected)));
    });
}

/// Source and destination of each packet, the first of them `at` octets into its header.
fn addresses<A, const OCTETS: usize>(
    packets: &[Vec<u8>],
    at: usize,
    address: impl Fn([u8; OCTETS]) -> A,
) -> Vec<A> {
    packets
        .iter()
        .flat_map(|packet| packet[at..at + 2 * OCTETS].as_chunks().0)
        .map(|octets| address(*octets))
        .collect()
}

/// Measures `work` over a batch that `fill` fills each time, unmeasured.
fn measure(
    bencher: &mut criterion::Bencher<'_>,
    fill: impl Fn(&mut Batch),
    mut work: impl FnMut(&mut Batch),
) {
    let mut batch = Batch::new(BATCH, SLOT_OCTETS);
    bencher.iter_custom(|iterations| {
        let mut spent = Duration::ZERO;
        for _ in 0..iterations {
            fill(&mut batch);
            let start = Instant::now();
            work(black_box(&mut batch));
            spent += start.elapsed();
        }
        spent
    });
}

/// Runs `work` over [`BATCH`] packets and says what it allocates, which must be nothing.
fn assert_none_allocated(name: &str, work: impl FnOnce()) {
    let allocated = allocations::count(work);
    println!("{name}: {allocated} allocations in {BATCH} packets");
    assert_eq!(allocated, 0, "{name} allocates");
}

criterion_group!(benches, parse, lookups, engine, flows);
criterion_main!(benches);
