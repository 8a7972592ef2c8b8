//! A node and, opposite, the kernel's own VXLAN device in place of another node.
//!
//! ```text
//!  namespace 1: tun-node, 192.0.2.1 ── wire ══ wire, 192.0.2.2: VXLAN device, no node
//!               10.244.1.1, fd00:10:244:1::1      10.244.2.1, fd00:10:244:2::1
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Lab, Node, wait_until};

/// The overlay addresses of the node and of the device opposite, in each family.
pub(crate) const FAMILIES: [(IpAddr, IpAddr); 2] = [
    (
        IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1)),
        IpAddr::V4(Ipv4Addr::new(10, 244, 2, 1)),
    ),
    (
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 1)),
    ),
];

/// Makes the device in namespace 2, and writes the configuration of the node, which has `worker` in its
/// section `[worker]`.
pub(crate) fn open(lab: &Lab, worker: &str) -> PathBuf {
    for line in [
        "link add flannel.1 address 02:f1:00:00:00:02 type vxlan id 1 dstport 8472 local 192.0.2.2 dev wire nolearning",
        "link set flannel.1 mtu 1450 addrgenmode none up",
        "addr add 10.244.2.0/32 dev flannel.1",
        "addr add 10.244.2.1/32 dev lo",
        "-6 addr add fd00:10:244:2::/128 dev flannel.1 nodad",
        "-6 addr add fd00:10:244:2::1/128 dev lo nodad",
        "neigh replace 10.244.1.0 lladdr 02:f1:00:00:00:01 dev flannel.1 nud permanent",
        "-6 neigh replace fd00:10:244:1::ffff lladdr 02:f1:00:00:00:01 dev flannel.1 nud permanent",
        "route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink src 10.244.2.1",
        "-6 route replace fd00:10:244:1::/64 via fd00:10:244:1::ffff dev flannel.1 onlink src fd00:10:244:2::1",
    ] {
        lab.ip(2, line);
    }
    let fdb = "bridge fdb replace 02:f1:00:00:00:01 dev flannel.1 dst 192.0.2.1 self permanent";
    let fdb: Vec<&str> = fdb.split_whitespace().collect();
    assert!(lab.exec(2, &fdb).status.success());
    configure(lab, worker)
}

/// Writes the configuration of the node again, with another `worker`.
pub(crate) fn configure(lab: &Lab, worker: &str) -> PathBuf {
    let text = format!(
        r#"
[node]
name = "n1"
underlay = ["192.0.2.1"]
prefixes = ["10.244.1.0/24", "fd00:10:244:1::/64"]
vtep-mac = "02:f1:00:00:00:01"
[device]
name = "warren0"
addresses = ["10.244.1.1/24", "fd00:10:244:1::1/64"]
[control]
socket = "{}"
[worker]
{worker}
[[peers]]
name = "n2"
address = "192.0.2.2"
encap = "vxlan"
vtep-mac = "02:f1:00:00:00:02"
prefixes = ["10.244.2.0/24", "fd00:10:244:2::/64"]
"#,
        lab.socket(1).display()
    );
    std::fs::create_dir_all(lab.socket(1).parent().unwrap()).unwrap();
    let path = lab.directory().join("1.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Waits until the counters of a node stand still.
pub(crate) fn settle(node: &Node) {
    let mut last = node.counters().total.device;
    wait_until("the counters stand", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = node.counters().total.device;
        let stands = (now.read, now.written) == (last.read, last.written);
        last = now;
        stands.then_some(())
    })
    .unwrap();
}

/// Makes the veth as a wire is: whatever leaves is cut to its MTU.
pub(crate) fn cut_frames(lab: &Lab) {
    for netns in [1, 2] {
        let off = [
            "ethtool", "-K", "wire", "tx", "off", "tso", "off", "gso", "off",
        ];
        assert!(lab.exec(netns, &off).status.success());
        let on = ["ethtool", "-K", "wire", "gro", "on"];
        assert!(lab.exec(netns, &on).status.success());
    }
}
