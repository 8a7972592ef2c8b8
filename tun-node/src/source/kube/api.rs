//! A client of the Kubernetes API: Nodes over HTTP/1.1 on blocking sockets, with a limit for
//! everything.
//!
//! Four calls are made and no other, which is all that the manifest's role permits:
//!
//! | call | verb |
//! |---|---|
//! | `GET /api/v1/nodes?limit=500` and its further pages | list |
//! | `GET /api/v1/nodes?fieldSelector=metadata.name=NAME`: is the server there, where is it | list |
//! | `GET /api/v1/nodes?watch=1` | watch |
//! | `PATCH /api/v1/nodes/NAME/status`, strategic merge | patch of `nodes/status` |
//!
//! Annotations too are written by the status: that is how flannel does it, and so nobody needs the
//! right to change a Node's `spec`.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};

use super::access::{Access, AccessError, Token};
use super::agent::{Answer, Failure, Request, WatchEvent};
use super::node::Node;
use super::wire::{
    NodeList, Status, WatchLine, WireNode, annotations_patch, condition_patch, rfc3339,
};
use crate::flannel::printable;
use crate::source::http::{Timeouts, configs};
use crate::source::keepalive::{self, Probes};
use crate::source::renew::Renewed;

/// A client, shared by the thread that asks and the thread that watches. Each request is made
/// with the certificates that the files have by then.
#[derive(Debug)]
pub(super) struct Api {
    client: Renewed<Access, Client>,
    node: String,
    prefix: String,
}

impl Api {
    /// Makes a client for the Node called `node`. Asks nothing yet.
    pub(super) fn new(access: &Access, node: &str, prefix: &str) -> Result<Self, AccessError> {
        let client = Client::new(access, node, prefix)?;
        Ok(Self {
            client: Renewed::new(access.clone(), client),
            node: node.to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    /// Carries out a request.
    pub(super) fn carry_out(&self, request: &Request) -> Result<Answer, Failure> {
        self.client().carry_out(request)
    }

    /// Opens a watch of all Nodes from a version on.
    pub(super) fn watch(&self, from: &str) -> Result<WatchStream, WatchEnd> {
        self.client().watch(from)
    }

    fn client(&self) -> Arc<Client> {
        let make = |access: &Access| Client::new(access, &self.node, &self.prefix);
        self.client.current("kubernetes", Access::again, make)
    }
}

/// A client with certain certificates.
#[derive(Debug)]
struct Client {
    server: String,
    token: Option<Token>,
    http: ureq::Agent,
    stream: ureq::Agent,
    /// This node's name, as it stands in a URL.
    node: String,
    /// What flannel's annotations begin with.
    prefix: String,
}

/// Why a call gave nothing.
#[derive(Debug)]
enum CallError {
    /// 410 Gone: the version that was asked for is forgotten.
    Gone,
    /// There is no such Node.
    NotFound(String),
    /// The answer is larger than is read.
    TooLarge,
    Failure(Failure),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Failure(failure) => failure,
            CallError::Gone => Self::Unreachable("the version is forgotten".to_owned()),
            CallError::NotFound(why) => Self::Refused(why),
            CallError::TooLarge => Self::Unreachable("the answer is too large".to_owned()),
        }
    }
}

impl Client {
    fn new(access: &Access, node: &str, prefix: &str) -> Result<Self, AccessError> {
        let tls = tls(access)?;
        let (http, stream) = configs(&tls, TIMEOUTS);
        Ok(Self {
            server: access.server.clone(),
            token: access.token.clone(),
            http: http.new_agent(),
            stream: keepalive::agent(stream, PROBES),
            node: escaped(node),
            prefix: prefix.to_owned(),
        })
    }

    /// Carries out a request.
    fn carry_out(&self, request: &Request) -> Result<Answer, Failure> {
        match request {
            Request::List => self.list(),
            Request::Ping { exact } => {
                let mut query = format!("fieldSelector=metadata.name%3D{}", self.node);
                if !exact {
                    // From the server's own memory: it costs the store nothing.
                    query.push_str("&resourceVersion=0");
                }
                let list: NodeList = self.ask(&query)?;
                let version = list.metadata.resource_version;
                Ok(Answer::Pong { version })
            }
            Request::Annotate(annotations) => self.patch(&annotations_patch(annotations)),
            Request::Available(available) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let now = rfc3339(now.map_or(0, |now| now.as_secs()));
                self.patch(&condition_patch(*available, &now))
            }
        }
    }

    /// Opens a watch of all Nodes from a version on.
    fn watch(&self, from: &str) -> Result<WatchStream, WatchEnd> {
        let from = escaped(from);
        let query = format!(
            "watch=1&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds={WATCH_S}"
        );
        match self.get(&self.stream, &query) {
            Ok(response) => {
                let reader = response.into_body().into_with_config().limit(u64::MAX);
                Ok(WatchStream {
                    reader: BufReader::with_capacity(64 << 10, reader.reader()),
                    line: Vec::new(),
                    prefix: self.prefix.clone(),
                })
            }
            Err(CallError::Gone) => Err(WatchEnd::Expired),
            Err(error) => {
                let (Failure::Unreachable(why) | Failure::Refused(why)) = error.into();
                Err(WatchEnd::Broken(why))
            }
        }
    }

