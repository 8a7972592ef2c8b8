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
mod load;
mod plot;
mod report;
mod soak;
mod topology;

use std::process::ExitCode;
use std::time::Duration;

use contender::Contender;
use load::{Measure, Sample};
use topology::{Net, Wire};

/// What to run.
#[derive(Debug)]
struct Plan {
    rounds: usize,
    seconds: f64,
    mtu: u16,
    wires: Vec<Wire>,
    contenders: Vec<Contender>,
    measures: Vec<Measure>,
    json: Option<String>,
    svg: Option<String>,
    soak_minutes: f64,
}

const HELP: &str = "Whole tunnels side by side, contenders taking turns.

Usage: end_to_end [OPTIONS]

  --rounds N         rounds, the median is shown (3)
  --seconds S        length of each measurement (2)
  --mtu N            MTU of the underlay (1500)
  --wire LIST        plain,wire: veth as it is; veth with its offloads off (plain,wire)
  --contenders LIST  none,kernel,warren,warren-fou,warren-gue,warren-geneve,warren-ipip,warren-OPTIONS,
                     wireguard-go,openvpn (all that are installed); OPTIONS joined by '+':
                     no-gso no-gro no-uso no-vnet spin, or a KEY=VALUE of [worker]
  --measures LIST    tcp1,tcp4,tcp1r,udp64,udp1400,rtt,loaded,idle (all)
  --json FILE        write every sample
  --svg FILE         write a plot of the medians
  --soak MINUTES     instead: Warren alone at half its highest rate, watching memory, descriptors
                     and the books of both nodes";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let as_bench = arguments.iter().any(|argument| argument == "--bench");
    arguments.retain(|argument| argument != "--bench");
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["node", config] => contender::run_node(config),
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
    if plan.soak_minutes > 0.0 {
        return soak::run(plan);
    }
    let mut samples = Vec::new();
    for &wire in &plan.wires {
        for round in 0..plan.rounds {
            for contender in &plan.contenders {
                let net = Net::build(wire, plan.mtu)?;
                let tunnel = match contender.start(&net, plan.mtu) {
                    Ok(tunnel) => tunnel,
                    Err(error) => {
                        report::progress(&format!("{contender} on {wire}: {error}"));
                        continue;
                    }
                };
                for &measure in &plan.measures {
                    let length = Duration::from_secs_f64(plan.seconds);
                    match load::measure(&net, &tunnel, measure, length) {
                        Ok(value) => samples.push(Sample {
                            wire,
                            round,
                            contender: contender.to_string(),
                            measure,
                            value,
                        }),
                        Err(error) => {
                            report::progress(&format!("{contender} {measure} on {wire}: {error}"))
                        }
                    }
                }
                report::progress(&format!(
                    "round {} of {}: {contender} on {wire} done",
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
        contenders: Contender::installed(),
        measures: Measure::ALL.to_vec(),
        json: None,
        svg: None,
        soak_minutes: 0.0,
    };
    let mut words = words.iter();
    while let Some(&option) = words.next() {
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
            "--contenders" => plan.contenders = list(value, Contender::parse)?,
            "--measures" => plan.measures = list(value, Measure::parse)?,
            "--json" => plan.json = Some(value.into()),
            "--svg" => plan.svg = Some(value.into()),
            "--soak" => {
                plan.soak_minutes = value.parse().map_err(|_| format!("{value} is no number"))?
            }
            _ => return Err(format!("{option} is no option; see --help")),
        }
    }
    Ok(plan)
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
