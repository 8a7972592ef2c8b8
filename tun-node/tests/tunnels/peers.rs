//! What people are told of peers that go and come back, and of what they asked for.

use std::fs;
use std::time::Duration;

use crate::row::{Plan, Row};

/// Has the router drop what `rule` matches on its way from one node to the other.
fn eat(row: &Row, rule: &str) {
    row.exec(3, "nft add table ip eater");
    row.exec(
        3,
        "nft add chain ip eater through { type filter hook forward priority 0 ; }",
    );
    row.exec(3, &format!("nft add rule ip eater through {rule} drop"));
}

#[test]
fn a_peer_that_goes_is_named_in_status_log_and_explain() {
    const EXPLAIN: &str = "explain 10.244.1.1 10.244.2.1 tcp 1 2";
    const DOUBT: &str = "But n2 does not answer in vxlan at present";
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#"["vxlan", "fou"]"#);
    assert!(row.status(1).peers_down.is_empty());
    assert!(!row.command(1, EXPLAIN).contains(DOUBT));
    eat(&row, "meta l4proto udp");
    row.await_true("it is down", Duration::from_secs(10), || {
        row.status(1).peers_down == ["n2"]
    });
    let status = row.command(1, "status");
    assert!(status.contains("1 (1 down: n2)"), "{status}");
    let told = row.command(1, EXPLAIN);
    assert!(told.contains(DOUBT), "{told}");
    row.exec(3, "nft delete table ip eater");
    row.await_true("it is up again", Duration::from_secs(10), || {
        row.status(1).peers_down.is_empty()
    });
    let log = || fs::read_to_string(row.directory.path().join("1.log")).unwrap();
    row.await_true("the log says so", Duration::from_secs(3), || {
        let log = log();
        let at = |text: &str| log.find(text);
        let down = at("WARN down, no encapsulation is answered: n2");
        down.is_some() && down < at("WARN up again: n2")
    });
}

#[test]
fn what_was_asked_for_is_shown_and_blamed_when_it_does_not_pass() {
    let Some(mut row) = Row::new() else { return };
    row.start(&[1, 2], r#"["vxlan", "ipip", "fou"]"#);
    assert_eq!(row.command(1, "prefer fou"), "");
    row.await_true("fou", Duration::from_secs(5), || row.in_use(1) == "fou");
    assert_eq!(row.path(1).asked_for.as_deref(), Some("fou"));
    let shown = row.command(1, "peers");
    assert!(shown.contains("; asked for: fou"), "{shown}");
    eat(&row, "udp dport 5555");
    row.await_true("vxlan", Duration::from_secs(10), || {
        row.in_use(1) == "vxlan"
    });
    let why = row.path(1).last_change.expect("a change");
    let said = "vxlan: fou is asked for and does not answer";
    assert!(why.starts_with(said), "{why}");
    let remark = "n2: fou does not answer; vxlan stays in use\n";
    assert_eq!(row.command(1, "prefer fou"), remark);

    // A peer that is configured anew keeps what it has, and the loss of the rest is told.
    for (encap, kept) in [(r#"["ipip", "fou"]"#, Some("fou")), (r#""ipip""#, None)] {
        let plan = Plan {
            encap,
            ..Plan::default()
        };
        row.config(1, &plan);
        row.command(1, "reload");
        row.await_true("it is taken", Duration::from_secs(5), || {
            row.path(1).asked_for.as_deref() == kept
        });
    }
    row.await_true("it is told", Duration::from_secs(5), || {
        let log = fs::read_to_string(row.directory.path().join("1.log")).unwrap();
        log.contains("fou was asked for and is not in its `encap` any more")
    });
}
