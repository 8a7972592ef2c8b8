//! Where the API server is and who asks: the service account of a Pod, or a kubeconfig.
//!
//! Of a kubeconfig the current context is used, with a certificate authority, a client certificate
//! or a token, each in the file itself (`...-data`) or beside it. What would run a program
//! (`exec`, `auth-provider`), ask for no proof of who answers (`insecure-skip-tls-verify`), or is
//! not understood is refused by name and never passed over in silence: the client would be someone
//! else than was meant.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use yaml_rust2::{Yaml, YamlLoader};

/// How the API is reached.
#[derive(Clone, Eq, PartialEq)]
pub struct Access {
    /// `https://HOST:PORT`, without a slash at the end; `http://` for a proxy on this host.
    pub server: String,
    /// The certificate authorities that the server is believed by, in PEM; none for `http://`.
    pub ca: Option<Vec<u8>>,
    /// This client's certificate and key, in PEM.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// What is said in the header `Authorization`.
    pub token: Option<Token>,
    /// Where all this was read, and is read again.
    pub origin: Origin,
}

/// Where an [`Access`] was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nowhere: it was given as it is, and stays.
    Given,
    /// In the folder of a Pod's service account, where the certificate authorities change.
    ServiceAccount(PathBuf),
    /// In a kubeconfig and the files that it names.
    Kubeconfig(PathBuf),
}

/// A bearer token.
#[derive(Clone, Eq, PartialEq)]
pub enum Token {
    /// This one.
    Fixed(String),
    /// The one in a file, which changes: it is read again for each request.
    File(PathBuf),
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(_) => f.write_str("Fixed"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// Why the API cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no service account here.
    #[error(
        "kubernetes: no kubeconfig is given and this is no Pod: {0} is not set; name a kubeconfig"
    )]
    NoPod(&'static str),
    /// A file cannot be read.
    #[error("kubernetes: {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kubeconfig is no kubeconfig, or has something that is not used here.
    #[error("kubernetes: kubeconfig {}: {what}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A certificate or key is none.
    #[error("kubernetes: {0}")]
    Pem(String),
}

impl Access {
    /// The service account that a Pod is given. `variable` reads the environment.
    ///
    /// # Errors
    ///
    /// [`AccessError::NoPod`], [`AccessError::File`].
    pub fn in_cluster(variable: impl Fn(&str) -> Option<String>) -> Result<Self, AccessError> {
        Self::service_account(variable, Path::new(SERVICE_ACCOUNT))
    }

    fn service_account(
        variable: impl Fn(&str) -> Option<String>,
        folder: &Path,
    ) -> Result<Self, AccessError> {
        let need = |name| variable(name).ok_or(AccessError::NoPod(name));
        let host = need("KUBERNETES_SERVICE_HOST")?;
        let port = need("KUBERNETES_SERVICE_PORT")?;
        let host = match host.parse() {
            Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
            Ok(IpAddr::V4(_)) | Err(_) => host,
        };
        let token = folder.join("token");
        // Whoever has no token would be told only that nobody may do anything.
        read(&token)?;
        Ok(Self {
            server: format!("https://{host}:{port}"),
            ca: Some(read(&folder.join("ca.crt"))?),
            certificate: None,
            token: Some(Token::File(token)),
            origin: Origin::ServiceAccount(folder.to_owned()),
        })
    }

    /// The same as its files have it by now.
    ///
    /// # Errors
    ///
    /// Those that it was read with the first time.
    pub fn again(&self) -> Result<Self, AccessError> {
        match &self.origin {
            Origin::Given => Ok(self.clone()),
            Origin::Kubeconfig(path) => Self::kubeconfig(path),
            Origin::ServiceAccount(folder) => Ok(Self {
                ca: Some(read(&folder.join("ca.crt"))?),
                ..self.clone()
            }),
        }
    }

    /// What the current context of a kubeconfig says.
    ///
    /// # Errors
    ///
    /// [`AccessError::File`], [`AccessError::Kubeconfig`].
    pub fn kubeconfig(path: &Path) -> Result<Self, AccessError> {
        let text = read(path)?;
        let wrong = |what: String| AccessError::Kubeconfig {
            path: path.to_owned(),
            what,
        };
        let text = String::from_utf8(text).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let config = YamlLoader::load_from_str(&text)
            .map_err(|error| wrong(format!("it is not YAML: {error}")))?;
        let [config] = config.as_slice() else {
            return Err(wrong("it is not one YAML document".to_owned()));
        };
        Reader {
            path,
            folder,
            wrong: &wrong,
        }
        .read(config)
    }
}

