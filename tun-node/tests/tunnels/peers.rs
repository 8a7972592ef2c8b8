//! What people are told of peers that go and come back, and of what they asked for.

use std::fs;
use std::time::Duration;

use crate::row::Row;

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
