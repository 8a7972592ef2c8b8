//! TLS in front of a server that has none: a proxy that ends it, asks for a client certificate, and
//! is given other certificates while it runs. The certificates are openssl's.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// One authority, and a server's and a client's certificate of it.
pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Makes it in a folder of its own; `None`, with the reason printed, where there is no openssl.
    pub(crate) fn new(folder: &Path, name: &str) -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("skipped: no openssl here");
            return None;
        }
        let authority = Self {
            folder: folder.join(name),
        };
        std::fs::create_dir(&authority.folder).unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        authority.openssl(&format!(
            "req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN={name}"
        ));
        let names = authority.path("names");
        std::fs::write(names, "subjectAltName=IP:127.0.0.1\n").unwrap();
        for who in ["server", "client"] {
            authority.openssl(&format!(
                "req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"
            ));
            authority.openssl(&format!(
                "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
                 -extfile names -out {who}.pem"
            ));
        }
        Some(authority)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Puts authority, certificate and key of the client where a node reads them.
    pub(crate) fn issue(&self, folder: &Path) {
        for file in ["ca.pem", "client.pem", "client.key"] {
            std::fs::copy(self.path(file), folder.join(file)).unwrap();
        }
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
    }

    fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.path("ca.pem")).unwrap();
        roots.add(ca).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::<rustls::crypto::CryptoProvider>::clone(&provider),
        );
        let chain = CertificateDer::from_pem_file(self.path("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![chain], key);
        Arc::new(config.unwrap())
    }
}

/// The proxy. Its threads end with their connections and with the process.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: parking_lot::Mutex<Arc<ServerConfig>>,
    /// Connections of an earlier generation end.
    generation: AtomicU64,
}

impl Proxy {
    /// In front of a server on this host.
    pub(crate) fn start(to: SocketAddr, authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: parking_lot::Mutex::new(authority.server()),
            generation: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let shared = Arc::clone(&serving);
                // A peer that goes, or is not believed, is no fault of the proxy.
                std::thread::spawn(move || drop(carry(&shared, stream, to)));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Has another certificate and believes other clients from here on, and ends all connections.
    pub(crate) fn renew(&self, authority: &Authority) {
        *self.shared.server.lock() = authority.server();
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
    }
}

fn carry(shared: &Shared, stream: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let generation = shared.generation.load(Ordering::SeqCst);
    let config = Arc::clone(&shared.server.lock());
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut plain = TcpStream::connect(to)?;
    for socket in [&stream, &plain] {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(2)))?;
    }
    let mut secure = StreamOwned::new(connection, stream);
    while shared.generation.load(Ordering::SeqCst) == generation {
        if !pass(&mut secure, &mut plain)? || !pass(&mut plain, &mut secure)? {
            break;
        }
    }
    Ok(())
}

/// Passes on what is there; whether more may come.
fn pass(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<bool> {
    let mut octets = [0; 16 << 10];
    match from.read(&mut octets) {
        Ok(0) => Ok(false),
        Ok(read) => {
            to.write_all(&octets[..read])?;
            to.flush()?;
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}
