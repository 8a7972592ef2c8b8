//! Clever against slow: the sweep for overlaps and the longest-match search for loops give what
//! comparing everything with everything gives, and no text makes the reader panic.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use tun_node::config::{ConfigError, example_config};

use super::{BASE, parse};

/// SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    /// A prefix of 10.0.0.0/8 out of so few that many contain each other.
    fn prefix(&mut self) -> IpNet {
        let length = u8::try_from(8 + self.below(9)).unwrap();
        let address = 0x0a00_0000 | u32::try_from(self.below(256)).unwrap() << 16;
        let net = Ipv4Net::new(Ipv4Addr::from(address), length).unwrap();
        IpNet::V4(net.trunc())
    }
}

fn contains_strictly(wider: &IpNet, narrower: &IpNet) -> bool {
    wider.contains(narrower) && wider != narrower
}

fn sentences<'e>(error: &'e Option<ConfigError>, of: &'e str) -> impl Iterator<Item = &'e str> {
    let problems = error.iter().flat_map(|error| &error.problems);
    problems
        .map(|problem| problem.sentence.as_str())
        .filter(move |sentence| sentence.contains(of))
}

#[test]
fn the_overlap_sweep_finds_what_comparing_all_pairs_finds() {
    let mut random = Random(1);
    let mut overlaps_seen = 0;
    for _ in 0..300 {
        let mut owned: Vec<(IpNet, usize)> = Vec::new();
        let mut text = "[node]\nname = \"a\"\nunderlay = \"192.0.2.100\"\n".to_owned();
        for peer in 0..4 {
            let mut nets = BTreeSet::new();
            for _ in 0..=random.below(5) {
                let net = random.prefix();
                if owned.iter().all(|(other, _)| *other != net) {
                    owned.push((net, peer));
                    nets.insert(format!("\"{net}\""));
                }
            }
            let nets = nets.into_iter().collect::<Vec<_>>().join(", ");
            if nets.is_empty() {
                continue;
            }
            writeln!(
                text,
                "[[peers]]\nname = \"p{peer}\"\naddress = \"192.0.2.{peer}\"\nencap = \"fou\"\n\
                 prefixes = [{nets}]"
            )
            .unwrap();
        }
        let expected = owned.iter().filter(|(net, owner)| {
            owned
                .iter()
                .any(|(wider, other)| other != owner && contains_strictly(wider, net))
        });
        let expected = expected.count();
        let error = parse(&text).err();
        let found = sentences(&error, "make them disjoint").count();
        assert_eq!(found, expected, "{text}");
        assert_eq!(error.is_some(), expected > 0, "{text}");
        overlaps_seen += expected;
    }
    assert!(overlaps_seen > 500);
}

#[test]
fn an_underlay_address_is_refused_when_the_longest_prefix_around_it_is_not_direct() {
    let mut random = Random(2);
    let (mut refused, mut passed) = (0, 0);
    for _ in 0..300 {
        let mut nets: Vec<(IpNet, bool)> = Vec::new();
        let mut text = "[node]\nname = \"a\"\nunderlay = \"192.0.2.100\"\n".to_owned();
        for _ in 0..random.below(12) {
            let net = random.prefix();
            let direct = random.below(2) == 0;
            if nets.iter().any(|(other, _)| *other == net) {
                continue;
            }
            nets.push((net, direct));
            let action = if direct { "direct" } else { "blackhole" };
            writeln!(
                text,
                "[[routes]]\nprefix = \"{net}\"\naction = \"{action}\""
            )
            .unwrap();
        }
        let mut expected = 0;
        for peer in 0..6 {
            let address = IpAddr::from([10, random.below(256).to_le_bytes()[0], 0, 1 + peer]);
            let around = nets.iter().filter(|(net, _)| net.contains(&address));
            let longest = around.max_by_key(|(net, _)| net.prefix_len());
            expected += usize::from(longest.is_some_and(|(_, direct)| !direct));
            writeln!(
                text,
                "[[peers]]\nname = \"p{peer}\"\naddress = \"{address}\"\nencap = \"gue\"\n\
                 prefixes = [\"172.16.{peer}.0/24\"]"
            )
            .unwrap();
        }
        let error = parse(&text).err();
        let found = sentences(&error, "outer packets would enter the tunnel").count();
        assert_eq!(found, expected, "{text}");
        refused += expected;
        passed += 6 - expected;
    }
    assert!(refused > 200 && passed > 200, "{refused} {passed}");
}

