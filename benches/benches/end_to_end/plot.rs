//! The medians of a run as a plot: a panel for each measure and wire, a bar for each contender.

use std::fmt::Write as _;

use crate::Plan;
use crate::load::Sample;
use crate::report::figure;

const PANEL_WIDTH: usize = 460;
const BAR_HEIGHT: usize = 18;
const NAME_WIDTH: usize = 150;
const BAR_WIDTH: f64 = 220.0;
const HEAD_HEIGHT: usize = 34;

/// The plot as SVG: wires side by side, measures one below the other.
pub(crate) fn svg(samples: &[Sample], plan: &Plan) -> String {
    let bars = plan
        .wires
        .iter()
        .map(|&wire| plan.contenders_on(wire).count());
    let panel_height = HEAD_HEIGHT + bars.max().unwrap_or_default() * BAR_HEIGHT + 12;
    let width = plan.wires.len() * PANEL_WIDTH;
    let height = plan.all_measures().len() * panel_height + 24;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"16\">MTU {}, medians of {} rounds of {} s</text>\n",
        plan.mtu, plan.rounds, plan.seconds
    );
    for (row, &measure) in plan.all_measures().iter().enumerate() {
        for (column, &wire) in plan.wires.iter().enumerate() {
            let (x, y) = (column * PANEL_WIDTH, 24 + row * panel_height);
            let title = measure.figures().first().copied().unwrap_or_default();
            let _ = writeln!(
                text,
                "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{} ({wire})</text>",
                x + 8,
                y + 20,
                escape(title)
            );
            let value = |name: &str| figure(samples, wire, name, measure, 0);
            let names = plan.contenders_on(wire).map(ToString::to_string);
            let names: Vec<String> = names.collect();
            let largest = names
                .iter()
                .filter_map(|name| value(name))
                .fold(0.0, f64::max);
            for (index, name) in names.iter().enumerate() {
                let y = y + HEAD_HEIGHT + index * BAR_HEIGHT;
                let Some(value) = value(name) else { continue };
                let bar = BAR_WIDTH * value / largest.max(f64::MIN_POSITIVE);
                let colour = if name.starts_with("warren") {
                    "#2a7f62"
                } else {
                    "#8a8f98"
                };
                let _ = writeln!(
                    text,
                    "<text x=\"{}\" y=\"{}\">{}</text>\
                     <rect x=\"{}\" y=\"{}\" width=\"{bar:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{value:.2}</text>",
                    x + 8,
                    y + 12,
                    escape(name),
                    x + NAME_WIDTH,
                    y + 2,
                    BAR_HEIGHT - 5,
                    (x + NAME_WIDTH) as f64 + bar + 5.0,
                    y + 12
                );
            }
        }
    }
    text.push_str("</svg>\n");
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
