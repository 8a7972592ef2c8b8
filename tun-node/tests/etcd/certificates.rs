//! Certificates that are renewed while the source runs.

use std::time::Duration;

use tun_node::source::etcd::gateway::Cluster;

use super::cluster::{CONFIG, Etcd, Node};
use super::lease;
use super::tls::{Authority, Proxy};

#[test]
fn a_new_authority_and_a_new_client_certificate_are_taken_up_without_a_restart() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let Some(old) = Authority::new(folder.path(), "old") else {
        return;
    };
    let new = Authority::new(folder.path(), "new").unwrap();
    let member = etcd.endpoints()[0].replace("http://", "");
    let proxy = Proxy::start(member.parse().unwrap(), &old);
    let path = |file: &str| folder.path().join(file);
    old.issue(folder.path());
    etcd.put_config(CONFIG);
    let (key, value) = lease(1);
    etcd.put(&key, &value);
    let cluster = Cluster {
        endpoints: vec![proxy.url()],
        ca: Some(path("ca.pem")),
        certificate: Some((path("client.pem"), path("client.key"))),
        user: None,
    };
    let mut node = Node::start(cluster, 1);
    let most = Duration::from_secs(30);
    node.wait_for(most, |node| node.remote() == 1).unwrap();

    // The member has its new certificate before this node has its own.
    proxy.renew(&new);
    node.wait_for(most, |node| node.status().lost.is_some())
        .expect("the member is another one");
    let (key, value) = lease(2);
    etcd.put(&key, &value);
    // Half of it: what was read before is used on, and nothing ends.
    std::fs::write(path("ca.pem"), "half writ").unwrap();
    node.run(Duration::from_secs(2));
    assert!(node.status().lost.is_some());
    new.issue(folder.path());
    let took = node.wait_for(most, |node| node.remote() == 2);
    eprintln!("new certificates taken up after {took:?}");
    assert!(took.is_some(), "{:?}", node.alarms);
    assert_eq!(node.withdrawn(), 0);
}
