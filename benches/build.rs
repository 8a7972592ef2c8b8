//! Builds the DPDK shim when WARREN_DPDK is set: `WARREN_DPDK=1` (reserved huge pages) or `WARREN_DPDK=no-huge`.
//!
//! Needs a C compiler, pkg-config and DPDK's development files (Debian: `libdpdk-dev`). Without the variable nothing
//! is built and nothing is needed.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(warren_dpdk)");
    println!("cargo::rerun-if-env-changed=WARREN_DPDK");
    println!("cargo::rerun-if-changed=dpdk/shim.c");
    if env::var_os("WARREN_DPDK").is_none() {
        return;
    }
    let out = env::var("OUT_DIR").expect("cargo sets it");
    let flags = output(Command::new("pkg-config").args(["--cflags", "libdpdk"]));
    let object = Path::new(&out).join("shim.o");
    output(
        Command::new("cc")
            .args(["-O3", "-c", "dpdk/shim.c", "-o"])
            .arg(&object)
            .args(flags.split_whitespace()),
    );
    let archive = Path::new(&out).join("libwarren_dpdk.a");
    let _ = fs::remove_file(&archive);
    output(Command::new("ar").arg("crs").arg(&archive).arg(&object));
    println!("cargo::rustc-cfg=warren_dpdk");
    println!("cargo::rustc-link-search=native={out}");
    println!("cargo::rustc-link-lib=static=warren_dpdk");
    for library in ["rte_fib", "rte_rib", "rte_eal"] {
        println!("cargo::rustc-link-lib={library}");
    }
}

fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
