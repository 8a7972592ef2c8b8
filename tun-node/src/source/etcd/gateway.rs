//! A client of etcd's JSON gateway: HTTP/1.1 over blocking sockets, with a limit for everything.
//!
//! Every request has a time limit and every answer a size limit. A member that does not answer in
//! time, or in whose place something else answers (a proxy's page, an etcd without the gateway), is
//! left for the next of the list. What only reads is tried at every member before it
//! fails; what writes fails at once, because it may have been done, and the agent looks again.
//!
//! Certificates and keys are read again before each request: who renews them need not tell anybody.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::json;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};

use super::store::{Answer, Condition, Failure, Header, KEYS_MAX, Kv, Request, Value};
use super::wire::{
    AuthResponse, ErrorResponse, LeaseResponse, RangeRequest, RangeResponse, Streamed, TxnResponse,
    WatchResponse, WireHeader, WireKv, base64, range_end,
};
use crate::flannel::printable;
use crate::source::http::{Timeouts, configs};
use crate::source::keepalive::{self, Probes};
use crate::source::renew::Renewed;

/// Where the cluster is and who asks.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Cluster {
    /// The members' client addresses: `http://` or `https://`, a host, a port. Not empty.
    pub endpoints: Vec<String>,
    /// The certificate authorities that members are believed by; needed for `https://`.
    pub ca: Option<PathBuf>,
    /// This node's certificate and key, where the members want one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name of a user and the file with the password, where the cluster has users. The file is
    /// read for every token, so that a new password needs no restart.
    pub user: Option<(String, PathBuf)>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .finish_non_exhaustive()
    }
}

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no member to ask.
    #[error("etcd: no endpoint is given")]
    NoEndpoint,
    /// A member's address is not one.
    #[error("etcd: {0} is no endpoint; write for example http://192.0.2.1:2379")]
    Endpoint(String),
    /// An `https://` endpoint without certificate authorities.
    #[error("etcd: {0} needs a file of certificate authorities (ca)")]
    NoAuthority(String),
    /// A file cannot be read.
    #[error("etcd: {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has no certificate or key.
    #[error("etcd: {path}: {what}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// A client, shared by the thread that asks and the thread that watches.
#[derive(Debug)]
pub struct Gateway {
    endpoints: Vec<String>,
    /// Which of them is asked.
    at: AtomicUsize,
    ca: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
    agents: Renewed<Pems, Agents>,
    user: Option<(String, PathBuf)>,
    token: Mutex<Option<String>>,
    prefix: String,
}

/// A member that is asked something.
#[derive(Clone, Copy, Debug)]
struct Member<'g> {
    number: usize,
    endpoint: &'g str,
}

/// The connections: those of requests, and those of watches.
#[derive(Debug)]
struct Agents {
    http: ureq::Agent,
    stream: ureq::Agent,
}

/// What stands in the files of certificates.
#[derive(Default, Eq, PartialEq)]
struct Pems {
    ca: Option<Pem>,
    certificate: Option<(Pem, Pem)>,
}

/// A file and what stands in it.
#[derive(Eq, PartialEq)]
struct Pem {
    path: PathBuf,
    octets: Vec<u8>,
}

impl std::fmt::Debug for Pems {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pems").finish_non_exhaustive()
    }
}

impl Gateway {
    /// Makes a client for the keys below `prefix`. Asks nothing yet.
    ///
    /// # Errors
    ///
    /// [`ClusterError`] when the description is unusable.
    pub fn new(cluster: &Cluster, prefix: &str) -> Result<Self, ClusterError> {
        if cluster.endpoints.is_empty() {
            return Err(ClusterError::NoEndpoint);
        }
        let mut endpoints = Vec::new();
        for endpoint in &cluster.endpoints {
            let endpoint = endpoint.trim_end_matches('/').to_owned();
            let secure = endpoint.starts_with("https://");
            if !secure && !endpoint.starts_with("http://") {
                return Err(ClusterError::Endpoint(endpoint));
            }
            if secure && cluster.ca.is_none() {
                return Err(ClusterError::NoAuthority(endpoint));
            }
            endpoints.push(endpoint);
        }
        let pems = Pems::read(cluster.ca.as_ref(), cluster.certificate.as_ref())?;
        let agents = Agents::new(&pems)?;
        if let Some((_, path)) = &cluster.user {
            password(path)?;
        }
        Ok(Self {
            endpoints,
            at: AtomicUsize::new(0),
            ca: cluster.ca.clone(),
            certificate: cluster.certificate.clone(),
            agents: Renewed::new(pems, agents),
            user: cluster.user.clone(),
            token: Mutex::new(None),
            prefix: prefix.to_owned(),
        })
    }

