//! A small API server: Nodes, lists in pages, watches with bookmarks, 410 Gone, strategic merge
//! patches of the status, and an authorizer that permits what the manifest's role does and nothing
//! else. What it does and the real server does is held against each other by the same test, which
//! runs on both (`real.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::manifest::Role;

pub(crate) const TOKEN: &str = "a-token";

/// The server; its connections end when it is dropped.
pub(crate) struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    role: Role,
    version: u64,
    /// The versions up to here are forgotten.
    forgotten: u64,
    nodes: BTreeMap<String, Value>,
    history: VecDeque<(u64, &'static str, Value)>,
    /// What pages go on with, by the version of their list.
    snapshots: BTreeMap<u64, Vec<Value>>,
    connections: Vec<TcpStream>,
    /// Raised to end all watches; `true` in the middle of a line.
    cut: (u64, bool),
    frozen: bool,
    stopped: bool,
    /// Most entries of a page, whatever is asked for.
    page_most: usize,
    bookmark_every: Option<Duration>,
    /// Whether a forgotten version is told as an event in place of a status.
    gone_in_stream: bool,
    used: BTreeSet<(String, String)>,
    denied: Vec<(String, String)>,
    pub(crate) log: Vec<String>,
}

impl Server {
    /// Listens on loopback.
    pub(crate) fn start(role: Role) -> Self {
        Self::at("127.0.0.1", role)
    }

    /// Listens at an address of this thread's network namespace.
    pub(crate) fn at(host: &str, role: Role) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let state = State {
            role,
            version: 1000,
            page_most: 500,
            bookmark_every: Some(Duration::from_millis(100)),
            ..State::default()
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let address = listener.local_addr().unwrap();
        let server = Self { shared, address };
        server.accept(listener);
        server
    }