/// Each answer is a configuration or at least one problem, in order, inside the text.
fn judge(text: &str) {
    let Err(error) = parse(text) else { return };
    assert!(!error.problems.is_empty());
    let place = |p: &tun_node::config::Problem| (p.line, p.column);
    assert!(error.problems.iter().map(place).is_sorted());
    let lines = text.split('\n').count();
    for problem in &error.problems {
        assert!(problem.line.is_some_and(|line| (1..=lines).contains(&line)));
        assert!(problem.column > 0 && !problem.sentence.contains('\n'));
        let printable = |c: char| !c.is_control();
        assert!(problem.sentence.chars().all(printable), "{problem:?}");
    }
}

#[test]
fn no_mutation_of_a_valid_file_makes_the_reader_panic() {
    let pieces = [
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        "\"",
        "'",
        ",",
        ".",
        "#",
        "\n",
        "\r",
        "\0",
        "\u{1b}",
        "ä",
        "\u{feff}",
        "0",
        "-1",
        "1e9",
        "true",
        "inf",
        "1979-05-27",
        "0x",
        "99999999999999999999",
        "peers",
        "node",
        "name",
        "[[peers]]\n",
        "[node]\n",
        "/0",
        "/129",
        "::",
        "0.0.0.0/0",
        "::/0",
        "127.0.0.1",
        "\"\"\"",
        "a.b.c",
        "prefixes = []\n",
        "encap = \"ipip\"\n",
    ];
    let mut random = Random(3);
    for round in 0..6000 {
        let source = if round % 2 == 0 {
            BASE
        } else {
            example_config()
        };
        let mut chars: Vec<char> = source.chars().collect();
        for _ in 0..=random.below(4) {
            let from = random.below(chars.len() + 1);
            let to = (from + random.below(12)).min(chars.len());
            let piece = pieces[random.below(pieces.len())];
            match random.below(4) {
                0 => drop(chars.drain(from..to)),
                1 => drop(chars.splice(from..from, piece.chars())),
                2 => drop(chars.splice(from..to, piece.chars())),
                _ => {
                    let copy: Vec<char> = chars[from..to].to_vec();
                    let at = random.below(chars.len() + 1);
                    drop(chars.splice(at..at, copy));
                }
            }
        }
        judge(&chars.into_iter().collect::<String>());
    }
}

#[test]
fn nesting_without_end_is_refused_and_does_not_exhaust_the_stack() {
    for (open, close) in [("[", "a]\n"), ("[[", "a]]\n"), ("", "a = 1\n")] {
        judge(&format!("{open}{}{close}", "a.".repeat(1_000_000)));
    }
    judge(&format!("a = {}", "[".repeat(1_000_000)));
    judge(&format!("a = {}", "{a=".repeat(1_000_000)));
}

/// Whatever compares all with all, or counts columns from the start of one long line each time,
/// takes minutes for these.
#[test]
fn the_largest_files_are_judged_without_comparing_all_with_all() {
    const NODE: &str = "[node]\nname = \"a\"\nunderlay = \"192.0.2.1\"\n";
    let list = |count: usize, item: fn(usize) -> String| -> String {
        let items: Vec<String> = (0..count).map(item).collect();
        format!("[{}]", items.join(","))
    };
    let net = |i: usize, octet: u8, end: &str| format!("\"{octet}.{}.{}.{end}\"", i >> 8, i & 255);
    let nets = (0..65_536).map(|i| net(i, 10, "0/24")).collect::<Vec<_>>();
    let halves = (0..65_536).map(|i| net(i, 10, "0/25")).collect::<Vec<_>>();
    let addresses = (0..65_536).map(|i| net(i, 11, "1/24")).collect::<Vec<_>>();

    let named = |i| format!("[[peers]]\nname = \"peer-{i}\"\n");
    let peers: String = (0..30_000).map(named).collect();
    let strangers = list(30_000, |i| format!("\"peeer-{i}\""));
    judge(&format!("{NODE}{peers}[[routes]]\nvia = {strangers}\n"));

    let (nets, halves) = (nets.join(","), halves.join(","));
    judge(&format!(
        "{NODE}[[peers]]\nprefixes = [{nets}]\n[[peers]]\nprefixes = [{halves}]\n"
    ));
    judge(&format!(
        "{NODE}prefixes = [{nets}]\n[device]\naddresses = [{}]\n",
        addresses.join(",")
    ));
    judge(&format!(
        "{NODE}prefixes = {}",
        list(200_000, |_| "\"10.0.0.0/8\"".to_owned())
    ));
    let unknown: String = (0..200_000).map(|i| format!("key-{i} = 1\n")).collect();
    judge(&format!("{NODE}{unknown}"));
    judge(&"=\n".repeat(2 << 20));
}