    /// Carries out a request.
    ///
    /// # Errors
    ///
    /// [`Failure`]: nobody answered, or a member said no.
    pub fn carry_out(&self, request: &Request) -> Result<Answer, Failure> {
        match request {
            Request::List => self.reading(Self::list),
            Request::Count => self.reading(|gateway| {
                let range = RangeRequest {
                    count_only: true,
                    ..gateway.everything()
                };
                let (member, answer) = gateway.ask::<RangeResponse>("kv/range", &range)?;
                Ok(Answer::Counted {
                    header: gateway.header(member, "kv/range", answer.header)?,
                    count: usize::try_from(answer.count.0).unwrap_or(usize::MAX),
                })
            }),
            Request::Ping { key } => self.reading(|gateway| {
                let range = RangeRequest {
                    key: base64(key.as_bytes()),
                    keys_only: true,
                    ..RangeRequest::default()
                };
                let (member, answer) = gateway.ask::<RangeResponse>("kv/range", &range)?;
                Ok(Answer::Pong {
                    mod_revision: answer.kvs.first().map(|kv| kv.mod_revision()),
                    header: gateway.header(member, "kv/range", answer.header)?,
                })
            }),
            Request::Grant { ttl_s } => {
                let body = json!({ "TTL": ttl_s.to_string() });
                let (_, lease) = self.ask::<LeaseResponse>("lease/grant", &body)?;
                Ok(Answer::Granted {
                    lease: lease.id.0,
                    ttl_s: lease.ttl.0,
                })
            }
            Request::Renew { lease } => {
                let body = json!({ "ID": lease.to_string() });
                let (_, answer) = self.ask::<Streamed<LeaseResponse>>("lease/keepalive", &body)?;
                let lease = answer.result.unwrap_or_default();
                Ok(Answer::Renewed { ttl_s: lease.ttl.0 })
            }
            Request::Revoke { lease } => {
                let body = json!({ "ID": lease.to_string() });
                self.ask::<serde_json::Value>("lease/revoke", &body)?;
                Ok(Answer::Done)
            }
            Request::Put {
                key,
                condition,
                value,
                lease,
            } => {
                let key64 = base64(key.as_bytes());
                let compare = match condition {
                    Condition::Absent => {
                        // No key of this IPv4 address, whatever its length or IPv6 part.
                        let address = key.rfind('-').map_or(key.as_str(), |_| {
                            let name = key.rfind('/').map_or(0, |at| at + 1);
                            let dash = key.get(name..).and_then(|name| name.find('-'));
                            dash.and_then(|dash| key.get(..=name + dash)).unwrap_or(key)
                        });
                        let end = range_end(address.as_bytes());
                        json!({
                            "target": "CREATE", "result": "EQUAL", "create_revision": "0",
                            "key": base64(address.as_bytes()), "range_end": base64(&end),
                        })
                    }
                    Condition::Unchanged(revision) => json!({
                        "target": "MOD", "result": "EQUAL", "key": key64,
                        "mod_revision": revision.to_string(),
                    }),
                };
                let put = json!({
                    "key": key64, "value": base64(value.as_bytes()), "lease": lease.to_string(),
                });
                self.transact(compare, json!({ "request_put": put }))
            }
            Request::Delete { key, unchanged } => {
                let key64 = base64(key.as_bytes());
                let compare = json!({
                    "target": "MOD", "result": "EQUAL", "key": key64,
                    "mod_revision": unchanged.to_string(),
                });
                let delete = json!({ "request_delete_range": { "key": key64 } });
                self.transact(compare, delete)
            }
        }
    }

