//! Whole tunnels side by side: Warren, the kernel's VXLAN, no tunnel, and the user-space peers that
//! are installed, in turns within one run.
//!
//! ```text
//! namespace A  ── tunnel device ── [contender] ── veth ── [contender] ── tunnel device ──  namespace B
//!  load: client                                                                     load: server
//! ```
//!
//! ```sh
//! cargo bench -p warren-benches --bench end_to_end -- --help
//! ```
//!
//! Needs root, for the namespaces only. Prints a table; JSON with `--json FILE`, a plot with
//! `--svg FILE`.

mod contender;
mod forwarder;
mod iperf;
mod load;
mod peer;
mod plot;
mod report;
mod soak;
mod topology;

use std::process::ExitCode;
use std::time::Duration;

use contender::Contender;
use load::{Generator, Measure, Sample};
use topology::{Net, Wire};
use warren_benches::cpus::line_nanos;

/// What to run.
#[derive(Debug)]
struct Plan {
    rounds: usize,
    seconds: f64,
    mtu: u16,
    wires: Vec<Wire>,
    /// Those asked for, or all.
    contenders: Vec<Contender>,
    /// Whether nobody asked for contenders.
    is_usual: bool,
    /// Those asked for, or the usual ones of each contender.
    measures: Option<Vec<Measure>>,
    json: Option<String>,
    svg: Option<String>,
    soak_minutes: f64,
    generator: Generator,
}

const HELP: &str = "Whole tunnels side by side, contenders taking turns.

