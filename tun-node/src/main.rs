//! The `tun-node` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: the child must have one thread and no descriptor.
    if let Some(code) = tun_node::rootless::child_if_asked() {
        return code.into();
    }
    ExitCode::SUCCESS
}
