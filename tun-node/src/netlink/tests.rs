//! Tests of the netlink face, each in a fresh network namespace.

use super::*;
use crate::testing::{in_netns, ip};

#[test]
fn links_are_found_changed_and_deleted() {
    in_netns(|| {
        ip("link add d0 type veth peer name d1");
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("d0").unwrap();
        assert_eq!(
            (link.name.as_str(), link.mtu, link.is_up),
            ("d0", 1500, false)
        );
        netlink.set_mtu(link.index, 1400).unwrap();
        netlink.set_up(link.index, true).unwrap();
        let link = netlink.link("d0").unwrap();
        assert_eq!((link.mtu, link.is_up), (1400, true));
        assert_eq!(netlink.links().unwrap().len(), 3);
        netlink.set_up(link.index, false).unwrap();
        assert!(!netlink.link("d0").unwrap().is_up);
        netlink.delete_link(link.index).unwrap();
        assert!(netlink.link("d0").unwrap_err().is_not_found());
        assert!(netlink.delete_link(link.index).unwrap_err().is_not_found());
    });
}

#[test]
fn addresses_are_added_listed_and_deleted() {
    in_netns(|| {
        let (mut netlink, d0) = dummy();
        let nets = ["192.0.2.1/24", "2001:db8::1/64"].map(|net| net.parse::<IpNet>().unwrap());
        for net in nets {
            netlink.add_address(d0, net).unwrap();
            // Twice is no error: a restart finds its addresses.
            netlink.add_address(d0, net).unwrap();
            assert!(netlink.addresses(d0).unwrap().contains(&net));
        }
        assert!(!ip("addr show dev d0").contains("tentative"));
        for net in nets {
            netlink.delete_address(d0, net).unwrap();
            assert!(!netlink.addresses(d0).unwrap().contains(&net));
            assert!(netlink.delete_address(d0, net).unwrap_err().is_not_found());
        }
    });
}

#[test]
fn routes_are_added_replaced_listed_and_deleted() {
    in_netns(|| {
        let (mut netlink, d0) = dummy();
        netlink
            .add_address(d0, "192.0.2.1/24".parse().unwrap())
            .unwrap();
        let before = netlink.routes(None, None).unwrap();
        for prefix in ["10.1.0.0/16", "2001:db8:1::/48", "0.0.0.0/0", "::/0"] {
            let mut route = Route::new(prefix.parse().unwrap());
            route.mtu = Some(1400);
            netlink.add_route(d0, &route).unwrap();
            assert!(
                netlink
                    .add_route(d0, &route)
                    .unwrap_err()
                    .is_already_there()
            );
            route.mtu = Some(1300);
            netlink.replace_route(d0, &route).unwrap();
            let listed = netlink.routes(Some(d0), Some(PROTOCOL)).unwrap();
            let found: Vec<_> = listed
                .iter()
                .filter(|l| l.route.prefix == route.prefix)
                .collect();
            assert_eq!(found.len(), 1, "{listed:?}");
            assert_eq!(found[0].route.mtu, Some(1300));
            assert_eq!(found[0].device, d0);
            netlink.delete_route(d0, &route).unwrap();
            assert!(netlink.delete_route(d0, &route).unwrap_err().is_not_found());
        }
        assert_eq!(netlink.routes(None, None).unwrap(), before);
    });
}

#[test]
fn host_bits_are_cut_and_every_field_is_read_back() {
    in_netns(|| {
        let (mut netlink, d0) = dummy();
        netlink
            .add_address(d0, "192.0.2.1/24".parse().unwrap())
            .unwrap();
        let mut route = Route::new("10.1.2.3/16".parse().unwrap());
        route.gateway = Some("198.51.100.1".parse().unwrap());
        route.onlink = true;
        route.source = Some("192.0.2.1".parse().unwrap());
        route.metric = Some(7);
        netlink.add_route(d0, &route).unwrap();
        route.prefix = "10.1.0.0/16".parse().unwrap();
        let listed = netlink.routes(Some(d0), Some(PROTOCOL)).unwrap();
        assert_eq!(listed, [ListedRoute { route, device: d0 }]);
    });
}

#[test]
fn routes_of_others_are_told_apart() {
    in_netns(|| {
        let (mut netlink, d0) = dummy();
        ip("route add 10.2.0.0/16 dev d0 proto static");
        assert!(netlink.routes(Some(d0), Some(PROTOCOL)).unwrap().is_empty());
        let listed = netlink.routes(Some(d0), Some(4)).unwrap();
        assert_eq!(
            listed[0].route.prefix,
            "10.2.0.0/16".parse::<IpNet>().unwrap()
        );
        let mut ours = listed[0].route.clone();
        ours.protocol = PROTOCOL;
        assert!(netlink.delete_route(d0, &ours).unwrap_err().is_not_found());
    });
}

#[test]
fn the_path_to_a_destination_is_the_kernels() {
    in_netns(|| {
        let (mut netlink, d0) = dummy();
        netlink
            .add_address(d0, "192.0.2.1/24".parse().unwrap())
            .unwrap();
        let mut route = Route::new("10.1.0.0/16".parse().unwrap());
        route.gateway = Some("192.0.2.9".parse().unwrap());
        netlink.add_route(d0, &route).unwrap();
        let path = netlink
            .path_to("10.1.2.3".parse().unwrap())
            .unwrap()
            .unwrap();
        let expected = PathTo {
            device: d0,
            gateway: Some("192.0.2.9".parse().unwrap()),
            source: Some("192.0.2.1".parse().unwrap()),
            mtu: None,
        };
        assert_eq!(path, expected);
        assert_eq!(
            netlink.path_to("203.0.113.1".parse().unwrap()).unwrap(),
            None
        );
        assert_eq!(
            netlink.path_to("2001:db8:9::1".parse().unwrap()).unwrap(),
            None
        );
        ip("route add prohibit 198.51.100.0/24");
        assert_eq!(
            netlink.path_to("198.51.100.1".parse().unwrap()).unwrap(),
            None
        );
        let lo = netlink.link_index("lo").unwrap();
        assert_eq!(
            netlink
                .path_to("127.0.0.1".parse().unwrap())
                .unwrap()
                .unwrap()
                .device,
            lo
        );
    });
}

#[test]
fn a_refusal_names_operation_object_and_reason() {
    in_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let error = netlink.link("none0").unwrap_err();
        assert_eq!(error.to_string(), "looking for link none0");
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("No such device"), "{source}");
    });
}

fn dummy() -> (Netlink, u32) {
    ip("link add d0 type veth peer name d1");
    let mut netlink = Netlink::open().unwrap();
    let d0 = netlink.link_index("d0").unwrap();
    netlink.set_up(d0, true).unwrap();
    (netlink, d0)
}