    /// Opens a watch of everything below the prefix, from a revision on.
    ///
    /// # Errors
    ///
    /// [`Failure`]: nobody answered, or a member said no.
    pub fn watch(&self, from: u64) -> Result<WatchStream, Failure> {
        let prefix = format!("{}/", self.prefix);
        let body = json!({ "create_request": {
            "key": base64(prefix.as_bytes()),
            "range_end": base64(&range_end(prefix.as_bytes())),
            "start_revision": from.to_string(),
            "progress_notify": true,
            "fragment": true,
        }});
        let (member, response) = self.send(&self.agents().stream, "watch", &body)?;
        if response.status() != 200 {
            return Err(self.refused(member, response));
        }
        let reader = response.into_body().into_with_config().limit(u64::MAX);
        Ok(WatchStream {
            reader: BufReader::with_capacity(64 << 10, reader.reader()),
            line: Vec::new(),
        })
    }

    /// The number of the member that is asked; another one after each that did not answer as a
    /// member does.
    #[must_use]
    pub fn member(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }

    /// Everything below the prefix, in pages, all of one revision.
    fn list(&self) -> Result<Answer, Failure> {
        let mut kvs: Vec<Kv> = Vec::new();
        let mut range = self.everything();
        let mut page = PAGE_KEYS;
        let mut header: Option<Header> = None;
        loop {
            range.limit = page.to_string();
            let (member, answer) = self.ask_within::<RangeResponse>("kv/range", &range)?;
            let answer = match answer {
                Some(answer) => answer,
                // More than is read at once: half as many, down to one whose value is left out.
                None if page > 1 => {
                    page = (page / 8).max(1);
                    continue;
                }
                None if !range.keys_only => {
                    range.keys_only = true;
                    continue;
                }
                None => return Err(Failure::Refused("etcd: a key is too large".to_owned())),
            };
            let (left_out, more) = (range.keys_only, answer.more);
            let this = self.header(member, "kv/range", answer.header)?;
            let known = *header.get_or_insert(this);
            let last = answer.kvs.last().and_then(WireKv::whole_key);
            for kv in answer.kvs {
                let Some(mut kv) = kv.read() else {
                    return Err(self.not_understood(member, "kv/range", "a key is not base64"));
                };
                if left_out {
                    kv.value = Value::TooLarge;
                }
                kvs.push(kv);
            }
            let Some(mut next) = last.filter(|_| more && kvs.len() < KEYS_MAX) else {
                return Ok(Answer::Listed { header: known, kvs });
            };
            next.push(0);
            range.key = base64(&next);
            range.revision = known.revision.to_string();
            if range.keys_only {
                range.keys_only = false;
            } else {
                page = (page * 2).min(PAGE_KEYS);
            }
        }
    }

    fn everything(&self) -> RangeRequest {
        let prefix = format!("{}/", self.prefix);
        RangeRequest {
            key: base64(prefix.as_bytes()),
            range_end: base64(&range_end(prefix.as_bytes())),
            ..RangeRequest::default()
        }
    }

    fn transact(
        &self,
        compare: serde_json::Value,
        success: serde_json::Value,
    ) -> Result<Answer, Failure> {
        let body = json!({ "compare": [compare], "success": [success] });
        let (member, answer) = self.ask::<TxnResponse>("kv/txn", &body)?;
        Ok(Answer::Written {
            header: self.header(member, "kv/txn", answer.header)?,
            succeeded: answer.succeeded,
        })
    }

    /// Asks every member, until one answers.
    fn reading(&self, ask: impl Fn(&Self) -> Result<Answer, Failure>) -> Result<Answer, Failure> {
        let mut last = None;
        for _ in &self.endpoints {
            match ask(self) {
                Err(failure @ Failure::Unreachable(_)) => last = Some(failure),
                answer => return answer,
            }
        }
        Err(last.unwrap_or_else(|| Failure::Unreachable("no endpoint".to_owned())))
    }

