//! Nanoseconds a lookup against the number of routes, from 10 to 1,000,000: a table, JSON, and a plot.
//!
//! ```text
//! cargo run --profile bench -p warren-benches --bin lookup-sizes -- [json=FILE] [svg=FILE]
//! ```
//!
//! The routes are samples of the full table (real when `WARREN_ROUTES` names one), the addresses `matched`, in batches
//! of 32.
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

use tun_node::sys::huge::HugePages;
use warren_benches::routes::{self, Family, Rng};
use warren_benches::tables::{PrefixTrie, Table, TreeBitmap, Warren};

#[global_allocator]
static HUGE_PAGES: HugePages = HugePages;

struct Point {
    family: &'static str,
    table: &'static str,
    routes: usize,
    ns: f64,
    octets: f64,
}

fn main() {
    let mut points = Vec::new();
    let full = routes::full::<Ipv4Addr>();
    for routes in sizes::<Ipv4Addr>(&full) {
        let peers: [Box<dyn Table<Ipv4Addr>>; 2] = [
            Box::new(TreeBitmap::new(&routes)),
            Box::new(PrefixTrie::new(&routes)),
        ];
        measure(&routes, &peers, &mut points);
    }
    let full = routes::full::<Ipv6Addr>();
    for routes in sizes::<Ipv6Addr>(&full) {
        let peers: [Box<dyn Table<Ipv6Addr>>; 2] = [
            Box::new(TreeBitmap::new(&routes)),
            Box::new(PrefixTrie::new(&routes)),
        ];
        measure(&routes, &peers, &mut points);
    }
    println!(
        "{:6}{:>10}  {:16}{:>8}{:>18}",
        "family", "routes", "table", "ns", "octets a route"
    );
    let mut json = String::from("[\n");
    for point in &points {
        let Point {
            family,
            table,
            routes,
            ns,
            octets,
        } = point;
        println!("{family:6}{routes:>10}  {table:16}{ns:>8.2}{octets:>18.1}");
        let _ = writeln!(
            json,
            "{{\"family\":\"{family}\",\"table\":\"{table}\",\"routes\":{routes},\"ns\":{ns:.3},\"octets_per_route\":{octets:.2}}},"
        );
    }
    json.truncate(json.trim_end_matches([',', '\n']).len());
    json.push_str("\n]\n");
    for word in env::args().skip(1) {
        if let Some(path) = word.strip_prefix("json=") {
            fs::write(path, &json).expect("the file named by json= can be written");
        }
        if let Some(path) = word.strip_prefix("svg=") {
            fs::write(path, plot(&points)).expect("the file named by svg= can be written");
        }
    }
}

/// Random samples of `full`, of 10, 32, 100, ... routes, and all of it.
fn sizes<A: Family>(full: &[(A::Prefix, u16)]) -> Vec<Vec<(A::Prefix, u16)>> {
    let mut shuffled = full.to_vec();
    let mut rng = Rng(21);
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, rng.below(at + 1));
    }
    let steps = [
        10, 32, 100, 316, 1_000, 3_162, 10_000, 31_623, 100_000, 316_228,
    ];
    let steps = steps
        .into_iter()
        .filter(|size| *size < full.len())
        .chain([full.len()]);
    steps.map(|size| shuffled[..size].to_vec()).collect()
}

fn measure<A: Family>(
    routes: &[(A::Prefix, u16)],
    peers: &[Box<dyn Table<A>>],
    points: &mut Vec<Point>,
) where
    A::Prefix: FromStr,
{
    let (ours, fib) = Warren::<A>::new(routes);
    let trace = routes::matched::<A>(routes);
    let octets = fib.memory().lookup_octets as f64 / routes.len() as f64;
    let tables = std::iter::once(&ours as &dyn Table<A>).chain(peers.iter().map(Box::as_ref));
    for (table, octets) in tables.zip([octets, f64::NAN, f64::NAN]) {
        let mut times: Vec<f64> = (0..3)
            .map(|_| {
                let start = Instant::now();
                black_box(table.batches(black_box(&trace), 32));
                start.elapsed().as_nanos() as f64 / trace.len() as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        points.push(Point {
            family: A::NAME,
            table: table.name(),
            routes: routes.len(),
            ns: times[1],
            octets,
        });
    }
}

/// Both axes logarithmic: 10 to 1,000,000 routes, 1 to 1,000 ns.
fn plot(points: &[Point]) -> String {
    let x = |routes: usize| 60.0 + ((routes as f64).log10() - 1.0) / 5.0 * 700.0;
    let y = |ns: f64| 420.0 - ns.max(1.0).log10() / 3.0 * 390.0;
    let mut svg = String::from(
        "<svg xmlns='http://www.w3.org/2000/svg' width='820' height='480' font-family='sans-serif' font-size='12'>\n\
         <rect width='820' height='480' fill='white'/>\n",
    );
    for exponent in 1..=6_i32 {
        let routes = 10_usize.pow(exponent.unsigned_abs());
        let _ = writeln!(
            svg,
            "<text x='{:.0}' y='440' text-anchor='middle'>{routes}</text>",
            x(routes)
        );
    }
    for ns in [1.0, 10.0, 100.0, 1000.0] {
        let at = y(ns);
        let _ = writeln!(
            svg,
            "<path d='M60 {at:.0}H760' stroke='#ddd'/><text x='55' y='{at:.0}' text-anchor='end'>{ns}</text>"
        );
    }
    svg.push_str("<text x='410' y='465' text-anchor='middle'>routes</text><text x='8' y='20'>ns a lookup, batches of 32</text>\n");
    let colours = [
        ("warren", "#c33"),
        ("treebitmap", "#36c"),
        ("prefix-trie", "#393"),
    ];
    for (family, dash, base) in [("ipv4", "none", 40.0), ("ipv6", "5 4", 90.0)] {
        for (at, (table, colour)) in colours.into_iter().enumerate() {
            let line: Vec<String> = points
                .iter()
                .filter(|point| point.family == family && point.table == table)
                .map(|point| format!("{:.1},{:.1}", x(point.routes), y(point.ns)))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2' stroke-dasharray='{dash}'/>\
                 <text x='80' y='{:.0}' fill='{colour}'>{family} {table}</text>",
                line.join(" "),
                base + 14.0 * at as f64
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