/// Reads a kubeconfig.
struct Reader<'a> {
    path: &'a Path,
    /// What paths are relative to.
    folder: &'a Path,
    wrong: &'a dyn Fn(String) -> AccessError,
}

impl Reader<'_> {
    fn read(&self, config: &Yaml) -> Result<Access, AccessError> {
        let context = self.text(config, "current-context")?;
        let context = context.ok_or_else(|| (self.wrong)("current-context is missing".into()))?;
        let context = self.named(config, "contexts", "context", &context)?;
        let link = |member: &str| {
            let found = self.text(context, member)?;
            found.ok_or_else(|| (self.wrong)(format!("the context has no {member}")))
        };
        let cluster = self.named(config, "clusters", "cluster", &link("cluster")?)?;
        let user = self.named(config, "users", "user", &link("user")?)?;
        self.refuse_others(cluster, "cluster", &CLUSTER)?;
        self.refuse_others(user, "user", &USER)?;
        let server = self.text(cluster, "server")?;
        let server = server.ok_or_else(|| (self.wrong)("the cluster has no server".into()))?;
        let server = server.trim_end_matches('/').to_owned();
        let secure = server.starts_with("https://");
        if !secure && !server.starts_with("http://") {
            return Err((self.wrong)(format!(
                "the server {server} is no http address"
            )));
        }
        let ca = self.file_or_data(cluster, "certificate-authority")?;
        if secure && ca.is_none() {
            let what = "the cluster has no certificate-authority, so nobody could be believed";
            return Err((self.wrong)(what.into()));
        }
        let certificate = self.file_or_data(user, "client-certificate")?;
        let key = self.file_or_data(user, "client-key")?;
        let certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                let what = "client-certificate and client-key are needed together";
                return Err((self.wrong)(what.into()));
            }
        };
        // A file is read again when its token changes, so it comes first.
        let token = match self.text(user, "tokenFile")? {
            Some(path) => Some(Token::File(self.folder.join(path))),
            None => self.text(user, "token")?.map(Token::Fixed),
        };
        Ok(Access {
            server,
            ca,
            certificate,
            token,
            origin: Origin::Kubeconfig(self.path.to_owned()),
        })
    }

    /// The entry of a list that has this name.
    fn named<'y>(
        &self,
        config: &'y Yaml,
        list: &str,
        member: &str,
        name: &str,
    ) -> Result<&'y Yaml, AccessError> {
        let entries = config[list].as_vec().map_or(&[][..], Vec::as_slice);
        let found = entries
            .iter()
            .find(|one| one["name"].as_str() == Some(name));
        let found = found.map(|one| &one[member]);
        found.ok_or_else(|| (self.wrong)(format!("there is no {member} called {name}")))
    }

    /// A string; `None` when absent, null or empty.
    fn text(&self, table: &Yaml, member: &str) -> Result<Option<String>, AccessError> {
        match &table[member] {
            Yaml::BadValue | Yaml::Null => Ok(None),
            Yaml::String(text) if text.is_empty() => Ok(None),
            Yaml::String(text) => Ok(Some(text.clone())),
            Yaml::Integer(_)
            | Yaml::Real(_)
            | Yaml::Boolean(_)
            | Yaml::Array(_)
            | Yaml::Hash(_)
            | Yaml::Alias(_) => Err((self.wrong)(format!("{member} is not a string"))),
        }
    }

    /// What stands in `NAME-data`, or in the file that NAME is the path of.
    fn file_or_data(&self, table: &Yaml, name: &str) -> Result<Option<Vec<u8>>, AccessError> {
        let data = format!("{name}-data");
        if let Some(text) = self.text(table, &data)? {
            let text: String = text.split_whitespace().collect();
            let octets = STANDARD.decode(text);
            let octets = octets.map_err(|_| (self.wrong)(format!("{data} is not base64")))?;
            return Ok(Some(octets));
        }
        let path = self.text(table, name)?;
        path.map(|path| read(&self.folder.join(path))).transpose()
    }

    fn refuse_others(&self, table: &Yaml, what: &str, known: &[&str]) -> Result<(), AccessError> {
        let Some(members) = table.as_hash() else {
            return Err((self.wrong)(format!("the {what} is empty")));
        };
        for (name, value) in members {
            let name = name.as_str().unwrap_or("?");
            let off = matches!(value, Yaml::Null | Yaml::Boolean(false));
            if !known.contains(&name) && !off {
                let what = format!("the {what} has {name}, which is not available here");
                return Err((self.wrong)(what));
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|source| AccessError::File {
        path: path.to_owned(),
        source,
    })
}

/// Where a Pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const CLUSTER: [&str; 5] = [
    "server",
    "certificate-authority",
    "certificate-authority-data",
    // They say nothing about who answers.
    "disable-compression",
    "extensions",
];
const USER: [&str; 7] = [
    "client-certificate",
    "client-certificate-data",
    "client-key",
    "client-key-data",
    "token",
    "tokenFile",
    "extensions",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("ca.pem"), "authority").unwrap();
        (folder, path)
    }

    const BLOCK: &str = "apiVersion: v1
