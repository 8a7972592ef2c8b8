//! The command line: what can be asked of the program, and who does it.
//!
//! [`execute`] is the whole program but for its last lines in `main.rs`. Standard output has
//! answers, standard error has errors and the log, and the exit code is one of
//! [`EXIT_USAGE`], [`EXIT_FAILED`], [`EXIT_INTERNAL`](crate::node::EXIT_INTERNAL), COMMAND's, or 0.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;
use tracing::level_filters::LevelFilter;

use crate::config::{ConfigErrors, Directions, Loaded, LogLevel, example_config};
use crate::ctl::client::{Client, ClientError};
#[cfg(any(debug_assertions, feature = "fault-injection"))]
use crate::ctl::message::Fault;
use crate::ctl::message::{Flow, Request, Response};
use crate::ctl::path::{default_path, known_sockets, named_by_environment};
use crate::demo;
use crate::node::{DeviceError, NodeError, RunOptions, Spread, run};
use crate::output;
use crate::rootless::RootlessError;
use crate::source::{self, SourceError};

/// One process per host: an overlay of IPv4 and IPv6 over VXLAN, Geneve, IP in IP, FOU or GUE.
#[derive(Debug, Parser)]
#[command(
    name = "tun-node",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    long_about = "One process per host: an overlay of IPv4 and IPv6 over VXLAN, Geneve, IP in IP, FOU or GUE.\n\n\
        A node owns some prefixes of the overlay and knows which of its peers owns the others. It \
        makes a TUN device, routes the overlay to it, and carries what comes through to the peer \
        that owns the destination, over UDP or raw IP, in user space.",
    after_long_help = "Example: a first node, with root's rights\n\n  \
        tun-node example-config > alpha.toml      write a commented configuration\n  \
        tun-node check --config alpha.toml        find out what is wrong with it\n  \
        sudo tun-node run --config alpha.toml     run it; Ctrl-C ends it and leaves nothing\n  \
        sudo tun-node status                      in another terminal\n  \
        sudo tun-node explain 10.244.1.7 10.244.2.9 tcp 40000 443\n\n\
        Example: as an ordinary user, a shell attached to the overlay\n\n  \
        tun-node run --config alpha.toml --rootless -- bash\n\n\
        Exit codes: 0 done; 1 wrong usage or configuration; 2 could not be done; 70 the node's \
        data path failed; with COMMAND, COMMAND's own."
)]
pub struct Cli {
    /// How much is logged to standard error
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<Level>,
    #[command(subcommand)]
    verb: Verb,
}

