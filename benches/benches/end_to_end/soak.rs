//! Warren alone for a long time at half its highest rate: memory and descriptors must stay as they
//! are, and the books of both nodes must agree to the packet.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tun_node::ctl::client::Client;
use tun_node::ctl::message::{Request, Response};

use crate::Plan;
use crate::contender::{Contender, Tunnel, resident_kib};
use crate::load::{highest_rate, numbers, spawn};
use crate::report::print;
use crate::topology::{End, Net, Wire};

/// Growth of the resident memory that is let pass, KiB.
const DRIFT_KIB_MAX: u64 = 1024;

/// How long caches and buffers may fill before the first sample counts.
const WARM_UP: Duration = Duration::from_secs(10);

pub(crate) fn run(plan: &Plan) -> Result<(), String> {
    let wire = plan.wires.first().copied().unwrap_or(Wire::Plain);
    let usual = Contender::parse("warren").ok_or("no such contender")?;
    let contender = match plan.contenders.as_slice() {
        [one] => one,
        _ => &usual,
    };
    let net = Net::build(wire, plan.mtu)?;
    let tunnel = contender.start(&net, plan.mtu)?;
    let highest = highest_rate(
        &net,
        &tunnel,
        64,
        Duration::from_secs_f64(plan.seconds),
        None,
        plan.generator,
    )?;
    let rate = highest.first().copied().unwrap_or_default() * 1e3 / 2.0;
    let length = Duration::from_secs_f64(plan.soak_minutes * 60.0);
    print(&format!(
        "soak: {rate:.0} packets of 64 octets a second, for {} min, {wire} veth",
        plan.soak_minutes
    ));
    let to = tunnel.address(End::B).to_owned();
    // Whatever holds the machine up, it is not the end of the load.
    let sink = spawn(&net, End::B, &["udp-sink", &to, "20000"])?;
    sleep(Duration::from_millis(100));
    let milliseconds = (length + WARM_UP).as_millis().to_string();
    let source = spawn(
        &net,
        End::A,
        &["udp-source", &to, "64", &rate.to_string(), &milliseconds],
    )?;
    sleep(WARM_UP);
    let first = sample(&tunnel);
    let started = Instant::now();
    let mut next = Duration::ZERO;
    while started.elapsed() < length {
        next += (length / 10).min(Duration::from_secs(60));
        sleep(next.saturating_sub(started.elapsed()));
        let seen = sample(&tunnel);
        print(&format!(
            "{:5.1} min: resident KiB {:?}, descriptors {:?}",
            started.elapsed().as_secs_f64() / 60.0,
            seen.map(|(kib, _)| kib),
            seen.map(|(_, descriptors)| descriptors)
        ));
    }
    let last = sample(&tunnel);
    let sent = numbers(&source.finish()?)?;
    let arrived = numbers(&sink.finish()?)?;
    print(&format!(
        "sent {:.0}, arrived {:.0}",
        sent.first().copied().unwrap_or_default(),
        arrived.first().copied().unwrap_or_default()
    ));
    let mut faults = Vec::new();
    for ((end, first), last) in End::BOTH.into_iter().zip(first).zip(last) {
        let drift = last.0.saturating_sub(first.0);
        if drift > DRIFT_KIB_MAX {
            faults.push(format!("{end:?}: resident memory grew by {drift} KiB"));
        }
        if last.1 > first.1 {
            faults.push(format!(
                "{end:?}: {} descriptors, {} before",
                last.1, first.1
            ));
        }
        let mut client =
            Client::connect(&tunnel.control_socket(end)).map_err(|error| error.to_string())?;
        let answer = client.ask(&Request::Counters);
        let Ok(Response::Counters(report)) = answer else {
            return Err(format!("{end:?}: {answer:?}"));
        };
        let balance = report.total.balance();
        let device = &report.total.device;
        print(&format!(
            "{end:?}: in {} ({} by ring, {} found it full) = out {} + drops {}; resident +{drift} KiB",
            balance.received, device.read_ring, device.ring_full, balance.left, balance.dropped
        ));
        if balance.received != balance.left + balance.dropped {
            faults.push(format!("{end:?}: the books do not agree"));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(faults.join("; "))
}

/// Resident KiB and open descriptors of both ends.
fn sample(tunnel: &Tunnel) -> [(u64, usize); 2] {
    let mut processes = tunnel.processes();
    [(), ()].map(|()| {
        let id = processes.next().unwrap_or_default();
        let descriptors = std::fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
        (resident_kib(id).unwrap_or_default(), descriptors)
    })
}
