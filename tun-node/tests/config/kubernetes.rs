//! The section `[kubernetes]`.

use tun_node::config::KubernetesNetwork;
use tun_node::flannel::NetConf;

use super::parse;

const NODE: &str = "[node]\nname = \"alpha\"\nunderlay = [\"192.0.2.1\"]\n[kubernetes]\n";

#[test]
fn everything_has_a_default() {
    let config = parse(NODE).unwrap();
    let kubernetes = config.sources.kubernetes.as_ref().unwrap();
    assert_eq!((&kubernetes.node, &kubernetes.kubeconfig), (&None, &None));
    let file = KubernetesNetwork::File("/etc/kube-flannel/net-conf.json".into());
    assert_eq!(kubernetes.network, file);
    assert_eq!(kubernetes.annotation_prefix, "flannel.alpha.coreos.com");
    assert!(!kubernetes.leave && config.sources.may_claim());
    let subnet_env = config.sources.subnet_env.as_deref();
    assert_eq!(subnet_env, Some("/run/flannel/subnet.env".as_ref()));
    // The Node names the node where nothing else does.
    parse(&NODE.replace("name = \"alpha\"\n", "")).unwrap();
}

#[test]
fn keys_come_to_the_same_as_flannels_file() {
    let text = format!(
        "{NODE}network = \"10.244.0.0/16\"\nipv6-network = \"fd00:10:244::/48\"\n\
         backend = \"vxlan\"\nvni = 7\nport = 4789\nleave = true\nnode = \"a.example\"\n"
    );
    let config = parse(&text).unwrap();
    let kubernetes = config.sources.kubernetes.unwrap();
    let json = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48",
        "Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#;
    let network = NetConf::parse(json.as_bytes()).unwrap();
    assert_eq!(kubernetes.network, KubernetesNetwork::Keys(network));
    assert!(kubernetes.leave);
    assert_eq!(kubernetes.node.as_deref(), Some("a.example"));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (lines, message) in [
        (
            "nodes = \"a\"",
            "5:1: unknown key \"nodes\" in [kubernetes]; did you mean \"node\"?",
        ),
        (
            "node = \"Alpha\"",
            "5:8: the node \"Alpha\" cannot be a Node of Kubernetes; write a DNS name in lower case",
        ),
        (
            "kubeconfig = \"config\"",
            "5:14: the path \"config\" is not absolute; begin it with '/'",
        ),
        (
            "net-conf = \"/n\"\nvni = 1",
            "6:7: vni stands in the file of net-conf; remove one of the two",
        ),
        (
            "backend = \"vxlan\"",
            "5:11: backend needs network or ipv6-network beside it; add it",
        ),
        (
            "network = \"10.0.0.0/8\"\nbackend = \"wireguard\"",
            "6:11: backend cannot be \"wireguard\"; write \"vxlan\", \"ipip\", \"host-gw\" or \"udp\"",
        ),
        (
            "network = \"10.0.0.0/8\"\nbackend = \"ipip\"\nvni = 1",
            "7:7: the backend ipip has no vni; remove it",
        ),
        (
            "network = \"10.0.0.0/29\"",
            "5:11: the network configuration is unusable: Network: 10.0.0.0/29 is longer than /28; \
             correct it",
        ),
        (
            "annotation-prefix = \"a b\"",
            "5:21: the annotation prefix \"a b\" is none; write for example \
             \"flannel.alpha.coreos.com\"",
        ),
        (
            "leave = 1",
            "5:9: leave in [kubernetes] is a whole number; write true or false",
        ),
    ] {
        let error = parse(&format!("{NODE}{lines}\n")).unwrap_err().to_string();
        assert_eq!(error, format!("node.toml:{message}"), "{lines}");
    }
}