kind: Config
current-context: here
clusters:
- name: other
  cluster: {server: 'https://192.0.2.9'}
- name: c
  cluster:
    certificate-authority: ca.pem
    server: https://192.0.2.1:6443/
contexts:
- context:
    cluster: c
    user: u
  name: here
users:
- name: u
  user:
    client-certificate-data: Y2VydA==
    client-key-data: a2V5
    token: secret
";

    #[test]
    fn the_current_context_is_read() {
        let (_folder, path) = write(BLOCK);
        let access = Access::kubeconfig(&path).unwrap();
        assert_eq!(access.server, "https://192.0.2.1:6443");
        assert_eq!(access.ca.as_deref(), Some(&b"authority"[..]));
        let certificate = (b"cert".to_vec(), b"key".to_vec());
        assert_eq!(access.certificate, Some(certificate));
        assert!(access.token == Some(Token::Fixed("secret".to_owned())));
        let shown = format!("{access:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_by_name() {
        for (from, to, sentence) in [
            ("token: secret", "exec: {command: aws}", "the user has exec"),
            ("token: secret", "password: x", "the user has password"),
            ("token: secret", "token: 5", "token is not a string"),
            (
                "certificate-authority: ca.pem",
                "insecure-skip-tls-verify: true",
                "insecure-skip-tls-verify",
            ),
            (
                "certificate-authority: ca.pem",
                "",
                "nobody could be believed",
            ),
            ("client-key-data: a2V5", "", "needed together"),
            (
                "client-key-data: a2V5",
                "client-key-data: '!'",
                "not base64",
            ),
            ("current-context: here", "", "current-context is missing"),
            (
                "current-context: here",
                "current-context: gone",
                "called gone",
            ),
            ("cluster: c", "cluster: nowhere", "called nowhere"),
            (
                "server: https://192.0.2.1:6443/",
                "server: 192.0.2.1",
                "no http",
            ),
            ("kind: Config", "kind: [", "not YAML"),
        ] {
            assert!(BLOCK.contains(from), "{from}");
            let (_folder, path) = write(&BLOCK.replace(from, to));
            let error = Access::kubeconfig(&path).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }

    #[test]
    fn a_pod_finds_its_service_account() {
        let (folder, _) = write("");
        let folder = folder.path();
        std::fs::write(folder.join("ca.crt"), "authority").unwrap();
        let variable = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        let error = Access::service_account(variable, folder).unwrap_err();
        assert!(error.to_string().contains("token"), "{error}");
        std::fs::write(folder.join("token"), "secret").unwrap();
        let access = Access::service_account(variable, folder).unwrap();
        assert_eq!(access.server, "https://[fd00::1]:443");
        assert!(access.token == Some(Token::File(folder.join("token"))));
        assert_eq!(access.again().unwrap(), access);
        std::fs::write(folder.join("ca.crt"), "another").unwrap();
        assert_eq!(access.again().unwrap().ca.as_deref(), Some(&b"another"[..]));
        let none = Access::in_cluster(|_| None).unwrap_err().to_string();
        assert!(none.contains("KUBERNETES_SERVICE_HOST"), "{none}");
    }
}
