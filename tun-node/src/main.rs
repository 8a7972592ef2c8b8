//! `tun-node`: parse the command line, do what it says, say in plain words what went wrong.

use std::error::Error;
use std::io::Write;
use std::process::exit;

use clap::Parser;
use tun_node::cli::{Cli, EXIT_USAGE, execute};
use tun_node::rootless;
use tun_node::sys::huge::HugePages;

#[global_allocator]
static HUGE_PAGES: HugePages = HugePages;

fn main() {
    // Before any thread and any descriptor: this process may be the child of a rootless node.
    if let Some(code) = rootless::child_if_asked() {
        exit(i32::from(code));
    }
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        // Help and version are no errors, and go to standard output. Where printing fails there
        // is nobody to tell.
        let _ = error.print();
        exit(if error.use_stderr() {
            i32::from(EXIT_USAGE)
        } else {
            0
        });
    });
    let code = execute(cli).unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "tun-node: {}", sentence(&error));
        error.exit_code()
    });
    // At once: a worker that hangs is not waited for.
    exit(i32::from(code));
}

/// The error and what is behind it, each cause once.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(behind) = cause {
        let more = behind.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = behind.source();
    }
    text
}