/// What can be asked of the program.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node until SIGTERM, Ctrl-C or the end of COMMAND
    #[command(after_long_help = "Example: a node as a service\n\n  \
        tun-node run --config /etc/tun-node/alpha.toml\n\n\
        Example: without any privilege, with a command attached to the overlay\n\n  \
        tun-node run --config alpha.toml --rootless -- ping -c 3 10.244.2.1\n\n\
        On a host, the device needs CAP_NET_ADMIN and IP in IP needs CAP_NET_RAW. With --rootless \
        neither is needed: the device is made in a user and network namespace of its own, where \
        COMMAND runs, and the node's exit code is COMMAND's. Without COMMAND the namespace is held \
        until the node ends.")]
    Run(RunArgs),
    /// Start an overlay of several nodes on this host and show that packets cross it
    #[command(
        after_long_help = "Example: what it can do, as an ordinary user and without any configuration\n\n  \
        tun-node demo\n\n\
        Example: nodes to look around in, until Ctrl-C\n\n  \
        tun-node demo --nodes 5 --encap gue --keep\n\n\
        Every node is a process of its own in a namespace of this user's own. Every pair of them \
        is pinged over IPv4 and IPv6, and data moved over TCP between two. The exit code is 0 \
        only if nothing was lost and the data arrived unchanged."
    )]
    Demo(demo::Options),
    /// Say what is wrong with a configuration file, or what it means
    #[command(
        after_long_help = "The files that it names are read, too: certificates, keys, passwords, a \
        kubeconfig, route files. Nothing is asked over the network."
    )]
    Check(ConfigArgs),
    /// Print a commented configuration file that is valid as it stands
    ExampleConfig,
    /// Show how a running node is
    Status(AskArgs),
    /// Show its routes
    Routes(RoutesArgs),
    /// Show its peers and what passed between it and them
    Peers(AskArgs),
    /// Show everything that it counted, drops by their reason
    Counters(AskArgs),
    /// Say what a running node would do with a packet, and why
    #[command(
        after_long_help = "Example:\n\n  tun-node explain 10.244.1.7 10.244.2.9 tcp 40000 443 \
        --octets 1500\n\n\
        The running node's engine answers, by the functions that decide about packets. A packet \
        whose source is this node's own is taken to leave; one whose destination is, to arrive."
    )]
    Explain(ExplainArgs),
    /// Send to a peer, or to all, in another of its encapsulations
    #[command(
        after_long_help = "The peer's `encap` in the configuration lists those it has; every one of \
        them is received all the time, so nothing is lost by the change. While the one asked for \
        does not pass, another is used; for which peers that is so is printed.\n\nExample:\n\n  tun-node prefer ipip --peer beta\n  tun-node prefer \
        configured"
    )]
    Prefer(PreferArgs),
    /// Show where its routes come from, and what of that is not applied
    Sources(AskArgs),
    /// Show what happened to its routes lately
    Events(EventsArgs),
    /// Withdraw at once what is held against a mass withdrawal
    #[command(
        after_long_help = "Where more than half of a source's remote routes go at once, they are kept for a \
        minute: a mistake in a shared store must not cut every node off at once. This command says \
        that it is none.\n\nExample:\n\n  tun-node sources\n  tun-node confirm etcd"
    )]
    Confirm(ConfirmArgs),
    /// Read the configuration and its route files again
    #[command(
        after_long_help = "Peers, routes, the node's own prefixes, its addresses on the underlay, what it \
        receives and the guard are taken; what else differs is named and takes effect at the next \
        start. A mistake in any file changes nothing. Where the node cannot receive what the files \
        say, a port being in use, the command fails, and the node tries again every 5 s. SIGHUP does \
        the same, and so does a change of a file, within a second: a dry run can show only what was not \
        taken yet, such as a mistake, or what waits for the next start. To see what a change means \
        before it is made, write it beside the file and `tun-node check` it.\n\nExample:\n\n  tun-node reload --dry-run"
    )]
    Reload(ReloadArgs),
    /// Make a worker misbehave
    #[cfg(any(debug_assertions, feature = "fault-injection"))]
    #[command(hide = true)]
    Fault(FaultArgs),
    /// Print a completion script for a shell
    #[command(after_long_help = "Example:\n\n  tun-node completions bash > \
        ~/.local/share/bash-completion/completions/tun-node")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write one page for each command
    Man {
        /// Write all pages into this directory
        #[arg(long, value_name = "DIRECTORY")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Make the device in a namespace of this user's own: no privilege is needed
    #[arg(long)]
    rootless: bool,
    /// Where the control socket is to be [default: as the configuration says, or by the node's
    /// name in the runtime directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// What to run in the overlay's namespace, with its arguments
    #[arg(
        value_name = "COMMAND",
        requires = "rootless",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct AskArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which node is asked: if none is named, that of `TUN_NODE_SOCKET`, or the only one that runs.
#[derive(Debug, Args)]
struct NodeArgs {
    /// The node's name [default: the only node that runs]
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    name: Option<String>,
    /// The node's control socket [default: TUN_NODE_SOCKET of the environment, which COMMAND of a
    /// rootless node has]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// Inner source address
    source: IpAddr,
    /// Inner destination address
    destination: IpAddr,
    /// Transport protocol: tcp, udp, icmp, icmpv6, sctp or its number
    #[arg(default_value = "icmp", value_parser = parse_protocol)]
    protocol: u8,
    /// Source port
    #[arg(default_value_t = 0)]
    source_port: u16,
    /// Destination port
    #[arg(default_value_t = 0)]
    destination_port: u16,
    /// Octets of the whole packet
    #[arg(long, default_value_t = 84)]
    octets: u16,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, Args)]
