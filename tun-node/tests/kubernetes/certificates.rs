//! Certificates that are renewed while the source runs.

use std::time::Duration;

use tun_node::source::kube::access::Access;

use super::manifest::Role;
use super::node::{NETWORK, Node, flannel, object};
use super::server::{Server, TOKEN};
use super::tls::{Authority, Proxy};

#[test]
fn a_new_authority_and_a_new_client_certificate_are_taken_up_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let Some(old) = Authority::new(folder.path(), "old") else {
        return;
    };
    let new = Authority::new(folder.path(), "new").unwrap();
    let server = Server::start(Role::of_manifest());
    let listens = server.url().replace("http://", "");
    let proxy = Proxy::start(listens.parse().unwrap(), &old);
    old.issue(folder.path());
    server.put(object(1, false));
    server.put(flannel(100));
    let path = folder.path().join("kubeconfig");
    let text = format!(
        "current-context: x\nclusters:\n- name: c\n  cluster: {{server: '{}', \
         certificate-authority: ca.pem}}\nusers:\n- name: u\n  user: {{token: {TOKEN}, \
         client-certificate: client.pem, client-key: client.key}}\n\
         contexts:\n- name: x\n  context: {{cluster: c, user: u}}\n",
        proxy.url()
    );
    std::fs::write(&path, text).unwrap();
    let mut node = Node::start(Access::kubeconfig(&path).unwrap(), 1, NETWORK);
    let most = Duration::from_secs(30);
    node.wait_for(most, |node| node.remote() == 1).unwrap();

    // The server has its new certificate before this node has its own.
    proxy.renew(&new);
    node.wait_for(most, Node::is_lost)
        .expect("the server is another one");
    server.put(flannel(101));
    // Half of it: what was read before is used on, and nothing ends.
    std::fs::write(folder.path().join("ca.pem"), "half writ").unwrap();
    node.run(Duration::from_secs(2));
    assert!(node.is_lost());
    new.issue(folder.path());
    let took = node.wait_for(most, |node| node.remote() == 2);
    eprintln!("new certificates taken up after {took:?}");
    assert!(took.is_some(), "{:?}", node.alarms());
    assert_eq!((node.fulls, node.withdrawn()), (1, 0));
}
