//! Members that answer wrongly, by servers that say the same to everything.

use std::io::Write as _;
use std::net::TcpListener;

use super::*;

/// A server that answers every request with this; where it is. It ends with the test.
fn server(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    endpoint
}

fn gateway(endpoints: &[&String]) -> Gateway {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.clone());
    let cluster = Cluster {
        endpoints: endpoints.collect(),
        ..Cluster::default()
    };
    Gateway::new(&cluster, "/p").unwrap()
}

const COUNTED: &str = r#"{"header":{"cluster_id":"7","revision":"5"},"count":"3"}"#;

#[test]
fn what_is_no_member_is_left_for_the_next_and_named() {
    for (status, body) in [
        ("200 OK", "<html>It works!</html>"),
        ("200 OK", r#"{"status":"ok"}"#),
        ("302 Found", ""),
        ("403 Forbidden", r#"{"error":"forbidden by the proxy"}"#),
        ("404 Not Found", "404 page not found"),
        ("404 Not Found", r#"{"code":404,"message":"no such path"}"#),
        ("502 Bad Gateway", "<html>"),
    ] {
        let wrong = [server(status, body), server(status, body)];
        let good = server("200 OK", COUNTED);
        let counted = gateway(&[&wrong[0], &good]).carry_out(&Request::Count);
        let count = 3;
        let header = Header {
            cluster: 7,
            revision: 5,
        };
        assert_eq!(counted, Ok(Answer::Counted { header, count }), "{body}");
        for request in [Request::Count, Request::List] {
            let gateway = gateway(&[&wrong[0], &wrong[1], &good]);
            gateway.carry_out(&request).unwrap();
            assert_eq!(gateway.member(), 2, "{body}");
        }
        // What writes is not tried elsewhere by itself, but the next request is.
        let gateway = gateway(&[&wrong[0], &wrong[1]]);
        let write = Request::Delete {
            key: "/p/k".to_owned(),
            unchanged: 4,
        };
        for (member, endpoint) in wrong.iter().enumerate() {
            assert_eq!(gateway.member(), member);
            match gateway.carry_out(&write) {
                Err(Failure::Unreachable(why)) => assert!(why.starts_with(endpoint), "{why}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_member_that_says_no_is_believed() {
    for body in [
        r#"{"error":"etcdserver: permission denied","code":7,"message":"etcdserver: permission denied"}"#,
        r#"{"code":7,"message":"etcdserver: permission denied","details":[]}"#,
        r#"{"error":{"grpc_code":7,"http_code":403,"message":"permission denied"}}"#,
    ] {
        let endpoint = server("403 Forbidden", body);
        let other = server("200 OK", COUNTED);
        let gateway = gateway(&[&endpoint, &other]);
        match gateway.carry_out(&Request::Count) {
            Err(Failure::Refused(why)) => assert!(why.contains("permission denied"), "{why}"),
            other => panic!("{body}: {other:?}"),
        }
        assert_eq!(gateway.member(), 0);
    }
}

#[test]
fn a_member_is_left_once_whoever_finds_out() {
    let endpoint = "http://192.0.2.1:2379".to_owned();
    let gateway = gateway(&[&endpoint, &endpoint, &endpoint]);
    let member = gateway.asked();
    gateway.leave(member);
    gateway.leave(member);
    assert_eq!(gateway.member(), 1);
}