struct PreferArgs {
    /// The encapsulation, or "configured" for the order of the configuration
    encapsulation: String,
    /// The peer [default: all]
    #[arg(long)]
    peer: Option<String>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, Args)]
struct RoutesArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Say which entries have to do with a prefix or an address, and why one won
    #[arg(long, value_name = "PREFIX")]
    why: Option<String>,
}

#[derive(Debug, Args)]
struct EventsArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Go on until Ctrl-C; with --json one object a line
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Args)]
struct ConfirmArgs {
    /// The source: etcd or kube [default: all]
    source: Option<String>,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, Args)]
struct ReloadArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Only say what would change, where the node has not taken it by itself yet
    #[arg(long)]
    dry_run: bool,
}

#[cfg(any(debug_assertions, feature = "fault-injection"))]
#[derive(Debug, Args)]
struct FaultArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// What the worker does
    fault: FaultKind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FaultKind {
    /// Stop answering
    Hang,
    /// Panic
    Panic,
}

/// A level of the log, as an argument.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Level {
    /// Nothing
    Off,
    /// What ends or harms the node
    Error,
    /// And what someone should look at (the default)
    Warn,
    /// And what changed
    Info,
    /// And addresses
    Debug,
    /// And packets
    Trace,
}

/// Does what the command line says and returns the code to exit with.
///
/// # Errors
///
/// [`CliError`]; [`CliError::exit_code`] belongs to it.
pub fn execute(cli: Cli) -> Result<u8, CliError> {
    let level = cli.log.map(Level::filter);
    match cli.verb {
        Verb::Run(args) => {
            let loaded = Loaded::read(&args.config)?;
            log_to_stderr(level.unwrap_or_else(|| configured(loaded.config.log_level)));
            let options = RunOptions {
                loaded,
                path: std::path::absolute(args.config)?,
                rootless: args.rootless,
                command: args.command,
                socket: args.socket,
            };
            return Ok(run(options)?);
        }
        Verb::Demo(options) => return Ok(demo::run(&options)),
        Verb::Check(args) => check(&args.config)?,
        Verb::ExampleConfig => output::print(example_config())?,
        Verb::Status(args) => {
            let Response::Status(report) = ask(&args.node, &Request::Status)? else {
                return Err(ClientError::Unexpected.into());
            };
            print(&args, &*report, output::status)?;
        }
        Verb::Routes(args) => routes(args)?,
        Verb::Sources(args) => {
            let Response::Sources(report) = ask(&args.node, &Request::Sources)? else {
                return Err(ClientError::Unexpected.into());
            };
            print(&args, &*report, output::sources)?;
        }
        Verb::Events(args) => events(&args)?,
        Verb::Confirm(args) => {
            let source = args.source;
            order(&args.node, &Request::Confirm { source })?;
        }
        Verb::Reload(args) => {
            let dry_run = args.dry_run;
            let Response::Reload(report) = ask(&args.ask.node, &Request::Reload { dry_run })?
            else {
                return Err(ClientError::Unexpected.into());
            };
            print(&args.ask, &*report, output::reload)?;
        }
        Verb::Peers(args) => {
            let Response::Peers(report) = ask(&args.node, &Request::Peers)? else {
                return Err(ClientError::Unexpected.into());
            };
            print(&args, report.as_slice(), output::peers)?;
        }
        Verb::Counters(args) => {
            let Response::Counters(report) = ask(&args.node, &Request::Counters)? else {
                return Err(ClientError::Unexpected.into());
            };
            print(&args, &*report, output::counters)?;
        }
        Verb::Explain(args) => {
            let request = Request::Explain(args.flow());
            let Response::Explain(report) = ask(&args.ask.node, &request)? else {
                return Err(ClientError::Unexpected.into());
            };
            print(&args.ask, &*report, output::explain)?;
        }
        Verb::Prefer(args) => {
            let encapsulation = args.encapsulation;
            let request = Request::Prefer {
                peer: args.peer,
                encapsulation: Some(encapsulation).filter(|name| name != "configured"),
            };
            order(&args.node, &request)?;
        }
        #[cfg(any(debug_assertions, feature = "fault-injection"))]
        Verb::Fault(args) => {
            let fault = match args.fault {
                FaultKind::Hang => Fault::Hang,
                FaultKind::Panic => Fault::Panic,
            };
            ask(&args.node, &Request::Fault(fault))?;
        }
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tun-node", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
        Verb::Man { dir } => manual(dir.as_deref())?,
    }
    Ok(0)
}

