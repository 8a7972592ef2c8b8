//! Route files.

use std::fs;

use nix::sys::signal::Signal;
use tun_node::ctl::message::{Request, Response};
use tun_node::ctl::sources::ReloadReport;

use super::fleet::{Fleet, Node, SHORT, wait};

fn peer(number: u8) -> String {
    format!(
        "[[peers]]\nname = \"n{number}\"\naddress = \"192.0.2.{number}\"\nvtep-mac = \"auto\"\nprefixes = \
         [\"10.244.{number}.0/24\"]\n"
    )
}

fn main_file(fleet: &Fleet, number: u8, rest: &str) -> std::path::PathBuf {
    let path = fleet.directory().join(format!("{number}.toml"));
    let text = format!(
        "[node]\nname = \"n{number}\"\nunderlay = \"192.0.2.{number}\"\nprefixes = [\"10.244.{number}.0/24\"]\n\
         [device]\naddresses = [\"10.244.{number}.1/24\"]\n{rest}"
    );
    fs::write(&path, text).unwrap();
    path
}

fn reload(node: &Node, dry_run: bool) -> Result<ReloadReport, String> {
    match node.ask_all(&Request::Reload { dry_run }) {
        Ok(Response::Reload(report)) => Ok(*report),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

#[test]
fn route_files_are_taken_when_they_change_and_refused_whole_when_one_is_wrong() {
    let Some(fleet) = Fleet::new(2) else { return };
    let directory = fleet.directory().join("routes.d");
    fs::create_dir(&directory).unwrap();
    let files = format!("[files]\ndirectory = {:?}\n", directory.to_str().unwrap());
    let one = fleet.spawn(1, &main_file(&fleet, 1, &files));
    let two = fleet.spawn(2, &main_file(&fleet, 2, &peer(1)));
    one.wait_ready();
    two.wait_ready();
    assert!(!fleet.pings(1, "10.244.2.1", 1));
    // By change of file.
    fs::write(directory.join("20-beta.toml"), peer(2)).unwrap();
    let took = wait("the file to be taken", SHORT, || {
        fleet.pings(1, "10.244.2.1", 1)
    });
    eprintln!("a new route file was in force after {took:?}");
    assert_eq!(one.source("file").entries, 1);
    let epoch = one.status().unwrap().epoch;
    // A dry run prints, and changes nothing.
    let more = format!(
        "{}[[routes]]\nprefix = \"198.51.100.0/24\"\nvia = [\"n2\", \"n9\"]\n",
        peer(9)
    );
    let hidden = directory.join(".30-more.toml");
    fs::write(&hidden, more).unwrap();
    assert_eq!(
        reload(&one, true).unwrap().differences,
        Vec::<String>::new()
    );
    fs::rename(&hidden, directory.join("30-more.toml")).unwrap();
    let dry = reload(&one, true).unwrap();
    assert_eq!(dry.differences.len(), 2, "{dry:?}");
    assert!(
        dry.differences[0].starts_with("+ peer 30-more.toml:n9"),
        "{dry:?}"
    );
    assert_eq!(dry.epoch, epoch);
    let taken = reload(&one, false).unwrap();
    assert!(
        taken.epoch > epoch && taken.differences == dry.differences,
        "{taken:?}"
    );
    // A mistake in one file, in a line and column that are named, changes nothing.
    let epoch = one.status().unwrap().epoch;
    fs::write(
        directory.join("40-bad.toml"),
        "# a comment\n[[peers]]\nname = \"x\"\naddress = \"192.0.2.300\"\n",
    )
    .unwrap();
    let why = reload(&one, false).unwrap_err();
    assert!(why.contains("40-bad.toml:4:11: "), "{why}");
    fs::write(directory.join("40-bad.toml"), peer(2).replace("n2", "twin")).unwrap();
    let why = reload(&one, false).unwrap_err();
    assert!(why.contains("40-bad.toml:3:11: "), "{why}");
    one.signal(Signal::SIGHUP);
    wait("the alarm", SHORT, || one.source("config").state == "lost");
    assert_eq!(one.status().unwrap().epoch, epoch);
    assert!(fleet.pings(1, "10.244.2.1", 3));
    fs::remove_file(directory.join("40-bad.toml")).unwrap();
    one.signal(Signal::SIGHUP);
    wait("the alarm to go", SHORT, || {
        one.source("config").state == "synced"
    });
    assert_eq!(one.status().unwrap().epoch, epoch, "nothing differs");
    // What goes goes at once: this host's own files are no accident of others.
    fs::remove_file(directory.join("20-beta.toml")).unwrap();
    fs::remove_file(directory.join("30-more.toml")).unwrap();
    wait("the peers to go", SHORT, || {
        one.status().unwrap().peers == 0
    });
}
