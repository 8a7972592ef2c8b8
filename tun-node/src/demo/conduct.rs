//! The phases of a demo, one after the other, on the main thread.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::janitor::Directory;
use super::order::{Answer, EchoTally, End, Order, Ping};
use super::plan::Plan;
use super::progress::Progress;
use super::report::Report;
use super::{DemoError, Options};
use crate::cli::EXIT_FAILED;
use crate::counters::WorkerReport;
use crate::ctl::client::{Client, ClientError};
use crate::ctl::message::{Request, Response};
use crate::rootless::{ChildSpec, Launch, Rootless};
use crate::tun::Offload;

/// Runs the whole demo; see [`run`](super::run).
pub(super) fn conduct(options: &Options) -> u8 {
    let mut report = Report::new(options.encap);
    let ended = Demo::set_up(options).and_then(|mut demo| {
        report.add_plan(&demo.plan);
        let measured = demo.measure(options, &mut report);
        if let Err(error) = &measured {
            report.fail(error.to_string());
        }
        report.judge();
        report.seconds = demo.start.elapsed().as_secs_f64();
        print(options, &report);
        measured?;
        demo.linger(options)
        // Here the nodes end and their files go.
    });
    match ended {
        Ok(()) if report.ok => 0,
        Ok(()) => EXIT_FAILED,
        Err(error) => {
            if report.nodes.is_empty() {
                // Nothing was printed yet.
                report.fail(error.to_string());
                print(options, &report);
            }
            if let DemoError::Interrupted { signal } = error {
                return 128_u8.saturating_add(u8::try_from(signal).unwrap_or(127));
            }
            EXIT_FAILED
        }
    }
}

/// Writes a sentence to standard error.
pub(super) fn complain(sentence: &str) {
    // Where nobody listens there is nothing else to do.
    let _ = writeln!(io::stderr().lock(), "tun-node demo: {sentence}");
}

/// A demo that runs. Its end is the end of its nodes, and then of their files: the order of the
/// fields.
#[derive(Debug)]
struct Demo {
    fleet: Fleet,
    directory: Directory,
    program: PathBuf,
    plan: Plan,
    progress: Progress,
    start: Instant,
    /// The process id of each node's agent.
    agents: Vec<u32>,
}

impl Demo {
    /// Everything that can fail before a node is started.
    fn set_up(options: &Options) -> Result<Self, DemoError> {
        let start = Instant::now();
        check_host()?;
        let starting = |what: &str| {
            let what = what.to_owned();
            move |source| DemoError::Start { what, source }
        };
        let program = std::env::current_exe().map_err(starting("this program again"))?;
        // Signal handlers first: from here on Ctrl-C ends the demo in order.
        let fleet = Fleet::new().map_err(starting("signal handling"))?;
        let directory = Directory::new(&program).map_err(DemoError::Directory)?;
        let plan = Plan::new(
            options.nodes,
            options.encap,
            directory.path(),
            std::process::id(),
        )
        .map_err(DemoError::Underlay)?;
        plan.write_files().map_err(DemoError::Files)?;
        Ok(Self {
            fleet,
            directory,
            program,
            plan,
            progress: Progress::new(options.json),
            start,
            agents: Vec::new(),
        })
    }

    /// The phases up to the report.
    fn measure(&mut self, options: &Options, report: &mut Report) -> Result<(), DemoError> {
        self.start_nodes()?;
        self.ping_pairs(report)?;
        // A transfer that failed is a finding; the counters may say why.
        match self.transfer(u64::from(options.megabytes) * 1_000_000, report) {
            Err(error @ DemoError::Agent { .. }) => report.fail(error.to_string()),
            other => other?,
        }
        self.read_counters(report)
    }