/// Why the program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A file that a source is started with.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The node did not come up.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A running node was not to be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody said which node, and there is not exactly one.
    #[error("{0}")]
    WhichNode(String),
    /// An answer could not be written as JSON.
    #[error("writing JSON")]
    Json(#[from] serde_json::Error),
    /// The manual could not be written.
    #[error("writing the manual into {}", directory.display())]
    Manual {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An answer could not be printed.
    #[error("standard output")]
    Output(#[from] io::Error),
}

impl CliError {
    /// The code to exit with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Source(_) => EXIT_USAGE,
            Self::Node(NodeError::Device(DeviceError::Rootless(RootlessError::Command {
                exit_code,
                ..
            }))) => *exit_code,
            Self::Node(_)
            | Self::Client(_)
            | Self::WhichNode(_)
            | Self::Json(_)
            | Self::Manual { .. }
            | Self::Output(_) => EXIT_FAILED,
        }
    }
}

/// The exit code for a wrong command line or configuration.
pub const EXIT_USAGE: u8 = 1;

/// The exit code for what could not be done.
pub const EXIT_FAILED: u8 = 2;

impl ExplainArgs {
    const fn flow(&self) -> Flow {
        let is_v6_echo = self.protocol == ICMP && self.source.is_ipv6();
        Flow {
            source: self.source,
            destination: self.destination,
            protocol: if is_v6_echo { ICMPV6 } else { self.protocol },
            source_port: self.source_port,
            destination_port: self.destination_port,
            octets: self.octets,
        }
    }
}