    /// Asks; what a member answered, and which.
    fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl serde::Serialize,
    ) -> Result<(Member<'_>, T), Failure> {
        match self.ask_within(method, body)? {
            (member, Some(answer)) => Ok((member, answer)),
            (member, None) => Err(self.not_understood(member, method, "it is too large")),
        }
    }

    /// Asks; `None` when the answer is larger than is read.
    fn ask_within<T: DeserializeOwned>(
        &self,
        method: &str,
        body: &impl serde::Serialize,
    ) -> Result<(Member<'_>, Option<T>), Failure> {
        let agents = self.agents();
        let (mut member, mut response) = self.send(&agents.http, method, body)?;
        if response.status() != 200 {
            let failure = self.refused(member, response);
            // A token has an end; a new one is asked for, once.
            if self.user.is_none() || self.token.lock().is_some() {
                return Err(failure);
            }
            (member, response) = self.send(&agents.http, method, body)?;
            if response.status() != 200 {
                return Err(self.refused(member, response));
            }
        }
        let octets = response.body_mut().with_config().limit(ANSWER_OCTETS_MAX);
        let octets = match octets.read_to_vec() {
            Ok(octets) => octets,
            Err(ureq::Error::BodyExceedsLimit(_)) => return Ok((member, None)),
            Err(error) => return Err(self.unreachable(member, method, &error)),
        };
        match serde_json::from_slice(&octets) {
            Ok(answer) => Ok((member, Some(answer))),
            Err(error) => Err(self.not_understood(member, method, &error.to_string())),
        }
    }

    /// Where the store is, which every answer says that is etcd's: a store begins with revision 1.
    fn header(
        &self,
        member: Member<'_>,
        method: &str,
        header: WireHeader,
    ) -> Result<Header, Failure> {
        let header = Header::from(header);
        if header.revision == 0 {
            return Err(self.not_understood(member, method, "it has no revision"));
        }
        Ok(header)
    }

    fn send(
        &self,
        agent: &ureq::Agent,
        method: &str,
        body: &impl serde::Serialize,
    ) -> Result<(Member<'_>, ureq::http::Response<ureq::Body>), Failure> {
        let member = self.asked();
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::Refused(format!("{method}: {error}")))?;
        let token = self.token(member)?;
        let mut request = agent.post(format!("{}/v3/{method}", member.endpoint));
        request = request.header("Content-Type", "application/json");
        if method == "watch" {
            // A member that lost the others ends the watch.
            request = request.header("Grpc-Metadata-hasleader", "true");
        }
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let response = request.send(&body);
        let response = response.map_err(|error| self.unreachable(member, method, &error))?;
        Ok((member, response))
    }

    fn token(&self, member: Member<'_>) -> Result<Option<String>, Failure> {
        let Some((name, path)) = &self.user else {
            return Ok(None);
        };
        if let Some(token) = self.token.lock().clone() {
            return Ok(Some(token));
        }
        let password = password(path).map_err(|error| Failure::Refused(error.to_string()))?;
        let body = json!({ "name": name, "password": password }).to_string();
        let url = format!("{}/v3/auth/authenticate", member.endpoint);
        let agents = self.agents();
        let request = agents
            .http
            .post(url)
            .header("Content-Type", "application/json");
        let sent = request.send(body.as_bytes());
        let mut response = sent.map_err(|error| self.unreachable(member, "auth", &error))?;
        if response.status() != 200 {
            return Err(self.refused(member, response));
        }
        let read = response
            .body_mut()
            .with_config()
            .limit(64 << 10)
            .read_to_vec();
        let read = read.map_err(|error| self.unreachable(member, "auth", &error))?;
        let answer: AuthResponse = serde_json::from_slice(&read)
            .map_err(|error| self.not_understood(member, "auth", &error.to_string()))?;
        *self.token.lock() = Some(answer.token.clone());
        Ok(Some(answer.token))
    }

    /// The connections with the certificates that the files have.
    fn agents(&self) -> Arc<Agents> {
        let read = |_: &Pems| Pems::read(self.ca.as_ref(), self.certificate.as_ref());
        self.agents.current("etcd", read, Agents::new)
    }

    /// The member to ask next.
    fn asked(&self) -> Member<'_> {
        let number = self.member();
        let at = number % self.endpoints.len().max(1);
        let endpoint = self.endpoints.get(at).map_or("", String::as_str);
        Member { number, endpoint }
    }

    fn unreachable(&self, member: Member<'_>, method: &str, error: &ureq::Error) -> Failure {
        self.leave(member);
        Failure::Unreachable(format!("{} {method}: {error}", member.endpoint))
    }

    /// What answered speaks otherwise than a member does.
    fn not_understood(&self, member: Member<'_>, method: &str, why: &str) -> Failure {
        self.leave(member);
        let endpoint = member.endpoint;
        Failure::Unreachable(format!(
            "{endpoint} {method}: the answer is not understood: {why}"
        ))
    }

    /// Asks the next member from here on. The one member of a short list is asked again, but its
    /// watch is opened anew.
    fn leave(&self, member: Member<'_>) {
        // Once, though the thread that asks and the one that watches may both find a reason.
        let (from, to) = (member.number, member.number.wrapping_add(1));
        let order = Ordering::Relaxed;
        let _ = self.at.compare_exchange(from, to, order, order);
    }

    /// What an answer other than 200 means.
    fn refused(
        &self,
        member: Member<'_>,
        mut response: ureq::http::Response<ureq::Body>,
    ) -> Failure {
        let endpoint = member.endpoint;
        let status = response.status();
        let body = response.body_mut().with_config().limit(64 << 10);
        let body = body.read_to_vec().unwrap_or_default();
        let error: ErrorResponse = serde_json::from_slice(&body).unwrap_or_default();
        let is_of_etcd = error.is_of_etcd();
        let message = match error.error.as_str() {
            _ if !error.message.is_empty() => error.message,
            Some(text) => text.to_owned(),
            None => String::from_utf8_lossy(&body).into_owned(),
        };
        let message = printable(message.as_bytes());
        if message.contains("requested lease not found") {
            return Failure::NoSuchLease;
        }
        let token = [
            "invalid auth token",
            "user name is empty",
            "revision of auth store is old",
        ];
        if token.iter().any(|reason| message.contains(reason)) {
            *self.token.lock() = None;
            return Failure::Refused(format!("{endpoint}: {message}"));
        }
        let why = format!("{endpoint}: {status}: {message}");
        // No leader, a member that is not ready, or no member at all: another one may be.
        if status.as_u16() >= 500 || status == 408 || status == 429 || !is_of_etcd {
            self.leave(member);
            Failure::Unreachable(why)
        } else {
            Failure::Refused(why)
        }
    }
}

