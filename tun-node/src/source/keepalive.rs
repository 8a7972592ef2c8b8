//! Connections that notice when nobody is there any more.
//!
//! A watch may be silent for a minute because nothing happens. Whether the way to the server still
//! exists shows only when something is sent, and on a watch the client sends nothing: so the
//! kernel is asked to probe (RFC 9293 section 3.8.4). ureq's own connector sets no socket options,
//! hence this one, by the interface that ureq has for it.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use ureq::config::Config;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, RustlsConnector, Transport,
};
use ureq::{Agent, Error, Timeout};

/// When a silent connection is probed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probes {
    /// Silence before the first probe.
    pub(super) after: Duration,
    /// Between a probe that was not answered and the next.
    pub(super) every: Duration,
    /// As many without an answer end the connection.
    pub(super) count: u32,
}

/// A client whose connections are probed.
pub(super) fn agent(config: Config, probes: Probes) -> Agent {
    let connector = KeepaliveConnector { probes }.chain(RustlsConnector::default());
    Agent::with_parts(config, connector, DefaultResolver::default())
}

#[derive(Debug)]
struct KeepaliveConnector {
    probes: Probes,
}

impl Connector<()> for KeepaliveConnector {
    type Out = KeepaliveTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _chained: Option<()>,
    ) -> Result<Option<KeepaliveTransport>, Error> {
        let limit = details.timeout.not_zero().map_or(CONNECT, |limit| *limit);
        let mut last = Error::ConnectionFailed;
        for address in &details.addrs {
            match TcpStream::connect_timeout(address, limit) {
                Ok(stream) => {
                    let transport = KeepaliveTransport::new(stream, details, self.probes)?;
                    return Ok(Some(transport));
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }
}

struct KeepaliveTransport {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
}

impl KeepaliveTransport {
    fn new(
        stream: TcpStream,
        details: &ConnectionDetails<'_>,
        probes: Probes,
    ) -> Result<Self, Error> {
        stream.set_nodelay(true)?;
        let probes = TcpKeepalive::new()
            .with_time(probes.after)
            .with_interval(probes.every)
            .with_retries(probes.count);
        SockRef::from(&stream).set_tcp_keepalive(&probes)?;
        let config = details.config;
        let sizes = (config.input_buffer_size(), config.output_buffer_size());
        Ok(Self {
            stream: Arc::new(stream),
            buffers: LazyBuffers::new(sizes.0, sizes.1),
        })
    }
}

impl fmt::Debug for KeepaliveTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepaliveTransport").finish_non_exhaustive()
    }
}

impl Transport for KeepaliveTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let limit = timeout.not_zero().map(|limit| *limit);
        self.stream.set_write_timeout(limit)?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        (&*self.stream)
            .write_all(output)
            .map_err(|error| timed_out(error, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let limit = timeout.not_zero().map(|limit| *limit);
        self.stream.set_read_timeout(limit)?;
        let input = self.buffers.input_append_buf();
        let read = loop {
            match (&*self.stream).read(input) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let octets = read.map_err(|error| timed_out(error, timeout.reason))?;
        self.buffers.input_appended(octets);
        Ok(octets > 0)
    }

    fn is_open(&mut self) -> bool {
        // Its connections serve one request each.
        false
    }
}

/// A limit that ran out, by its own name.
fn timed_out(error: std::io::Error, reason: Timeout) -> Error {
    // The kernel's own, when its probes were not answered, is `TimedOut`.
    if error.kind() == std::io::ErrorKind::WouldBlock {
        Error::Timeout(reason)
    } else {
        error.into()
    }
}

/// How long to try one address where no limit is left.
const CONNECT: Duration = Duration::from_secs(4);