    /// All Nodes, in pages, all of one version.
    fn list(&self) -> Result<Answer, Failure> {
        let mut nodes: Vec<Node> = Vec::new();
        let mut version = String::new();
        let mut next = String::new();
        let mut page = PAGE_NODES;
        loop {
            let mut query = format!("limit={page}");
            if !next.is_empty() {
                query.push_str("&continue=");
                query.push_str(&escaped(&next));
            }
            let list: NodeList = match self.ask(&query) {
                Ok(list) => list,
                Err(CallError::TooLarge) if page > 1 => {
                    page = (page / 8).max(1);
                    continue;
                }
                Err(CallError::Gone) if !next.is_empty() => {
                    // The pages took longer than the store remembers: from the beginning, and
                    // the rest in one piece.
                    nodes.clear();
                    next.clear();
                    page = NODES_MAX;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if version.is_empty() || next.is_empty() {
                version = list.metadata.resource_version;
            }
            let items = list.items.unwrap_or_default();
            nodes.extend(items.into_iter().map(|node| node.read(&self.prefix)));
            next = list.metadata.next;
            if next.is_empty() || nodes.len() >= NODES_MAX {
                return Ok(Answer::Listed { version, nodes });
            }
        }
    }

    fn patch(&self, patch: &serde_json::Value) -> Result<Answer, Failure> {
        let url = format!("{}/api/v1/nodes/{}/status", self.server, self.node);
        let request = self.http.patch(url);
        let request = request.header("Content-Type", "application/strategic-merge-patch+json");
        let request = match self.authorization()? {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        };
        let sent = request.send(patch.to_string().as_bytes());
        let response = sent.map_err(|error| self.unreachable(&error))?;
        let response = self.accepted(response)?;
        let node: WireNode = self.body(response)?;
        Ok(Answer::Patched(node.read(&self.prefix)))
    }

    fn ask<T: DeserializeOwned>(&self, query: &str) -> Result<T, CallError> {
        let response = self.get(&self.http, query)?;
        self.body(response)
    }

    fn get(
        &self,
        agent: &ureq::Agent,
        query: &str,
    ) -> Result<ureq::http::Response<ureq::Body>, CallError> {
        let mut request = agent.get(format!("{}/api/v1/nodes?{query}", self.server));
        request = request.header("Accept", "application/json");
        if let Some(authorization) = self.authorization().map_err(CallError::Failure)? {
            request = request.header("Authorization", authorization);
        }
        let response = request.call();
        let response = response.map_err(|error| CallError::Failure(self.unreachable(&error)))?;
        self.accepted(response)
    }

    fn body<T: DeserializeOwned>(
        &self,
        mut response: ureq::http::Response<ureq::Body>,
    ) -> Result<T, CallError> {
        let octets = response.body_mut().with_config().limit(ANSWER_OCTETS_MAX);
        let octets = match octets.read_to_vec() {
            Ok(octets) => octets,
            Err(ureq::Error::BodyExceedsLimit(_)) => return Err(CallError::TooLarge),
            Err(error) => return Err(CallError::Failure(self.unreachable(&error))),
        };
        serde_json::from_slice(&octets).map_err(|error| {
            let why = format!("{}: the answer is not understood: {error}", self.server);
            CallError::Failure(Failure::Unreachable(why))
        })
    }

    /// The response, unless it is a no.
    fn accepted(
        &self,
        mut response: ureq::http::Response<ureq::Body>,
    ) -> Result<ureq::http::Response<ureq::Body>, CallError> {
        let code = response.status().as_u16();
        if code == 200 || code == 201 {
            return Ok(response);
        }
        let body = response.body_mut().with_config().limit(64 << 10);
        let body = body.read_to_vec().unwrap_or_default();
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        let message = if status.message.is_empty() {
            printable(&body)
        } else {
            printable(status.message.as_bytes())
        };
        let why = format!("{}: {code}: {message}", self.server);
        Err(match code {
            410 => CallError::Gone,
            404 => CallError::NotFound(why),
            // Not ready, too busy, or in between are two servers.
            408 | 429 | 500.. => CallError::Failure(Failure::Unreachable(why)),
            _ => CallError::Failure(Failure::Refused(why)),
        })
    }

    fn authorization(&self) -> Result<Option<String>, Failure> {
        let token = match &self.token {
            None => return Ok(None),
            Some(Token::Fixed(token)) => token.clone(),
            // Small, in memory, and another one every hour.
            Some(Token::File(path)) => std::fs::read_to_string(path).map_err(|error| {
                Failure::Unreachable(format!("the token {}: {error}", path.display()))
            })?,
        };
        Ok(Some(format!("Bearer {}", token.trim())))
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable(format!("{}: {error}", self.server))
    }
}

/// A watch that is open.
pub(super) struct WatchStream {
    reader: BufReader<ureq::BodyReader<'static>>,
    line: Vec<u8>,
    prefix: String,
}

/// Why a watch gave nothing more.
#[derive(Debug)]
pub(super) enum WatchEnd {
    /// Its time was over, or nothing happened for long; it can be opened again where it ended.
    Over,
    /// The server has forgotten the version.
    Expired,
    /// It broke.
    Broken(String),
}

impl WatchStream {
    /// Waits for the next event; `None` is a line that says nothing here.
    pub(super) fn next(&mut self) -> Result<Option<WatchEvent>, WatchEnd> {
        self.line.clear();
        let mut limited = (&mut self.reader).take(LINE_OCTETS_MAX);
        match limited.read_until(b'\n', &mut self.line) {
            Ok(0) => return Err(WatchEnd::Over),
            Ok(_) if self.line.last() != Some(&b'\n') => {
                let why = "an event is cut off or too large";
                return Err(WatchEnd::Broken(why.to_owned()));
            }
            Ok(_) => {}
            Err(error) if is_timeout(&error) && self.line.is_empty() => {
                return Err(WatchEnd::Over);
            }
            Err(error) => return Err(WatchEnd::Broken(error.to_string())),
        }
        self.read()
            .map_err(|error| WatchEnd::Broken(format!("an event is not understood: {error}")))?
    }

    /// Whether what comes next is there already.
    pub(super) fn has_more(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    fn read(&self) -> Result<Result<Option<WatchEvent>, WatchEnd>, serde_json::Error> {
        let line: WatchLine = serde_json::from_slice(&self.line)?;
        let node = |object| -> Result<Node, serde_json::Error> {
            let node: WireNode = serde_json::from_value(object)?;
            Ok(node.read(&self.prefix))
        };
        Ok(match line.r#type.as_str() {
            "ADDED" | "MODIFIED" => Ok(Some(WatchEvent::Put(node(line.object)?))),
            "DELETED" => Ok(Some(WatchEvent::Gone(node(line.object)?))),
            "BOOKMARK" => Ok(Some(WatchEvent::Bookmark(node(line.object)?.version))),
            "ERROR" => {
                let status: Status = serde_json::from_value(line.object)?;
                let gone = status.code == 410 || status.reason == "Expired";
                Err(if gone {
                    WatchEnd::Expired
                } else {
                    WatchEnd::Broken(printable(status.message.as_bytes()))
                })
            }
            _ => Ok(None),
        })
    }
}

/// Whether nothing was read in time.
fn is_timeout(error: &std::io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_)))
}