Usage: end_to_end [OPTIONS]

  --rounds N         rounds, the median is shown (3)
  --seconds S        length of each measurement (2)
  --mtu N            MTU of the underlay (1500)
  --wire LIST        plain,wire: veth as it is; veth with its offloads off (plain,wire)
  --contenders LIST  none,kernel,warren,warren-fou,warren-gue,warren-geneve,warren-ipip,warren-OPTIONS,
                     forwarder,wireguard-go,openvpn,tinc,fastd,nebula (all that are installed);
                     OPTIONS joined by '+': no-gso no-gro no-uso no-vnet together apart spin,
                     or a KEY=VALUE of [worker]; without a choice warren-together+pin=true on
                     wire only, where warren by itself is apart, and warren-apart+pin=true on plain
                     only, where it is together;
                     warren-ipip+OPTIONS and the like have them with another encapsulation
  --measures LIST    tcp1,tcp4,tcp1r,udp64,udp1400,rtt,loaded,idle (all for none, kernel and warren;
                     for the others, at half the length, those that they are there for)
  --load own|iperf3  who makes TCP streams and paced datagrams (own); iperf3 is to be installed, and
                     measures whole seconds
  --json FILE        write every sample
  --svg FILE         write a plot of the medians
  --fallbacks        Warren with each of its fallbacks forced, in tcp1,udp64,udp1400: the same as a
                     choice of contenders and measures
  --soak MINUTES     instead: Warren alone, or the only contender, at half its highest rate, watching
                     memory, descriptors and the books of both nodes";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let as_bench = arguments.iter().any(|argument| argument == "--bench");
    arguments.retain(|argument| argument != "--bench");
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["node", config] => contender::run_node(config),
        ["forward", address, mtu, local, remote] => forwarder::run(address, mtu, local, remote),
        ["load", rest @ ..] => load::child(rest),
        ["--help" | "-h"] => {
            report::print(HELP);
            Ok(())
        }
        // `cargo test --benches` runs every bench without this word: only to see that it starts.
        [] if !as_bench => {
            report::print("end_to_end: measures under `cargo bench` only");
            Ok(())
        }
        [] if !is_root() => {
            report::print("end_to_end: needs root for network namespaces");
            Ok(())
        }
        rest => plan(rest).and_then(|plan| run(&plan)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::print(&format!("end_to_end: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<(), String> {
    topology::remove_orphans();
    if plan.soak_minutes > 0.0 {
        return soak::run(plan);
    }
    let mut samples = Vec::new();
    for &wire in &plan.wires {
        for round in 0..plan.rounds {
            for contender in plan.contenders_on(wire) {
                let net = Net::build(wire, plan.mtu)?;
                let tunnel = match contender.start(&net, plan.mtu) {
                    Ok(tunnel) => tunnel,
                    Err(error) => {
                        report::progress(&format!("{contender} on {wire}: {error}"));
                        continue;
                    }
                };
                let (measures, length) = plan.measures_of(contender);
                let line = line_nanos();
                for &measure in measures {
                    if measure == Measure::Idle && round > 0 {
                        // Takes long and hardly differs from round to round.
                        continue;
                    }
                    let near = samples.iter().rev().find(|sample: &&Sample| {
                        sample.wire == wire
                            && sample.measure == measure
                            && sample.contender == contender.to_string()
                    });
                    let near = near.and_then(|sample| sample.value.first().copied());
                    match load::measure(&net, &tunnel, measure, length, near, plan.generator) {
                        Ok(value) => samples.push(Sample {
                            wire,
                            round,
                            contender: contender.to_string(),
                            measure,
                            value,
                            line,
                        }),
                        Err(error) => {
                            report::progress(&format!("{contender} {measure} on {wire}: {error}"))
                        }
                    }
                }
                let line = line.map_or(String::new(), |nanos| {
                    format!("; a cache line takes {nanos:.0} ns to the other CPU")
                });
                report::progress(&format!(
                    "round {} of {}: {contender} on {wire} done{line}",
                    round + 1,
                    plan.rounds
                ));
            }
        }
    }
    report::table(&samples, plan);
    if let Some(path) = &plan.svg {
        std::fs::write(path, plot::svg(&samples, plan))
            .map_err(|error| format!("{path}: {error}"))?;
    }
    if let Some(path) = &plan.json {
        std::fs::write(path, report::json(&samples, plan))
            .map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

fn plan(words: &[&str]) -> Result<Plan, String> {
    if !is_root() {
        return Err("needs root for network namespaces".into());
    }
    let mut plan = Plan {
        rounds: 3,
        seconds: 2.0,
        mtu: 1500,
        wires: vec![Wire::Plain, Wire::Wire],
        contenders: Contender::all(),
        is_usual: true,
        measures: None,
        json: None,
        svg: None,
        soak_minutes: 0.0,
        generator: Generator::Own,
    };
    let mut words = words.iter();
    while let Some(&option) = words.next() {
        if option == "--fallbacks" {
            plan.contenders = Contender::fallbacks();
            plan.is_usual = false;
            plan.measures = Some(vec![Measure::Tcp1, Measure::Udp64, Measure::Udp1400]);
            continue;
        }
        let value = *words
            .next()
            .ok_or_else(|| format!("{option} needs a value; see --help"))?;
        let number = || {
            value
                .parse()
                .map_err(|_| format!("{option}: {value} is no number"))
        };
        match option {
            "--rounds" => plan.rounds = number()?,
            "--seconds" => {
                plan.seconds = value.parse().map_err(|_| format!("{value} is no number"))?
            }
            "--mtu" => plan.mtu = value.parse().map_err(|_| format!("{value} is no MTU"))?,
            "--wire" => plan.wires = list(value, Wire::parse)?,
            "--contenders" => {
                plan.contenders = list(value, Contender::parse)?;
                plan.is_usual = false;
            }
            "--measures" => plan.measures = Some(list(value, Measure::parse)?),
            "--load" => {
                plan.generator = Generator::parse(value)
                    .ok_or_else(|| format!("{value} is unknown; see --help"))?;
            }
            "--json" => plan.json = Some(value.into()),
            "--svg" => plan.svg = Some(value.into()),
            "--soak" => {
                plan.soak_minutes = value.parse().map_err(|_| format!("{value} is no number"))?
            }
            _ => return Err(format!("{option} is no option; see --help")),
        }
    }
    plan.contenders.retain(|contender| {
        let Some(program) = contender.missing() else {
            return true;
        };
        report::progress(&format!(
            "{contender}: left out, {program} is not installed"
        ));
        false
    });
    Ok(plan)
}

impl Plan {
    /// Who is measured on a wire.
    fn contenders_on(&self, wire: Wire) -> impl Iterator<Item = &Contender> {
        let all = self.contenders.iter();
        all.filter(move |contender| !self.is_usual || contender.is_usual_on(wire))
    }

    /// What of a contender is measured, and for how long each.
    fn measures_of(&self, contender: &Contender) -> (&[Measure], Duration) {
        let whole = Duration::from_secs_f64(self.seconds);
        match &self.measures {
            Some(measures) => (measures, whole),
            None if contender.is_main() => (contender.usual_measures(), whole),
            None => (contender.usual_measures(), whole / 2),
        }
    }

    /// All that somebody is measured in.
    fn all_measures(&self) -> &[Measure] {
        self.measures.as_deref().unwrap_or(&Measure::ALL)
    }
}

fn list<T>(value: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    value
        .split(',')
        .map(|word| parse(word).ok_or_else(|| format!("{word} is unknown; see --help")))
        .collect()
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0")))
}