    /// Starts the nodes and waits until each has carried a probe.
    fn start_nodes(&mut self) -> Result<(), DemoError> {
        let count = self.plan.nodes.len();
        let phase = self.progress.phase(format!("starting {count} nodes"));
        for node in &self.plan.nodes {
            self.fleet
                .start(&self.program, node)
                .map_err(|source| DemoError::Start {
                    what: node.name.clone(),
                    source,
                })?;
        }
        let deadline = Instant::now() + READY_WITHIN;
        let mut agents: Vec<Option<u32>> = vec![None; count];
        let mut waiting: Vec<usize> = (0..count).collect();
        let mut because = String::new();
        loop {
            because.clear();
            waiting.retain(|index| {
                let known = agents.get(*index).copied().flatten().is_some();
                let state = if known {
                    self.readiness(*index)
                } else {
                    Err("its agent has not started".to_owned())
                };
                match state {
                    Ok(()) => false,
                    Err(sentence) => {
                        if because.is_empty() {
                            because = sentence;
                        }
                        true
                    }
                }
            });
            phase.update(&format!("{} ready", count - waiting.len()));
            if waiting.is_empty() {
                self.agents = agents.into_iter().flatten().collect();
                phase.done(&format!(
                    "ready, {} over UDP port {}",
                    self.plan.encap.name(),
                    self.plan.port
                ));
                return Ok(());
            }
            if Instant::now() >= deadline {
                let names = waiting
                    .iter()
                    .filter_map(|index| self.plan.nodes.get(*index));
                let names: Vec<&str> = names.map(|node| node.name.as_str()).collect();
                return Err(DemoError::NotReady {
                    names: names.join(", "),
                    seconds: READY_WITHIN.as_secs(),
                    because,
                });
            }
            match self.fleet.next_answer(Instant::now() + ASK_AGAIN_AFTER)? {
                Some((index, Answer::Ready { pid })) => {
                    if let Some(agent) = agents.get_mut(index) {
                        *agent = Some(pid);
                    }
                }
                Some(_) => return Err(DemoError::Unexpected),
                None => {}
            }
        }
    }

