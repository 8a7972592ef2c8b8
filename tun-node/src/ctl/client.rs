//! Asking a running node.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::frame::{self, FrameError, REQUEST_OCTETS_MAX, RESPONSE_OCTETS_MAX};
use super::message::{Request, Response, RouteReport};

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects to the node that listens at `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotRunning`], [`ClientError::NotPermitted`], [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let at = || path.to_owned();
        let stream = UnixStream::connect(path).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ECONNREFUSED) => ClientError::NotRunning { path: at() },
            Some(libc::EACCES | libc::EPERM) => ClientError::NotPermitted { path: at() },
            Some(_) | None => ClientError::Connect { path: at(), source },
        })?;
        let deadline = Some(ANSWER_TIMEOUT);
        stream
            .set_read_timeout(deadline)
            .and_then(|()| stream.set_write_timeout(deadline))
            .map_err(|source| ClientError::Connect { path: at(), source })?;
        Ok(Self { path: at(), stream })
    }

    /// Asks one question and waits for the answer, at most 5 s.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silent`] when the node does not answer, [`ClientError::Refused`] when it says
    /// that it cannot, [`ClientError::Frame`] when it does not speak as this program does.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let path = || self.path.clone();
        let process = self.process();
        let failed = |source| {
            // What a socket says whose deadline is over.
            if let FrameError::Io(error) = &source
                && error.kind() == io::ErrorKind::WouldBlock
            {
                let process = process.clone();
                return ClientError::Silent {
                    path: path(),
                    process,
                };
            }
            ClientError::Frame {
                path: path(),
                source,
            }
        };
        frame::write::<_, REQUEST_OCTETS_MAX>(&mut self.stream, request).map_err(failed)?;
        let answer = frame::read::<Response, RESPONSE_OCTETS_MAX>(&mut self.stream);
        match answer.map_err(failed)? {
            Some(Response::Error(sentence)) => Err(ClientError::Refused(sentence)),
            Some(response) => Ok(response),
            None => Err(ClientError::Closed { path: path() }),
        }
    }

    /// The process that listens, in words to follow a name; empty where it is not known.
    fn process(&self) -> String {
        match getsockopt(&self.stream, PeerCredentials) {
            // 0: in a namespace that this process does not see.
            Ok(peer) if peer.pid() > 0 => format!(" (process {})", peer.pid()),
            Ok(_) | Err(_) => String::new(),
        }
    }

    /// All routes, of one generation.
    ///
    /// # Errors
    ///
    /// As [`Self::ask`].
    pub fn routes(&mut self) -> Result<Vec<RouteReport>, ClientError> {
        let mut all: Vec<RouteReport> = Vec::new();
        let mut generation = None;
        loop {
            let first = u32::try_from(all.len()).unwrap_or(u32::MAX);
            let Response::Routes {
                routes,
                epoch,
                total,
            } = self.ask(&Request::Routes { first })?
            else {
                return Err(ClientError::Unexpected);
            };
            if generation.replace(epoch).is_some_and(|seen| seen != epoch) {
                all.clear();
                continue;
            }
            let is_last = routes.is_empty();
            all.extend(routes);
            if is_last || all.len() >= usize::try_from(total).unwrap_or(usize::MAX) {
                return Ok(all);
            }
        }
    }
}

/// Why a node did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error(
        "no node listens at {}: start one with `tun-node run`, or name its socket with --socket",
        path.display()
    )]
    NotRunning {
        /// Where.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error(
        "the control socket {} belongs to another user: ask as the user that runs the node, or as root",
        path.display()
    )]
    NotPermitted {
        /// Where.
        path: PathBuf,
    },
    /// The connection failed otherwise.
    #[error("connecting to {}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The question or the answer did not pass.
    #[error("asking the node at {}", path.display())]
    Frame {
        /// Where.
        path: PathBuf,
        /// Why.
        source: FrameError,
    },
    /// The node takes too long: it is stopped, or in a debugger.
    #[error(
        "the node at {}{process} does not answer within {} s",
        path.display(),
        ANSWER_TIMEOUT.as_secs()
    )]
    Silent {
        /// Where.
        path: PathBuf,
        /// Its process, in words; may be empty.
        process: String,
    },
    /// The node hung up: it ends, or the asker is of another user.
    #[error(
        "the node at {} hung up: it is ending, or serves only the user that runs it and root",
        path.display()
    )]
    Closed {
        /// Where.
        path: PathBuf,
    },
    /// The node says that it cannot.
    #[error("the node answers: {0}")]
    Refused(String),
    /// The answer belongs to another question.
    #[error("the node answered another question")]
    Unexpected,
}

/// How long an answer may take. The node gives its workers one second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
