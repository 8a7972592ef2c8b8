//! The node's side of the control socket.
//!
//! One thread accepts; each client has a thread of its own, at most [`CLIENTS_MAX`] at once, and
//! [`IDLE_TIMEOUT`] to say something. What a question means is the business of a [`Handler`].

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use tracing::{debug, warn};

use super::frame::{self, FrameError, REQUEST_OCTETS_MAX, RESPONSE_OCTETS_MAX};
use super::message::{Request, Response};

/// Answers questions; called from several threads at once.
pub trait Handler: Send + Sync + 'static {
    /// The answer to `request`. May take its time: only this client waits.
    fn answer(&self, request: Request) -> Response;
}

/// A control socket that listens. Removes its file when dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    made_directory: bool,
    inode: u64,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path` and serves questions by `handler`.
    ///
    /// A socket that a dead node left there is removed first. The directory is made, with mode
    /// 0700, where it is missing.
    ///
    /// # Errors
    ///
    /// [`ServerError`]; [`ServerError::InUse`] when a node listens there.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> Result<Self, ServerError> {
        // A dead node could not remove the directory that it made.
        let made_directory = prepare_directory(path)? | remove_stale(path)?;
        let at = || path.to_owned();
        let listener =
            UnixListener::bind(path).map_err(|source| ServerError::Bind { path: at(), source })?;
        let inode = fs::set_permissions(path, Permissions::from_mode(0o600))
            .and_then(|()| fs::symlink_metadata(path))
            .map_err(|source| ServerError::Bind { path: at(), source })?
            .ino();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn({
                let stop = Arc::clone(&stop);
                move || accept_until(&listener, &handler, &stop)
            })
            .map_err(|source| ServerError::Bind { path: at(), source })?;
        Ok(Self {
            path: at(),
            made_directory,
            inode,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread out of `accept`.
        drop(UnixStream::connect(&self.path));
        // Another node's socket, if someone removed ours meanwhile, is not ours to remove.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
        if self.made_directory
            && let Some(directory) = self.path.parent()
        {
            // Fails, as it should, while another node has its socket there.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A node listens there already.
    #[error(
        "a node listens at {} already: stop it first, or give this one another `control.socket`",
        path.display()
    )]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else than a socket is there.
    #[error("{} is there and is no socket; it was left alone", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// The directory is not safe to have a socket in.
    #[error(
        "the directory {} must belong to this user and be writable by nobody else",
        path.display()
    )]
    Directory {
        /// Which.
        path: PathBuf,
    },
    /// The socket or its directory could not be made.
    #[error(
        "control socket {} (--socket or `control.socket` names another)",
        path.display()
    )]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the directory of `path` if it is missing and returns whether it was.
fn prepare_directory(path: &Path) -> Result<bool, ServerError> {
    let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) else {
        return Ok(false);
    };
    let failed = |source| ServerError::Bind {
        path: path.to_owned(),
        source,
    };
    let made = match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(directory).map_err(failed)?;
            true
        }
        Err(error) => return Err(failed(error)),
    };
    // In a directory where others may write, they could put a socket of their own in our place.
    // The sticky bit of /tmp prevents that.
    let metadata = fs::metadata(directory).map_err(failed)?;
    let others_write = metadata.mode() & 0o022 != 0;
    let is_sticky = metadata.mode() & 0o1000 != 0;
    let is_ours = metadata.uid() == geteuid().as_raw() || metadata.uid() == 0;
    if !is_ours || (others_write && !is_sticky) {
        return Err(ServerError::Directory {
            path: directory.to_owned(),
        });
    }
    Ok(made)
}

/// Removes a socket at `path` that nobody listens at and returns whether there was one.
fn remove_stale(path: &Path) -> Result<bool, ServerError> {
    let failed = |source| ServerError::Bind {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServerError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServerError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map(|()| true).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn accept_until(listener: &UnixListener, handler: &Arc<dyn Handler>, stop: &AtomicBool) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, for example: it passes.
                warn!(%error, "control socket: accept");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Some(seat) = Seat::take(&clients) else {
            debug!("control socket: too many clients");
            continue;
        };
        let handler = Arc::clone(handler);
        let client = move || {
            let _seat = seat;
            if let Err(error) = serve(stream, handler.as_ref()) {
                debug!(%error, "control socket: client");
            }
        };
        if let Err(error) = thread::Builder::new()
            .name("control-client".to_owned())
            .spawn(client)
        {
            warn!(%error, "control socket: thread");
        }
    }
}

/// One of the [`CLIENTS_MAX`] places; given back when dropped.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < CLIENTS_MAX).then_some(count + 1)
            })
            .ok()
            .map(|_| Self(Arc::clone(taken)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(mut stream: UnixStream, handler: &dyn Handler) -> Result<(), FrameError> {
    let credentials =
        getsockopt(&stream, PeerCredentials).map_err(|errno| FrameError::Io(errno.into()))?;
    if !may_ask(credentials.uid(), geteuid().as_raw()) {
        warn!(uid = credentials.uid(), "control socket: user refused");
        return Ok(());
    }
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    converse(&mut stream, handler)
}

/// Answers every question that `stream` brings, one after the other, until it ends.
///
/// The first frame that is no question is answered by a [`Response::Error`], and nothing behind it
/// is read. So is an answer replaced that is longer than a frame may be, and questions go on.
///
/// # Errors
///
/// [`FrameError`]: what the stream brought is no question, or the stream failed.
pub fn converse(
    stream: &mut (impl io::Read + io::Write),
    handler: &dyn Handler,
) -> Result<(), FrameError> {
    loop {
        let response = match frame::read::<Request, REQUEST_OCTETS_MAX>(stream) {
            Ok(Some(request)) => handler.answer(request),
            Ok(None) => return Ok(()),
            Err(FrameError::Io(error)) => return Err(error.into()),
            Err(error) => {
                let response = Response::Error(error.to_string());
                let _ = frame::write::<_, RESPONSE_OCTETS_MAX>(stream, &response);
                return Err(error);
            }
        };
        match frame::write::<_, RESPONSE_OCTETS_MAX>(stream, &response) {
            // Nothing of it was written, and who asked should know why.
            Err(FrameError::TooLong { octets, max }) => {
                let text =
                    format!("the answer has {octets} octets, more than the {max} of a frame");
                frame::write::<_, RESPONSE_OCTETS_MAX>(stream, &Response::Error(text))?;
            }
            written => written?,
        }
    }
}

/// Whether the user `peer` may ask a node that runs as `own`.
const fn may_ask(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

/// Clients served at once; further ones are hung up on.
pub const CLIENTS_MAX: usize = 16;

/// How long a client may be silent, or slow to read.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::client::{Client, ClientError};
    use crate::ctl::message::Response;

    struct Echo;

    impl Handler for Echo {
        fn answer(&self, request: Request) -> Response {
            match request {
                Request::Status
                | Request::Peers
                | Request::Counters
                | Request::Explain(_)
                | Request::Prefer { .. }
                | Request::Fault(_)
                | Request::Sources
                | Request::Why { .. }
                | Request::Events { .. }
                | Request::Confirm { .. }
                | Request::Reload { .. } => Response::Done,
                Request::Routes { first } => Response::Error(format!("no route {first}")),
            }
        }
    }

    fn start(path: &Path) -> Result<Server, ServerError> {
        Server::start(path, Arc::new(Echo))
    }

    #[test]
    fn a_client_is_answered_and_the_socket_is_private_and_goes_with_the_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run").join("n.sock");
        let server = start(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.ask(&Request::Status).unwrap(), Response::Done);
        let refused = client.ask(&Request::Routes { first: 3 }).unwrap_err();
        assert!(matches!(refused, ClientError::Refused(text) if text == "no route 3"));
        drop(server);
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }

    #[test]
    fn a_live_socket_is_respected_and_a_dead_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("other"), "").unwrap();
        let path = directory.path().join("n.sock");
        let first = start(&path).unwrap();
        assert!(matches!(start(&path), Err(ServerError::InUse { .. })));
        drop(first);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead process leaves its socket behind");
        let second = start(&path).unwrap();
        assert!(Client::connect(&path).is_ok());
        drop(second);
        fs::write(&path, "precious").unwrap();
        assert!(matches!(start(&path), Err(ServerError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_place_that_cannot_be_had_is_told_with_the_ways_to_another() {
        let path = Path::new("/proc/no/n.sock");
        let sentence = start(path).unwrap_err().to_string();
        let told = "control socket /proc/no/n.sock (--socket or `control.socket` names another)";
        assert_eq!(sentence, told);
    }

    #[test]
    fn one_client_too_many_is_hung_up_on_and_a_place_given_back_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n.sock");
        let _server = start(&path).unwrap();
        let mut seated: Vec<Client> = (0..CLIENTS_MAX)
            .map(|_| {
                let mut client = Client::connect(&path).unwrap();
                client.ask(&Request::Status).unwrap();
                client
            })
            .collect();
        let mut one_more = Client::connect(&path).unwrap();
        assert!(one_more.ask(&Request::Status).is_err());
        seated.pop();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while Client::connect(&path)
            .unwrap()
            .ask(&Request::Status)
            .is_err()
        {
            assert!(std::time::Instant::now() < deadline);
        }
    }

    #[test]
    fn garbage_gets_a_sentence_and_is_hung_up_on() {
        use std::io::{Read, Write};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n.sock");
        let _server = start(&path).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let response = frame::read::<Response, RESPONSE_OCTETS_MAX>(&mut answer.as_slice());
        assert!(matches!(response, Ok(Some(Response::Error(_)))));
    }

    #[test]
    fn an_answer_that_is_too_long_is_replaced_by_a_sentence_and_questions_go_on() {
        struct Verbose;
        impl Handler for Verbose {
            fn answer(&self, _: Request) -> Response {
                Response::Error("x".repeat(RESPONSE_OCTETS_MAX))
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n.sock");
        let _server = Server::start(&path, Arc::new(Verbose)).unwrap();
        let mut client = Client::connect(&path).unwrap();
        for _ in 0..2 {
            let error = client.ask(&Request::Counters).unwrap_err();
            let ClientError::Refused(text) = error else {
                panic!("{error}");
            };
            assert!(text.starts_with("the answer has 4194"), "{text}");
        }
    }

    #[test]
    fn only_the_own_user_and_root_may_ask() {
        assert!(may_ask(1000, 1000) && may_ask(0, 1000) && may_ask(0, 0));
        assert!(!may_ask(1000, 0) && !may_ask(1000, 1001));
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        let refused = start(&open.join("n.sock"));
        assert!(matches!(refused, Err(ServerError::Directory { .. })));
    }
}
