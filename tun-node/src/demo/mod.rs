//! `tun-node demo`: an overlay of several nodes on one host, by an ordinary user, in one command.
//!
//! It needs no configuration, no other host, no privilege and no kernel tunnel device. Each node
//! is a process of its own, started the way a user starts one
//! (`tun-node run --rootless --config FILE -- COMMAND`), with a network namespace of its own that
//! only the overlay leads out of; the nodes reach each other through UDP sockets at loopback
//! addresses of the host.
//!
//! | file          | holds                                                           |
//! |---------------|-----------------------------------------------------------------|
//! | `plan.rs`     | names, addresses and configuration files of the nodes           |
//! | `janitor.rs`  | the directory of those files, removed even if the demo is killed |
//! | `fleet.rs`    | the processes                                                   |
//! | `order.rs`    | what the demo and the agents inside the nodes say to each other |
//! | `agent.rs`    | the agent: `echo.rs` pings, `transfer.rs` moves octets over TCP |
//! | `conduct.rs`  | the phases: start, ping every pair, transfer, counters          |
//! | `report.rs`   | what was found, the verdict, the table, JSON                    |
//! | `progress.rs` | the lines while it works                                        |

mod agent;
mod conduct;
mod echo;
mod enter;
mod fleet;
mod janitor;
mod order;
mod plan;
mod progress;
mod report;
mod stream;
mod transfer;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::EXIT_FAILED;
use crate::ctl::client::ClientError;

/// What the demo is to do, as its command line says.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// How many nodes, 2 to 16
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    nodes: u8,
    /// What packets between the nodes travel in
    #[arg(long, value_enum, default_value_t = Encap::Vxlan)]
    encap: Encap,
    /// How much to move over TCP from the first node to the second, in millions of octets
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    megabytes: u32,
    /// Print one JSON object instead of progress and tables
    #[arg(long, conflicts_with_all = ["keep", "shell"])]
    json: bool,
    /// Leave the nodes running until Ctrl-C, and say how to get into each
    #[arg(long, conflicts_with = "shell")]
    keep: bool,
    /// Open a shell in the first node, and end the nodes when it ends
    #[arg(long)]
    shell: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The parts of the demo that are processes of their own; not for people.
#[derive(Clone, Debug, Subcommand)]
enum Part {
    /// Carries out the demo's orders inside a node.
    #[command(hide = true)]
    Agent,
    /// Removes the demo's directory when the demo is gone.
    #[command(hide = true)]
    Janitor {
        /// The directory.
        directory: PathBuf,
    },
    /// Runs a command, or a shell, in the namespaces of a process of this user.
    #[command(hide = true)]
    Enter {
        /// The process.
        pid: u32,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true)]
        command: Vec<OsString>,
    },
}

/// What packets between the nodes travel in. Raw IP in IP is missing: it needs a capability.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Encap {
    /// RFC 7348, in the shape that flannel uses.
    Vxlan,
    /// The bare inner packet in UDP.
    Fou,
    /// Generic UDP encapsulation.
    Gue,
    /// RFC 8926, with Ethernet inside.
    Geneve,
}

impl Encap {
    /// Its name in configuration files and reports.
    const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Fou => "fou",
            Self::Gue => "gue",
            Self::Geneve => "geneve",
        }
    }

    /// The UDP port that configurations use when they name none.
    const fn port(self) -> u16 {
        match self {
            Self::Vxlan => 8472,
            Self::Fou => 5555,
            Self::Gue => 6080,
            Self::Geneve => 6081,
        }
    }
}

/// Runs the demo, or the part of it that `options` name.
///
/// Exit code 0 means that every pair of nodes answered without loss in both families and that
/// the transfer arrived unchanged. Otherwise a sentence on standard error says what failed, and
/// the code is [`EXIT_FAILED`], or 128 and the signal when the demo was interrupted.
///
/// To be called on the main thread: the kernel ties the nodes to the thread that starts them.
#[must_use]
pub fn run(options: &Options) -> u8 {
    let outcome = match &options.part {
        None => return conduct::conduct(options),
        Some(Part::Agent) => agent::run(),
        Some(Part::Janitor { directory }) => janitor::run(directory),
        Some(Part::Enter { pid, command }) => enter::run(*pid, command),
    };
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            conduct::complain(&error.to_string());
            EXIT_FAILED
        }
    }
}

/// What ends a demo early.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    /// This host does not let an ordinary user make a node.
    #[error("{0}")]
    Missing(String),
    /// The directory for the nodes' files.
    #[error("making a directory for the nodes' files: {0}")]
    Directory(#[source] io::Error),
    /// The nodes' files.
    #[error("writing the nodes' files: {0}")]
    Files(#[source] io::Error),
    /// No free addresses and ports.
    #[error("no free UDP port at addresses 127.0.x.y for the nodes' underlay: {0}")]
    Underlay(#[source] io::Error),
    /// A process, a thread or a signal handler.
    #[error("starting {what}: {source}")]
    Start {
        /// Which.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A node is gone.
    #[error(
        "{name} ended early: {how}{}{last_words}",
        if .last_words.is_empty() { "" } else { "; its last words: " }
    )]
    NodeEnded {
        /// Which.
        name: String,
        /// Its exit status.
        how: String,
        /// The last line of its log.
        last_words: String,
    },
    /// Nodes did not become ready.
    #[error("{names} not ready after {seconds} s{}{because}", if .because.is_empty() { "" } else { ": " })]
    NotReady {
        /// Which.
        names: String,
        /// How long the demo waited.
        seconds: u64,
        /// What the first of them says.
        because: String,
    },
    /// An agent did not answer in time.
    #[error("no answer from the nodes while {doing}")]
    NoAnswer {
        /// What was going on.
        doing: &'static str,
    },
    /// An agent could not do what it was told.
    #[error("{name} failed {doing}: {sentence}")]
    Agent {
        /// Which.
        name: String,
        /// What was going on.
        doing: &'static str,
        /// Why.
        sentence: String,
    },
    /// An agent answered another order.
    #[error("an agent answered what it was not asked")]
    Unexpected,
    /// The control socket of a node.
    #[error("counters of {name}: {source}")]
    Control {
        /// Which.
        name: String,
        /// Why.
        source: ClientError,
    },
    /// Ctrl-C and its like.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// Which.
        signal: i32,
    },
}