    /// Whether the node at `index` is ready; why not, otherwise.
    fn readiness(&self, index: usize) -> Result<(), String> {
        match self.ask(index, &Request::Status) {
            Ok(Response::Status(status)) if status.ready => Ok(()),
            Ok(Response::Status(status)) => Err(status.not_ready_because.clone()),
            Ok(_) => Err(ClientError::Unexpected.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn ask(&self, index: usize, request: &Request) -> Result<Response, ClientError> {
        let Some(node) = self.plan.nodes.get(index) else {
            return Err(ClientError::Unexpected);
        };
        Client::connect(&node.socket)?.ask(request)
    }

    /// Pings every ordered pair in both families, all nodes at once.
    fn ping_pairs(&mut self, report: &mut Report) -> Result<(), DemoError> {
        let doing = "pinging";
        let count = self.plan.nodes.len();
        let pairs = count * (count - 1) * 2;
        let requests = pairs as u64 * u64::from(PINGS);
        let phase = self
            .progress
            .phase(format!("pinging {} pairs over IPv4 and IPv6", pairs / 2));
        let interval_us = (pairs as u64 * PING_SPACING_US).max(PING_INTERVAL_US_MIN);
        for index in 0..count {
            let others = self.plan.nodes.iter().enumerate();
            let targets = others
                .filter(|(other, _)| *other != index)
                .flat_map(|(_, node)| node.addresses())
                .collect();
            let order = Order::Ping(Ping {
                targets,
                count: PINGS,
                interval_us,
                // The nodes' requests interleave.
                phase_us: interval_us * index as u64 / pairs as u64,
                wait_us: PING_WAIT_US,
            });
            self.fleet.order(index, &order)?;
        }
        let longest_us = interval_us * u64::from(PINGS) + PING_WAIT_US;
        let deadline = Instant::now() + Duration::from_micros(longest_us) + ANSWER_WITHIN;
        let mut done = vec![0; count];
        let mut outcomes: Vec<Option<Vec<EchoTally>>> = vec![None; count];
        while outcomes.iter().any(Option::is_none) {
            let Some((index, answer)) = self.fleet.next_answer(deadline)? else {
                return Err(DemoError::NoAnswer { doing });
            };
            match answer {
                Answer::Progress { done: sent } => {
                    if let Some(slot) = done.get_mut(index) {
                        *slot = sent;
                    }
                    phase.update(&format!("{}/{requests}", done.iter().sum::<u64>()));
                }
                Answer::Pinged { tallies } => {
                    if let Some(slot) = outcomes.get_mut(index) {
                        *slot = Some(tallies);
                    }
                }
                Answer::Failed { sentence } => {
                    return Err(self.agent_failed(index, doing, sentence));
                }
                Answer::Ready { .. }
                | Answer::Listening { .. }
                | Answer::Received(_)
                | Answer::Sent(_) => return Err(DemoError::Unexpected),
            }
        }
        let tallies = outcomes.into_iter().flatten().flatten();
        // The same order in which the targets were given.
        let pairs = self.plan.pairs().flat_map(|pair| [pair, pair]);
        let mut answered = 0;
        for ((from, to), tally) in pairs.zip(tallies) {
            let (Some(from), Some(to)) = (self.plan.nodes.get(from), self.plan.nodes.get(to))
            else {
                continue;
            };
            answered += tally.rtt_ns.len();
            report.add_echoes(&from.name, &to.name, tally);
        }
        phase.done(&format!("{answered} of {requests} answered"));
        Ok(())
    }

    /// Moves octets over TCP from the first node to the second.
    fn transfer(&mut self, octets: u64, report: &mut Report) -> Result<(), DemoError> {
        let doing = "moving octets over TCP";
        let (sender, receiver) = (0, 1);
        let [Some(from), Some(to)] =
            [sender, receiver].map(|index| self.plan.nodes.get(index).cloned())
        else {
            return Err(DemoError::Unexpected);
        };
        let megabytes = octets / 1_000_000;
        let phase = self.progress.phase(format!(
            "moving {megabytes} MB over TCP from {} to {}",
            from.name, to.name
        ));
        let [address, _] = to.addresses();
        self.fleet.order(receiver, &Order::Receive { address })?;
        let (mut sent, mut received): (Option<End>, Option<End>) = (None, None);
        while sent.is_none() || received.is_none() {
            let deadline = Instant::now() + ANSWER_WITHIN;
            let Some((index, answer)) = self.fleet.next_answer(deadline)? else {
                return Err(DemoError::NoAnswer { doing });
            };
            match answer {
                Answer::Listening { port } => self.fleet.order(
                    sender,
                    &Order::Send {
                        address,
                        port,
                        octets,
                        seed: SEED,
                    },
                )?,
                Answer::Progress { done } => phase.update(&format!("{} MB", done / 1_000_000)),
                Answer::Sent(end) => sent = Some(end),
                Answer::Received(end) => received = Some(end),
                Answer::Failed { sentence } => {
                    return Err(self.agent_failed(index, doing, sentence));
                }
                Answer::Ready { .. } | Answer::Pinged { .. } => return Err(DemoError::Unexpected),
            }
        }
        if let (Some(sent), Some(received)) = (sent, received) {
            report.add_transfer(&from.name, &to.name, octets, sent, received);
        }
        let rate = report.transfer.as_ref().map_or(0.0, |t| t.gbit_per_second);
        phase.done(&format!("{rate:.2} Gbit/s"));
        Ok(())
    }

    /// Asks every node what it counted.
    fn read_counters(&self, report: &mut Report) -> Result<(), DemoError> {
        for (index, node) in report.nodes.iter_mut().enumerate() {
            let failed = |source| DemoError::Control {
                name: node.name.clone(),
                source,
            };
            let Response::Counters(counters) =
                self.ask(index, &Request::Counters).map_err(failed)?
            else {
                return Err(failed(ClientError::Unexpected));
            };
            let total = &counters.total;
            for peer in &total.peers {
                for (encap, tally) in &peer.by_encapsulation {
                    let packets = node.packets.entry(encap.clone()).or_default();
                    packets.encap += tally.encap.packets;
                    packets.decap += tally.decap.packets;
                }
            }
            node.drops = drops(total);
        }
        Ok(())
    }

    fn agent_failed(&self, index: usize, doing: &'static str, sentence: String) -> DemoError {
        let node = self.plan.nodes.get(index);
        DemoError::Agent {
            name: node.map(|node| node.name.clone()).unwrap_or_default(),
            doing,
            sentence,
        }
    }

    /// What `--keep` and `--shell` ask for, after the report.
    fn linger(&mut self, options: &Options) -> Result<(), DemoError> {
        if options.keep {
            say(&self.how_to_look());
            let error = self.fleet.wait_for_signal();
            if let DemoError::Interrupted { .. } = error {
                // That is how it ends; the exit code is the report's.
                return Ok(());
            }
            complain(&error.to_string());
            return Err(error);
        }
        if options.shell {
            return self.shell();
        }
        Ok(())
    }

    /// For people: how to get into each node, and how to end it all.
    fn how_to_look(&self) -> String {
        let mut text = String::from("\nThe nodes keep running. A shell in each:\n");
        for (node, agent) in self.plan.nodes.iter().zip(&self.agents) {
            text += &format!(
                "  {}: nsenter --preserve-credentials -U -n -t {agent}\n",
                node.name
            );
        }
        let directory = self.directory.path().display();
        text += &format!(
            "Ask one how it is: tun-node status --socket {directory}/node-1.sock (or routes, \
             peers, counters).\n\
             Configuration and log of each: {directory}/node-1.toml, {directory}/node-1.log.\n\
             Stop all of them: Ctrl-C here, or kill {}.\n",
            std::process::id()
        );
        text
    }

    /// A shell in the first node, until it ends.
    fn shell(&mut self) -> Result<(), DemoError> {
        let (Some(node), Some(agent)) = (self.plan.nodes.first(), self.agents.first()) else {
            return Err(DemoError::Unexpected);
        };
        let others: Vec<String> = self
            .plan
            .nodes
            .iter()
            .skip(1)
            .flat_map(|node| node.addresses())
            .map(|address| address.to_string())
            .collect();
        say(&format!(
            "\nA shell in {}; the others are at {}. Its end is the end of the nodes.\n",
            node.name,
            others.join(" ")
        ));
        let mut command = Command::new(&self.program);
        command
            .args(["demo", "enter"])
            .arg(agent.to_string())
            .env("TUN_NODE_DEMO", &node.name);
        self.fleet.run_in_foreground(command)
    }
}

/// Whether an ordinary user can make a node here; in one sentence what is missing otherwise.
///
/// It makes what every node makes, a TUN device in a user and network namespace, and lets it go.
fn check_host() -> Result<(), DemoError> {
    let spec = ChildSpec {
        device: "demo0".to_owned(),
        mtu: 1280,
        addresses: Vec::new(),
        routes: Vec::new(),
        queues: 1,
        vnet_header: false,
    };
    Rootless::start(
        &spec,
        Offload::NONE,
        &Launch::this_program(Vec::new(), None),
    )
    .map(drop)
    .map_err(|error| DemoError::Missing(error.to_string()))
}

/// Every drop that a node counted, by where.
fn drops(total: &WorkerReport) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut drops: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let mut add = |place: &str, reason: &str, count: u64| {
        if count > 0 {
            let reasons = drops.entry(place.to_owned()).or_default();
            *reasons.entry(reason.to_owned()).or_default() += count;
        }
    };
    for (place, reasons) in [
        ("encap", &total.encap.drops),
        ("decap", &total.decap.drops),
        ("device", &total.device.write_drops),
    ] {
        for (reason, count) in reasons {
            add(place, reason, *count);
        }
    }
    add("device", "direct_route", total.device.direct_drops);
    add("device", "misdirected", total.device.misdirected);
    for socket in &total.sockets {
        let place = socket.socket.as_str();
        for (reason, count) in &socket.send_drops {
            add(place, reason, *count);
        }
        add(place, "receive_damaged", socket.receive_damaged);
        add(place, "receive_overflow", socket.receive_overflows);
        add(place, "no_socket", socket.no_socket);
    }
    drops
}

/// Prints the report where `options` want it, and a failure's sentence on standard error.
fn print(options: &Options, report: &Report) {
    let text = if options.json {
        let json = serde_json::to_string_pretty(report);
        json.expect("the keys are strings and nothing refuses to be serialised") + "\n"
    } else {
        report.table()
    };
    say(&text);
    if let Some(sentence) = &report.failure {
        complain(sentence);
    }
}

/// Writes to standard output.
fn say(text: &str) {
    let mut output = io::stdout().lock();
    // A reader that has gone away wants no more.
    let _ = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
}

/// Echo requests from one node to another in one family.
const PINGS: u16 = 10;
/// Between two requests of one pair at least.
const PING_INTERVAL_US_MIN: u64 = 50_000;
/// Between two requests of any pair at least: 4000 a second, which leaves one core idle.
const PING_SPACING_US: u64 = 250;
const PING_WAIT_US: u64 = 1_000_000;
const READY_WITHIN: Duration = Duration::from_secs(10);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// More than an agent waits before it gives up.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// The transfer moves the same octets every time.
const SEED: u64 = 0x5741_5252_454e;
