//! The table and the JSON of a run.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::Plan;
use crate::load::{Measure, Sample};
use crate::topology::Wire;

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
            "\n{wire} veth, MTU {}, medians of {} rounds, {} s each; in brackets: against the kernel's VXLAN\n",
            plan.mtu, plan.rounds, plan.seconds
        ));
        let columns: Vec<_> = plan
            .measures
            .iter()
            .flat_map(|measure| (0..measure.figures().len()).map(move |index| (*measure, index)))
            .collect();
        let mut head = String::from("| contender |");
        let mut rule = String::from("|---|");
        for (measure, index) in &columns {
            let _ = write!(
                head,
                " {} |",
                measure.figures().get(*index).copied().unwrap_or_default()
            );
            rule.push_str("---|");
        }
        print(&head);
        print(&rule);
        let figure = |contender: &str, column: &(Measure, usize)| {
            figure(samples, wire, contender, column.0, column.1)
        };
        for contender in &plan.contenders {
            let name = contender.to_string();
            let mut row = format!("| {name} |");
            for column in &columns {
                match (figure(&name, column), figure("kernel vxlan", column)) {
                    (Some(value), Some(kernel)) if name != "kernel vxlan" && kernel > 0.0 => {
                        let _ = write!(row, " {value:.2} ({:.2}) |", value / kernel);
                    }
                    (Some(value), _) => {
                        let _ = write!(row, " {value:.2} |");
                    }
                    (None, _) => row.push_str(" - |"),
                }
            }
            print(&row);
        }
    }
}

/// Every sample as JSON.
pub(crate) fn json(samples: &[Sample], plan: &Plan) -> String {
    let mut text = format!(
        "{{\"mtu\":{},\"rounds\":{},\"seconds\":{},\"samples\":[",
        plan.mtu, plan.rounds, plan.seconds
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
            "{comma}\n{{\"wire\":\"{}\",\"round\":{},\"contender\":\"{}\",\"measure\":\"{}\",{}}}",
            sample.wire,
            sample.round,
            sample.contender,
            sample.measure,
            figures.join(",")
        );
    }
    text.push_str("\n]}\n");
    text
}
