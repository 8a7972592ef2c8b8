//! The load of iperf3, for those who want the figures that they would get by hand. It takes more of the CPUs, which all
//! contenders share, than the load of this bench does.
//!
//! A server for each load in the namespace that receives, which ends with it.

use std::time::Duration;

use serde_json::Value;

use crate::contender::Tunnel;
use crate::topology::{End, Net, Running};

/// Gb/s received and octets of `streams` for `length`.
pub(crate) fn tcp(
    net: &Net,
    tunnel: &Tunnel,
    streams: usize,
    from: End,
    length: Duration,
) -> Result<(f64, f64), String> {
    let streams = streams.to_string();
    let end = run(net, tunnel, from, length, &["-P", &streams])?;
    let received = figures(&end, "sum_received", &["bytes", "seconds"])?;
    let [octets, seconds] = received[..] else {
        return Err("no figures".into());
    };
    Ok((octets * 8.0 / 1e9 / seconds, octets))
}

/// Sends datagrams of `octets` at `rate`; gives the rate reached and the share lost.
pub(crate) fn datagrams(
    net: &Net,
    tunnel: &Tunnel,
    octets: usize,
    rate: f64,
    length: Duration,
) -> Result<(f64, f64), String> {
    let bits = format!("{:.0}", rate * octets as f64 * 8.0);
    let octets = octets.to_string();
    let words = ["-u", "-l", &octets, "-b", &bits, "-w", "1M"];
    let end = run(net, tunnel, End::A, length, &words)?;
    let sum = figures(&end, "sum", &["packets", "seconds", "lost_packets"])?;
    let [packets, seconds, lost] = sum[..] else {
        return Err("no figures".into());
    };
    Ok((packets / seconds, lost / packets.max(1.0)))
}

/// What iperf3 says at its end.
fn run(
    net: &Net,
    tunnel: &Tunnel,
    from: End,
    length: Duration,
    words: &[&str],
) -> Result<Value, String> {
    let to = tunnel.address(from.other());
    let server = net.spawn(from.other(), "iperf3", &["-s", "-1", "-B", to])?;
    let seconds = length.as_secs_f64().ceil().max(1.0).to_string();
    let arguments = [&["-c", to, "-J", "-t", &seconds], words].concat();
    let said = connect(net, from, &arguments)?;
    server.finish()?;
    serde_json::from_str::<Value>(&said)
        .map_err(|error| format!("iperf3: {error}"))?
        .get("end")
        .cloned()
        .ok_or_else(|| "iperf3 has no end".into())
}

/// Begins when the server listens.
fn connect(net: &Net, from: End, arguments: &[&str]) -> Result<String, String> {
    let mut outcome = Err(String::new());
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        let client: Running = net.spawn(from, "iperf3", arguments)?;
        outcome = client.finish();
        match &outcome {
            Err(error) if error.contains("unable to connect") => {}
            _ => break,
        }
    }
    outcome
}

fn figures(end: &Value, sum: &str, names: &[&str]) -> Result<Vec<f64>, String> {
    let sum = end
        .get(sum)
        .ok_or_else(|| format!("iperf3 says no {sum}"))?;
    names
        .iter()
        .map(|name| {
            let value = sum.get(name).and_then(Value::as_f64);
            value.ok_or_else(|| format!("iperf3 says no {name}"))
        })
        .collect()
}