impl Level {
    const fn filter(self) -> LevelFilter {
        match self {
            Self::Off => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

const fn configured(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Prints what a configuration means, and what a node would find out about this host.
fn check(path: &Path) -> Result<(), CliError> {
    let config = Loaded::read(path)?.config;
    source::check_all(&config)?;
    let mut text = config.summary();
    if config.worker.directions == Directions::Auto {
        let spread = Spread::of(&config);
        text.push_str(&format!("{:<10}directions {spread}\n", "here"));
    }
    Ok(output::print(&text)?)
}

/// Logs from here on to standard error. A program that embeds this one and logs already keeps
/// its own.
fn log_to_stderr(level: LevelFilter) {
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .try_init();
}

fn connect(node: &NodeArgs) -> Result<Client, CliError> {
    let path = match (&node.socket, &node.name) {
        (Some(socket), _) => socket.clone(),
        (None, Some(name)) => default_path(name),
        (None, None) => match named_by_environment() {
            Some(socket) => socket,
            None => only_node()?,
        },
    };
    Ok(Client::connect(&path)?)
}

/// The socket of the only node of this user that runs.
fn only_node() -> Result<PathBuf, CliError> {
    let mut running: Vec<PathBuf> = known_sockets()
        .into_iter()
        .filter(|path| Client::connect(path).is_ok())
        .collect();
    let names: Vec<String> = running
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    match (running.pop(), names.len()) {
        (Some(only), 1) => Ok(only),
        (Some(_), _) => Err(CliError::WhichNode(format!(
            "several nodes run here: name one of them with --name ({})",
            names.join(", ")
        ))),
        (None, _) => Err(CliError::WhichNode(
            "no node of this user runs here: start one with `tun-node run`, name its socket with \
             --socket, or ask as the user that runs it"
                .to_owned(),
        )),
    }
}

fn ask(node: &NodeArgs, request: &Request) -> Result<Response, CliError> {
    Ok(connect(node)?.ask(request)?)
}

/// Has something done, and prints what the node remarks on it.
fn order(node: &NodeArgs, request: &Request) -> Result<(), CliError> {
    if let Response::Remarks(remarks) = ask(node, request)? {
        for remark in remarks {
            output::print(&format!("{remark}\n"))?;
        }
    }
    Ok(())
}

fn routes(args: RoutesArgs) -> Result<(), CliError> {
    let Some(prefix) = args.why else {
        let report = connect(&args.ask.node)?.routes()?;
        return print(&args.ask, report.as_slice(), output::routes);
    };
    let Response::Why(report) = ask(&args.ask.node, &Request::Why { prefix })? else {
        return Err(ClientError::Unexpected.into());
    };
    print(&args.ask, report.as_slice(), output::why)
}

fn events(args: &EventsArgs) -> Result<(), CliError> {
    let mut client = connect(&args.ask.node)?;
    let mut after = 0;
    loop {
        let Response::Events(report) = client.ask(&Request::Events { after })? else {
            return Err(ClientError::Unexpected.into());
        };
        let had_any = !report.is_empty();
        after = report.last().map_or(after, |last| last.number);
        if args.follow && args.ask.json {
            for event in &report {
                output::print(&format!("{}\n", serde_json::to_string(event)?))?;
            }
        } else if had_any || (args.ask.json && !args.follow) {
            print(&args.ask, report.as_slice(), output::events)?;
        }
        if !args.follow {
            return Ok(());
        }
        if !had_any {
            std::thread::sleep(FOLLOW_EVERY);
        }
    }
}

fn print<R: Serialize + ?Sized>(
    args: &AskArgs,
    report: &R,
    table: impl FnOnce(&R) -> String,
) -> Result<(), CliError> {
    let text = if args.json {
        output::json(&report)?
    } else {
        table(report)
    };
    Ok(output::print(&text)?)
}

fn manual(directory: Option<&Path>) -> Result<(), CliError> {
    if let Some(directory) = directory {
        let written = clap_mangen::generate_to(Cli::command(), directory);
        written.map_err(|source| CliError::Manual {
            directory: directory.to_owned(),
            source,
        })?;
        return Ok(());
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(output::print(&String::from_utf8_lossy(&page))?)
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(ICMP),
        "icmpv6" | "icmp6" => Ok(ICMPV6),
        "sctp" => Ok(132),
        number => number
            .parse()
            .map_err(|_| "a protocol is tcp, udp, icmp, icmpv6, sctp or a number".to_owned()),
    }
}

/// How often a node is asked whether something happened.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_options_with_and_without_dashes() {
        for line in [
            "tun-node run --config f --rootless -- ping -c 3 --help",
            "tun-node run --config f --rootless ping -c 3 --help",
        ] {
            let Verb::Run(args) = parse(line).expect("valid").verb else {
                panic!("{line}");
            };
            assert_eq!(args.command, ["ping", "-c", "3", "--help"]);
        }
        assert!(parse("tun-node run --config f -- ping").is_err());
    }

    #[test]
    fn explain_takes_protocols_by_name_and_number() {
        let flow = |line: &str| {
            let Verb::Explain(args) = parse(line).expect("valid").verb else {
                panic!("{line}");
            };
            args.flow()
        };
        let tcp = flow("tun-node explain 10.0.0.1 10.0.0.2 TCP 1 2 --octets 1500");
        assert_eq!((tcp.protocol, tcp.source_port, tcp.octets), (6, 1, 1500));
        assert_eq!(flow("tun-node explain 10.0.0.1 10.0.0.2").protocol, 1);
        assert_eq!(flow("tun-node explain fd00::1 fd00::2").protocol, 58);
        assert_eq!(flow("tun-node explain fd00::1 fd00::2 132").protocol, 132);
        assert!(parse("tun-node explain 10.0.0.1 10.0.0.2 carrier-pigeon").is_err());
    }
}