/// A watch that is open.
pub struct WatchStream {
    reader: BufReader<ureq::BodyReader<'static>>,
    line: Vec<u8>,
}

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchStream").finish_non_exhaustive()
    }
}

/// Why a watch gave nothing more.
#[derive(Debug)]
pub(super) enum StreamEnd {
    /// Nothing happened for a while; it can be opened again where it ended.
    Idle,
    /// It broke.
    Broken(String),
}

impl WatchStream {
    /// Waits for the next message.
    pub(super) fn next(&mut self) -> Result<WatchResponse, StreamEnd> {
        let broken = |why: &str| StreamEnd::Broken(why.to_owned());
        self.line.clear();
        let mut limited = (&mut self.reader).take(LINE_OCTETS_MAX);
        match limited.read_until(b'\n', &mut self.line) {
            Ok(0) => return Err(broken("the member closed it")),
            Ok(_) if self.line.last() != Some(&b'\n') => {
                return Err(broken("a message is cut off or too large"));
            }
            Ok(_) => {}
            Err(error) if is_timeout(&error) && self.line.is_empty() => {
                return Err(StreamEnd::Idle);
            }
            Err(error) => return Err(StreamEnd::Broken(error.to_string())),
        }
        let message: Streamed<WatchResponse> = serde_json::from_slice(&self.line)
            .map_err(|error| StreamEnd::Broken(format!("not understood: {error}")))?;
        if let Some(error) = message.error {
            let error = error.to_string();
            return Err(StreamEnd::Broken(printable(error.as_bytes())));
        }
        message.result.ok_or_else(|| broken("an empty message"))
    }
}