/// Text as it may stand in a URL. RFC 3986 section 2.3.
fn escaped(text: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for octet in text.bytes() {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            url.push(char::from(octet));
        } else {
            url.push_str(&format!("%{octet:02X}"));
        }
    }
    url
}

fn tls(access: &Access) -> Result<TlsConfig, AccessError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    if let Some(ca) = &access.ca {
        let authorities = certificates(ca, "the certificate authority")?;
        tls = tls.root_certs(RootCerts::from(authorities.into_iter()));
    }
    if let Some((certificate, key)) = &access.certificate {
        let chain = certificates(certificate, "the client certificate")?;
        let key = PrivateKey::from_pem(key)
            .map_err(|error| AccessError::Pem(format!("the client key: {error}")))?;
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
    }
    Ok(tls.build())
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<Certificate<'static>>, AccessError> {
    let mut found = Vec::new();
    for item in ureq::tls::parse_pem(pem) {
        let item = item.map_err(|error| AccessError::Pem(format!("{what}: {error}")))?;
        if let PemItem::Certificate(certificate) = item {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        let sentence = format!("{what}: there is no certificate in it");
        return Err(AccessError::Pem(sentence));
    }
    Ok(found)
}

/// With the pause between pings, a black hole is noticed within 8 s + 4 s. A silent watch is opened
/// again where it was; bookmarks come about every minute.
const TIMEOUTS: Timeouts = Timeouts {
    step: Duration::from_secs(4),
    body: Duration::from_secs(30),
    silence: Duration::from_secs(150),
};
/// Silence for 5 s, then 3 probes 3 s apart: a way that is gone is noticed after 14 s.
const PROBES: Probes = Probes {
    after: Duration::from_secs(5),
    every: Duration::from_secs(3),
    count: 3,
};
/// How long a server is asked to keep a watch, in seconds.
const WATCH_S: u32 = 600;
/// Nodes asked for at once.
const PAGE_NODES: usize = 500;
/// Nodes that are read at most.
const NODES_MAX: usize = 65_536;
/// Octets of an answer that are read; a Node has about 20,000.
const ANSWER_OCTETS_MAX: u64 = 128 << 20;
/// Octets of an event of a watch; the store takes objects of 1.5 MB.
const LINE_OCTETS_MAX: u64 = 8 << 20;