    fn accept(&self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let mut state = shared.state.lock().unwrap();
                if state.stopped {
                    break;
                }
                state.connections.push(stream.try_clone().unwrap());
                drop(state);
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(&shared, &stream));
            }
        });
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// Makes a Node, or another one of the same name.
    pub(crate) fn put(&self, mut node: Value) {
        let mut state = self.state();
        let name = node["metadata"]["name"].as_str().unwrap().to_owned();
        let kind = if state.nodes.contains_key(&name) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        if node["metadata"]["creationTimestamp"].is_null() {
            node["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        state.write(kind, &name, node);
        self.shared.changed.notify_all();
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut state = self.state();
        let node = state.nodes[name].clone();
        state.write("DELETED", name, node);
        state.nodes.remove(name);
        self.shared.changed.notify_all();
    }

    pub(crate) fn node(&self, name: &str) -> Value {
        self.state().nodes.get(name).cloned().unwrap_or_default()
    }

    /// Forgets all versions but the last, as a compaction does.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        state.forgotten = state.version;
        state.history.clear();
        state.snapshots.clear();
    }

    /// Goes back to an earlier version with what there is now, as a restored backup is.
    pub(crate) fn restore(&self, keep: impl Fn(&str) -> bool) {
        let mut state = self.state();
        state.version = 100;
        state.forgotten = 100;
        state.history.clear();
        state.snapshots.clear();
        state.nodes.retain(|name, _| keep(name));
        for node in state.nodes.values_mut() {
            node["metadata"]["resourceVersion"] = json!("99");
        }
    }

    /// Ends all watches; in the middle of a line if asked to.
    pub(crate) fn cut(&self, in_line: bool) {
        let mut state = self.state();
        state.cut = (state.cut.0 + 1, in_line);
        self.shared.changed.notify_all();
    }

    /// Answers nothing and says nothing, or does so again.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.state().frozen = frozen;
        self.shared.changed.notify_all();
    }

    /// Closes everything, as a server does that was killed.
    pub(crate) fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        // The thread that accepts wakes up and closes the listener.
        let _ = TcpStream::connect(self.address);
    }

    /// Is there again, at the same address.
    pub(crate) fn start_again(&self) {
        let end = Instant::now() + Duration::from_secs(5);
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        self.state().stopped = false;
        self.accept(listener);
    }

    pub(crate) fn page_most(&self, page: usize) {
        self.state().page_most = page;
    }

    pub(crate) fn gone_in_stream(&self, stream: bool) {
        self.state().gone_in_stream = stream;
    }

    /// What was permitted, as (verb, resource), and how often something was not.
    pub(crate) fn rights(&self) -> (BTreeSet<(String, String)>, usize) {
        let state = self.state();
        (state.used.clone(), state.denied.len())
    }

    /// How many requests so far began with this.
    pub(crate) fn asked(&self, start: &str) -> usize {
        let state = self.state();
        state
            .log
            .iter()
            .filter(|one| one.starts_with(start))
            .count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    fn write(&mut self, kind: &'static str, name: &str, mut node: Value) {
        self.version += 1;
        node["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.nodes.insert(name.to_owned(), node.clone());
        self.history.push_back((self.version, kind, node));
    }
}

struct Asked {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn serve(shared: &Shared, stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    while let Some(asked) = read(&mut reader) {
        {
            let mut state = shared.state.lock().unwrap();
            let query = asked
                .query
                .iter()
                .map(|(key, value)| format!("{key}={value}"));
            let query = query.collect::<Vec<_>>().join("&");
            state
                .log
                .push(format!("{} {}?{query}", asked.method, asked.path));
            while state.frozen {
                state = shared.changed.wait(state).unwrap();
            }
        }
        let (code, body) = match answer(shared, &asked) {
            Answer::Body(code, body) => (code, body),
            Answer::Watch(from) => {
                let _ = watch(shared, stream, &asked, from);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = stream;
        if stream.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((key, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length");
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    Some(Asked {
        method,
        path: path.to_owned(),
        query: query
            .map(|(key, value)| (key.to_owned(), unescaped(value)))
            .collect(),
        headers,
        body,
    })
}

fn unescaped(text: &str) -> String {
    let mut octets = Vec::new();
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        if octet == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()];
            let digits = std::str::from_utf8(&digits).unwrap();
            octets.push(u8::from_str_radix(digits, 16).unwrap());
        } else {
            octets.push(octet);
        }
    }
    String::from_utf8(octets).unwrap()
}

enum Answer {
    Body(u16, Value),
    Watch(u64),
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn gone() -> Value {
    status(410, "Expired", "too old resource version")
}

fn answer(shared: &Shared, asked: &Asked) -> Answer {
    let mut state = shared.state.lock().unwrap();
    let no = |code, reason: &str, message: &str| Answer::Body(code, status(code, reason, message));
    let bearer = asked.headers.get("authorization");
    if bearer.map(String::as_str) != Some(&format!("Bearer {TOKEN}")) {
        return no(401, "Unauthorized", "Unauthorized");
    }
    let watching = asked.query.contains_key("watch");
    let parts: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
    let (resource, name) = match parts.as_slice() {
        ["api", "v1", resource] => ((*resource).to_owned(), None),
        ["api", "v1", resource, name] => ((*resource).to_owned(), Some(*name)),
        ["api", "v1", resource, name, part] => (format!("{resource}/{part}"), Some(*name)),
        _ => return no(404, "NotFound", "no such path"),
    };
    let verb = match (asked.method.as_str(), name) {
        ("GET", None) if watching => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("PATCH", _) => "patch",
        ("PUT", _) => "update",
        ("POST", _) => "create",
        _ => "delete",
    };
    let right = (verb.to_owned(), resource.clone());
    if !state.role.permits(verb, &resource) {
        let message = format!("{resource} is forbidden: the user cannot {verb} resource");
        state.denied.push(right);
        return no(403, "Forbidden", &message);
    }
    state.used.insert(right);
    match (verb, name) {
        ("watch", None) => {
            let from = asked
                .query
                .get("resourceVersion")
                .map_or("", String::as_str);
            let from: u64 = from.parse().unwrap_or(0);
            if from < state.forgotten && !state.gone_in_stream {
                return Answer::Body(410, gone());
            }
            Answer::Watch(from)
        }
        ("list", None) => list(&mut state, asked),
        ("patch", Some(name)) if resource == "nodes/status" => {
            let kind = asked.headers.get("content-type").map(String::as_str);
            if kind != Some("application/strategic-merge-patch+json") {
                return no(415, "UnsupportedMediaType", "unsupported media type");
            }
            let Some(mut node) = state.nodes.get(name).cloned() else {
                return no(404, "NotFound", &format!("nodes \"{name}\" not found"));
            };
            let patch: Value = serde_json::from_slice(&asked.body).unwrap();
            merge(&mut node, &patch);
            if node != state.nodes[name] {
                state.write("MODIFIED", name, node);
                shared.changed.notify_all();
            }
            Answer::Body(200, state.nodes[name].clone())
        }
        _ => no(405, "MethodNotAllowed", "not by this server"),
    }
}

fn list(state: &mut State, asked: &Asked) -> Answer {
    let all = |state: &State| state.nodes.values().cloned().collect::<Vec<Value>>();
    let page = asked.query.get("limit").map(|limit| limit.parse().unwrap());
    let page: usize = page.unwrap_or(usize::MAX).min(state.page_most);
    let (version, mut items) = match asked.query.get("continue") {
        // VERSION:NAMES-SO-FAR
        Some(token) => {
            let (version, from) = token.split_once(':').unwrap();
            let (version, from): (u64, usize) = (version.parse().unwrap(), from.parse().unwrap());
            let Some(items) = state.snapshots.get(&version) else {
                return Answer::Body(410, gone());
            };
            (version, items[from..].to_vec())
        }
        None => (state.version, all(state)),
    };
    if let Some(selector) = asked.query.get("fieldSelector") {
        let name = selector.strip_prefix("metadata.name=").unwrap();
        items.retain(|node| node["metadata"]["name"] == name);
    }
    let mut meta = Map::new();
    meta.insert("resourceVersion".into(), json!(version.to_string()));
    if items.len() > page {
        let whole = state
            .snapshots
            .entry(version)
            .or_insert_with(|| items.clone());
        let before = whole.len() - items.len();
        meta.insert(
            "continue".into(),
            json!(format!("{version}:{}", before + page)),
        );
        meta.insert("remainingItemCount".into(), json!(items.len() - page));
        items.truncate(page);
    }
    let body = json!({ "kind": "NodeList", "apiVersion": "v1", "metadata": meta, "items": items });
    Answer::Body(200, body)
}

/// The strategic merge of a Node's status: objects by member, conditions by type, the rest as is;
/// what belongs to the spec stays.
fn merge(node: &mut Value, patch: &Value) {
    for (name, value) in patch["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let annotations = &mut node["metadata"]["annotations"];
        if annotations.is_null() {
            *annotations = json!({});
        }
        let annotations = annotations.as_object_mut().unwrap();
        if value.is_null() {
            annotations.remove(name);
        } else {
            annotations.insert(name.clone(), value.clone());
        }
    }
    for condition in patch["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let conditions = &mut node["status"]["conditions"];
        if conditions.is_null() {
            *conditions = json!([]);
        }
        let conditions = conditions.as_array_mut().unwrap();
        let mut known = conditions.iter_mut();
        match known.find(|one| one["type"] == condition["type"]) {
            Some(known) => {
                for (key, value) in condition.as_object().unwrap() {
                    known[key] = value.clone();
                }
            }
            None => conditions.push(condition.clone()),
        }
    }
}

fn watch(shared: &Shared, mut stream: &TcpStream, asked: &Asked, from: u64) -> std::io::Result<()> {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let limit = asked
        .query
        .get("timeoutSeconds")
        .map_or("1800", String::as_str);
    let end = Instant::now() + Duration::from_secs(limit.parse().unwrap());
    let marks = asked
        .query
        .get("allowWatchBookmarks")
        .is_some_and(|on| on == "true");
    let mut seen = from;
    let mut state = shared.state.lock().unwrap();
    if seen < state.forgotten {
        let line = json!({ "type": "ERROR", "object": gone() }).to_string() + "\n";
        return stream.write_all((chunk(&line) + "0\r\n\r\n").as_bytes());
    }
    let cut = state.cut.0;
    let mut marked = Instant::now();
    loop {
        while state.frozen {
            state = shared.changed.wait(state).unwrap();
        }
        if state.stopped {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (version, kind, node) in &state.history {
            if *version > seen {
                lines.push(json!({ "type": kind, "object": node }).to_string() + "\n");
                seen = *version;
            }
        }
        let every = state.bookmark_every.filter(|_| marks);
        if let Some(every) = every
            && lines.is_empty()
            && marked.elapsed() >= every
        {
            marked = Instant::now();
            seen = seen.max(state.version);
            let object = json!({
                "kind": "Node", "apiVersion": "v1",
                "metadata": { "resourceVersion": seen.to_string(), "creationTimestamp": null },
                "spec": {}, "status": { "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } } },
            });
            lines.push(json!({ "type": "BOOKMARK", "object": object }).to_string() + "\n");
        }
        let (cuts, in_line) = state.cut;
        drop(state);
        for line in &lines {
            // As the real server does, not a chunk for each line.
            let (a, b) = line.split_at(line.len() / 3);
            stream.write_all((chunk(a) + &chunk(b)).as_bytes())?;
        }
        if cuts != cut {
            if in_line {
                return stream.write_all(chunk("{\"type\":\"MODIFIED\",\"obj").as_bytes());
            }
            return Ok(());
        }
        if Instant::now() >= end {
            return stream.write_all(b"0\r\n\r\n");
        }
        state = shared.state.lock().unwrap();
        let wait = Duration::from_millis(50);
        state = shared.changed.wait_timeout(state, wait).unwrap().0;
    }
}