/// Whether nothing was read in time.
fn is_timeout(error: &std::io::Error) -> bool {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ureq::Error>());
    matches!(inner, Some(ureq::Error::Timeout(_)))
        || matches!(
            error.kind(),
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock
        )
}

/// The password in a file, without the end of its line.
fn password(path: &Path) -> Result<String, ClusterError> {
    let text = std::fs::read_to_string(path).map_err(|source| ClusterError::File {
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl Agents {
    fn new(pems: &Pems) -> Result<Self, ClusterError> {
        let tls = pems.tls()?;
        let (http, stream) = configs(&tls, TIMEOUTS);
        Ok(Self {
            http: http.new_agent(),
            stream: keepalive::agent(stream, PROBES),
        })
    }
}

impl Pems {
    fn read(
        ca: Option<&PathBuf>,
        certificate: Option<&(PathBuf, PathBuf)>,
    ) -> Result<Self, ClusterError> {
        let pair = certificate.map(|(certificate, key)| -> Result<_, ClusterError> {
            Ok((Pem::read(certificate)?, Pem::read(key)?))
        });
        Ok(Self {
            ca: ca.map(Pem::read).transpose()?,
            certificate: pair.transpose()?,
        })
    }

    fn tls(&self) -> Result<TlsConfig, ClusterError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
        if let Some(ca) = &self.ca {
            tls = tls.root_certs(RootCerts::from(ca.certificates()?.into_iter()));
        }
        if let Some((certificate, key)) = &self.certificate {
            let chain = certificate.certificates()?;
            let key = PrivateKey::from_pem(&key.octets).map_err(|error| key.wrong(&error))?;
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
        }
        Ok(tls.build())
    }
}

impl Pem {
    fn read(path: &PathBuf) -> Result<Self, ClusterError> {
        let octets = std::fs::read(path).map_err(|source| ClusterError::File {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            path: path.clone(),
            octets,
        })
    }

    fn certificates(&self) -> Result<Vec<Certificate<'static>>, ClusterError> {
        let mut found = Vec::new();
        for item in ureq::tls::parse_pem(&self.octets) {
            if let PemItem::Certificate(certificate) = item.map_err(|error| self.wrong(&error))? {
                found.push(certificate);
            }
        }
        if found.is_empty() {
            return Err(self.wrong(&"there is no certificate in it"));
        }
        Ok(found)
    }

    fn wrong(&self, what: &dyn std::fmt::Display) -> ClusterError {
        ClusterError::Pem {
            path: self.path.clone(),
            what: what.to_string(),
        }
    }
}

/// A black hole is noticed by the ping that it swallows; a silent watch is opened again where it
/// was.
const TIMEOUTS: Timeouts = Timeouts {
    step: Duration::from_millis(1200),
    body: Duration::from_secs(10),
    silence: Duration::from_secs(30),
};
/// A member that was killed while nothing passed knows nothing of the watch and says so when it is
/// probed: 1 s after the way is there again at the latest.
const PROBES: Probes = Probes {
    after: Duration::from_secs(1),
    every: Duration::from_secs(1),
    count: 12,
};
/// Keys asked for at once, where their values are small.
const PAGE_KEYS: usize = 1000;
/// Octets of an answer that are read.
const ANSWER_OCTETS_MAX: u64 = 8 << 20;
/// Octets of a message of a watch.
const LINE_OCTETS_MAX: u64 = 32 << 20;

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
