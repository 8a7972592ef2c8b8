//! A cluster that has users: the node is one of them, and its password changes.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tun_node::source::etcd::gateway::Cluster;

use super::cluster::{CONFIG, Etcd, Node, PREFIX};
use super::lease;

/// Asks the first member, with a token unless it is empty; an error is its text.
fn ask(etcd: &Etcd, token: &str, method: &str, body: &Value) -> Result<Value, String> {
    let http = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .build()
        .new_agent();
    let mut request = http.post(format!("{}/v3/{method}", etcd.endpoints()[0]));
    if !token.is_empty() {
        request = request.header("Authorization", token);
    }
    let mut answer = request
        .send(body.to_string().as_bytes())
        .map_err(|error| error.to_string())?;
    let text = answer.body_mut().read_to_string();
    let text = text.map_err(|error| error.to_string())?;
    if answer.status() != 200 {
        return Err(text);
    }
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

fn token(etcd: &Etcd, name: &str, password: &str) -> Result<String, String> {
    let body = json!({ "name": name, "password": password });
    let answer = ask(etcd, "", "auth/authenticate", &body)?;
    Ok(answer["token"].as_str().unwrap_or_default().to_owned())
}

fn put(etcd: &Etcd, token: &str, number: u16) {
    let (key, value) = lease(number);
    let body = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) });
    ask(etcd, token, "kv/put", &body).unwrap();
}

#[test]
fn a_password_that_changes_is_read_again_without_a_restart() {
    let Some(etcd) = Etcd::start(1, &[]) else {
        return;
    };
    etcd.put_config(CONFIG);
    let all = format!("{PREFIX}0");
    let permission = json!({
        "permType": "READWRITE",
        "key": STANDARD.encode(format!("{PREFIX}/")),
        "range_end": STANDARD.encode(all),
    });
    for (method, body) in [
        ("auth/user/add", json!({ "name": "root", "password": "r" })),
        ("auth/role/add", json!({ "name": "root" })),
        ("auth/user/grant", json!({ "user": "root", "role": "root" })),
        (
            "auth/user/add",
            json!({ "name": "warren", "password": "first" }),
        ),
        ("auth/role/add", json!({ "name": "node" })),
        (
            "auth/role/grant",
            json!({ "name": "node", "perm": permission }),
        ),
        (
            "auth/user/grant",
            json!({ "user": "warren", "role": "node" }),
        ),
        ("auth/enable", json!({})),
    ] {
        ask(&etcd, "", method, &body).unwrap();
    }
    // Without a user nobody gets in.
    let (key, _) = lease(1);
    let unknown = json!({ "key": STANDARD.encode(key) });
    let refused = ask(&etcd, "", "kv/range", &unknown).unwrap_err();
    assert!(refused.contains("user name is empty"), "{refused}");

    let root = token(&etcd, "root", "r").unwrap();
    put(&etcd, &root, 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let cluster = || Cluster {
        endpoints: etcd.endpoints(),
        user: Some(("warren".to_owned(), file.clone())),
        ..Cluster::default()
    };
    let mut node = Node::start(cluster(), 1);
    let most = Duration::from_secs(30);
    node.wait_for(most, |node| node.remote() == 1 && node.subnet().is_some())
        .expect("the node is let in");

    // The member takes back what it gave for the old password.
    let change = json!({ "name": "warren", "password": "second" });
    ask(&etcd, &root, "auth/user/changepw", &change).unwrap();
    let refused = token(&etcd, "warren", "first").unwrap_err();
    assert!(refused.contains("authentication failed"), "{refused}");
    let lost = node.wait_for(most, |node| node.status().lost.is_some());
    assert!(lost.is_some(), "the old password is of no use");
    let why = node.status().lost.unwrap();
    assert!(why.contains("authentication failed"), "{why}");
    assert_eq!(node.remote(), 1, "nothing is forgotten");

    std::fs::write(&file, "second").unwrap();
    let root = token(&etcd, "root", "r").unwrap();
    put(&etcd, &root, 2);
    let start = Instant::now();
    let took = node.wait_for(most, |node| node.remote() == 2);
    eprintln!("the new password is in use after {took:?}");
    assert!(took.is_some(), "{:?} {:?}", start.elapsed(), node.alarms);
    assert_eq!(node.withdrawn(), 0);

    // A file that is not there is named at once.
    drop(node);
    std::fs::remove_file(&file).unwrap();
    let error = tun_node::source::etcd::gateway::Gateway::new(&cluster(), PREFIX).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("password"), "{told}");
}
