//! The table and the JSON of a run.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::Plan;
use crate::load::{Measure, Sample};
use crate::topology::Wire;
use warren_benches::cpus::NEAR;

/// Prints a line on standard output.
#[allow(clippy::print_stdout, reason = "the table is what this program is for")]
pub(crate) fn print(line: &str) {
    println!("{line}");
}

/// Prints a line of progress on standard error.
pub(crate) fn progress(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The middle value; of two, the mean.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied()?;
    let lower = values.get(values.len().checked_sub(1)? / 2).copied()?;
    Some(f64::midpoint(lower, upper))
}

/// The median of one figure over the rounds.
pub(crate) fn figure(
    samples: &[Sample],
    wire: Wire,
    contender: &str,
    measure: Measure,
    index: usize,
) -> Option<f64> {
    let mut values: Vec<f64> = samples
        .iter()
        .filter(|sample| {
            sample.wire == wire && sample.contender == contender && sample.measure == measure
        })
        .filter_map(|sample| sample.value.get(index).copied())
        .collect();
    median(&mut values)
}

/// Prints one table for each wire: medians, and for each figure the ratio to the kernel's VXLAN.
pub(crate) fn table(samples: &[Sample], plan: &Plan) {
    for &wire in &plan.wires {
        print(&format!(
            "\n{wire} veth, MTU {}, TCP {}, medians of {} rounds, {} s each; in brackets: against the kernel's VXLAN\n",
            plan.mtu,
            congestion_control(),
            plan.rounds,
            plan.seconds
        ));
        let mut head = String::from("| contender |");
        let mut rule = String::from("|---|");
        for (name, _) in plan.all_measures().iter().flat_map(|one| one.columns()) {
            let _ = write!(head, " {name} |");
            rule.push_str("---|");
        }
        print(&head);
        print(&rule);
        for contender in plan.contenders_on(wire) {
            let name = contender.to_string();
            let mut row = format!("| {name} |");
            for &measure in plan.all_measures() {
                for (_, indices) in measure.columns() {
                    let figure = |contender: &str, index: usize| {
                        figure(samples, wire, contender, measure, index)
                    };
                    let values: Vec<String> = indices
                        .iter()
                        .filter_map(|&index| figure(&name, index).map(rounded))
                        .collect();
                    let _ = match indices
                        .first()
                        .map(|&index| (figure(&name, index), figure("kernel vxlan", index)))
                    {
                        Some((Some(value), Some(kernel)))
                            if name != "kernel vxlan" && kernel > 0.0 =>
                        {
                            write!(row, " {} ({:.2}) |", values.join(" / "), value / kernel)
                        }
                        Some((Some(_), _)) => write!(row, " {} |", values.join(" / ")),
                        Some((None, _)) | None => write!(row, " |"),
                    };
                }
            }
            print(&row);
        }
        if let Some(lines) = lines(samples, wire) {
            print(&lines);
        }
    }
}

/// How far apart the two CPUs were (`cpus.rs`): figures of near and of far ones are not to be compared.
fn lines(samples: &[Sample], wire: Wire) -> Option<String> {
    let of_wire = samples.iter().filter(|sample| sample.wire == wire);
    let mut turns: Vec<f64> = of_wire.filter_map(|sample| sample.line).collect();
    // The turn's measures all have the same one.
    turns.dedup();
    let near = turns.iter().filter(|nanos| **nanos < NEAR).count();
    let middle = median(&mut turns)?;
    Some(format!(
        "\nA cache line took {middle:.0} ns from one CPU to another (median of {} turns, less than {NEAR:.0} in {near})",
        turns.len()
    ))
}

/// How TCP of this host decides how much may be on the way, which every new namespace inherits.
/// `bbr` paces: it, not the path, then limits what a fast path carries.
fn congestion_control() -> String {
    let name = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    name.map_or_else(|_| "unknown".into(), |name| name.trim().into())
}

/// A figure with as many digits as a measurement of a second or two can have.
fn rounded(value: f64) -> String {
    let digits = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// Every sample as JSON.
pub(crate) fn json(samples: &[Sample], plan: &Plan) -> String {
    let mut text = format!(
        "{{\"mtu\":{},\"congestion_control\":\"{}\",\"rounds\":{},\"seconds\":{},\"samples\":[",
        plan.mtu,
        congestion_control(),
        plan.rounds,
        plan.seconds
    );
    for (number, sample) in samples.iter().enumerate() {
        let names = sample.measure.figures();
        let figures: Vec<String> = names
            .iter()
            .zip(&sample.value)
            .map(|(name, value)| format!("\"{name}\":{value:.4}"))
            .collect();
        let comma = if number == 0 { "" } else { "," };
        let _ = write!(
            text,
            "{comma}\n{{\"wire\":\"{}\",\"round\":{},\"contender\":\"{}\",\"measure\":\"{}\",\"line_ns\":{},{}}}",
            sample.wire,
            sample.round,
            sample.contender,
            sample.measure,
            sample
                .line
                .map_or_else(|| "null".into(), |nanos| format!("{nanos:.0}")),
            figures.join(",")
        );
    }
    text.push_str("\n]}\n");
    text
}
