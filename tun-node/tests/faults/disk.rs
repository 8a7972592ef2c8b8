//! The disk that the state is kept on is full, and has room again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tun_node::snapshot::{Saved, StateFile};

use super::common::{Lab, Underlay, wait_until};

/// A file system of 64 KiB; gone when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path) -> Self {
        fs::create_dir_all(at).expect("made");
        let options = Some("size=64k,mode=0700");
        mount(Some("none"), at, Some("tmpfs"), MsFlags::empty(), options).expect("mounted");
        Self(at.to_owned())
    }

    /// Takes all the room that there is.
    fn fill(&self) {
        let error = fs::write(self.0.join("filler"), vec![1; 1 << 20]).expect_err("too much");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("filler")).expect("there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn saved(file: &StateFile) -> Option<Saved> {
    let loaded = file.load();
    assert!(loaded.refused.is_empty(), "{:?}", loaded.refused);
    loaded.state.map(|(saved, _)| saved)
}

#[test]
fn a_full_disk_is_an_alarm_until_there_is_room_and_costs_no_packet() {
    let Some(lab) = Lab::new() else { return };
    let disk = Disk::new(&lab.directory().join("disk"));
    let file = StateFile::new(disk.0.join("n1.state"));
    let state = format!("[state]\nfile = {:?}\n", file.path());
    disk.fill();
    let node = lab.start(1, "vxlan", Underlay::V4, &state);
    let _other = lab.start(2, "vxlan", Underlay::V4, "");
    let mut ping = Command::new("ip");
    ping.args(["netns", "exec", &lab.namespace(1)]);
    ping.args(["ping", "-n", "-i", "0.02", "-w", "5", "10.244.2.1"]);
    let ping = ping.stdout(Stdio::piped()).spawn().expect("ping");
    let alarm = || {
        let status = node.status().expect("it answers");
        let alarms = status.alarms.into_iter();
        alarms
            .filter(|alarm| alarm.contains("the state is not saved"))
            .collect::<Vec<_>>()
    };
    let said = wait_until("the alarm", || {
        Some(alarm()).filter(|said| !said.is_empty())
    });
    let said = said.expect("a full disk is noticed");
    assert!(said[0].contains("No space left on device"), "{said:?}");
    assert_eq!(saved(&file), None, "nothing half written is left");
    // It is tried again, and the log says it once.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(
        node.log().matches("the state is not saved").count(),
        1,
        "{}",
        node.log()
    );
    disk.make_room();
    wait_until("the state", || saved(&file)).expect("it is saved when there is room");
    wait_until("the end of the alarm", || alarm().is_empty().then_some(())).expect("over");
    assert_eq!(saved(&file).expect("it is there").node, "n1");
    let output = ping.wait_with_output().expect("it ends by itself");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
}
