//! The same against a real kube-apiserver, whose path stands in `KUBE_APISERVER`; that of etcd in
//! `ETCD`, or it is found as `etcd`. `tests/kube-apiserver.sh` runs it and says how to come by one.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tun_node::source::SourceCommand;
use tun_node::source::kube::access::Access;
use ureq::tls::TlsConfig;

use super::fleet::{Fleet, HUB};
use super::manifest::{documents, json_of, of_kind};
use super::node::{DUAL, Node, flannel, object};
use super::traffic::{self, NODES};
use super::until;

const SHORT: Duration = Duration::from_secs(20);

/// A real API server over a real etcd; killed and removed when dropped.
struct Real {
    /// Where the server listens; etcd is on loopback.
    host: &'static str,
    folder: tempfile::TempDir,
    program: PathBuf,
    port: u16,
    etcd: u16,
    children: Vec<(&'static str, Child)>,
    http: ureq::Agent,
}

impl Real {
    fn start(program: PathBuf, host: &'static str) -> Self {
        let taken: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let ports: Vec<u16> = taken
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        drop(taken);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .disable_verification(true);
        let http = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(10)))
            .tls_config(tls.build());
        let mut real = Self {
            host,
            folder: tempfile::tempdir().unwrap(),
            program,
            port: ports[0],
            etcd: ports[1],
            children: Vec::new(),
            http: http.build().new_agent(),
        };
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let mut etcd = Command::new(std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into()));
        etcd.args(["--name", "s", "--unsafe-no-fsync", "--data-dir"])
            .arg(real.path("etcd"))
            .args(["--listen-client-urls", &url(ports[1])])
            .args(["--advertise-client-urls", &url(ports[1])])
            .args(["--listen-peer-urls", &url(ports[2])])
            .args(["--initial-advertise-peer-urls", &url(ports[2])])
            .args(["--initial-cluster", &format!("s={}", url(ports[2]))]);
        real.spawn("etcd", &mut etcd);
        let mut key = Command::new("openssl");
        key.args(["genrsa", "-out"])
            .arg(real.path("sa.key"))
            .arg("2048");
        assert!(key.output().expect("openssl is installed").status.success());
        std::fs::write(real.path("tokens"), "admin,admin,admin,system:masters\n").unwrap();
        real.serve();
        real
    }

    /// Starts the API server and waits until it is ready.
    fn serve(&mut self) {
        let started = Instant::now();
        let mut command = Command::new(&self.program);
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd))
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--cert-dir={}", self.path("certs").display()))
            .arg(format!(
                "--token-auth-file={}",
                self.path("tokens").display()
            ))
            .arg(format!("--bind-address={}", self.host))
            .arg("--advertise-address=192.0.2.1")
            .args(["--authorization-mode=RBAC", "--allow-privileged=true"])
            .args(["--service-cluster-ip-range=10.96.0.0/16"])
            .args(["--feature-gates=IPv6DualStack=true"])
            .args(["--service-account-issuer=https://kubernetes.default.svc"]);
        for flag in ["signing-key-file", "key-file"] {
            let key = self.path("sa.key");
            command.arg(format!("--service-account-{flag}={}", key.display()));
        }
        self.spawn("kube-apiserver", &mut command);
        let end = started + Duration::from_secs(120);
        while !matches!(self.text("/readyz"), Some(text) if text == "ok") {
            let ended = self
                .children
                .iter_mut()
                .any(|(_, child)| child.try_wait().unwrap().is_some());
            assert!(!ended && Instant::now() < end, "not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("kube-apiserver ready after {:?}", started.elapsed());
    }

    fn spawn(&mut self, name: &'static str, command: &mut Command) {
        let log = std::fs::File::create(self.path(&format!("{name}.log"))).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
        self.children.push((name, child));
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("kube-apiserver.log")).unwrap_or_default();
        let from = log.len().saturating_sub(2000);
        log.get(from..).unwrap_or_default().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}:{}{path}", self.host, self.port)
    }

    fn text(&self, path: &str) -> Option<String> {
        let request = self.http.get(self.url(path));
        let request = request.header("Authorization", "Bearer admin");
        request.call().ok()?.body_mut().read_to_string().ok()
    }

    /// Asks with a token; the code and the body.
    fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let bearer = format!("Bearer {token}");
        let url = self.url(path);
        let kind = if method == "PATCH" {
            "application/strategic-merge-patch+json"
        } else {
            "application/json"
        };
        let body = body.to_string();
        let sent = match method {
            "GET" => self.http.get(url).header("Authorization", bearer).call(),
            "DELETE" => self.http.delete(url).header("Authorization", bearer).call(),
            _ => {
                let request = match method {
                    "POST" => self.http.post(url),
                    "PUT" => self.http.put(url),
                    _ => self.http.patch(url),
                };
                let request = request.header("Authorization", bearer);
                request.header("Content-Type", kind).send(body.as_bytes())
            }
        };
        let mut response = sent.unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (response.status().as_u16(), body)
    }

    fn create(&self, path: &str, body: &Value) {
        let (code, answer) = self.ask("admin", "POST", path, body);
        assert!(code == 200 || code == 201, "{path}: {code} {answer}");
    }

    /// Makes a Node, with its addresses and conditions, which belong to the status.
    fn put_node(&self, node: &Value) {
        self.create("/api/v1/nodes", node);
    }

    fn node(&self, name: &str) -> Value {
        self.ask(
            "admin",
            "GET",
            &format!("/api/v1/nodes/{name}"),
            &Value::Null,
        )
        .1
    }

    fn signal(&self, name: &str, signal: Signal) {
        let (_, child) = self.children.iter().find(|(one, _)| *one == name).unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    fn kill(&mut self, name: &str) {
        let at = self
            .children
            .iter()
            .position(|(one, _)| *one == name)
            .unwrap();
        let (_, mut child) = self.children.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Applies a file of manifests, as `kubectl apply` would; `edit` changes its text first.
    fn apply(&self, file: &str, query: &str, edit: impl Fn(&str) -> String) {
        for document in documents(file) {
            let body = edit(&json_of(&document).to_string());
            let body: Value = serde_json::from_str(&body).unwrap();
            let (group, plural) = match body["kind"].as_str().unwrap() {
                "Namespace" => ("api/v1", "namespaces"),
                "ServiceAccount" => ("api/v1/namespaces/warren", "serviceaccounts"),
                "ConfigMap" => ("api/v1/namespaces/warren", "configmaps"),
                "DaemonSet" => ("apis/apps/v1/namespaces/warren", "daemonsets"),
                "ClusterRole" => ("apis/rbac.authorization.k8s.io/v1", "clusterroles"),
                "ClusterRoleBinding" => {
                    ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings")
                }
                kind => panic!("{kind}"),
            };
            self.create(&format!("/{group}/{plural}{query}"), &body);
        }
    }

    /// A token of the manifest's service account, such as its Pods are given.
    fn service_account_token(&self) -> String {
        let path = "/api/v1/namespaces/warren/serviceaccounts/warren/token";
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "expirationSeconds": 3600 } });
        let (code, answer) = self.ask("admin", "POST", path, &body);
        let token = answer["status"]["token"].as_str();
        token
            .unwrap_or_else(|| panic!("{code} {answer}"))
            .to_owned()
    }

    /// A kubeconfig with that token in a file beside it.
    fn kubeconfig(&self, token: &str) -> PathBuf {
        let path = self.path("kubeconfig");
        std::fs::write(self.path("token"), token).unwrap();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters:\n- name: c\n  cluster:\n    server: {}\n    \
             certificate-authority: certs/apiserver.crt\n\
             users:\n- name: u\n  user:\n    tokenFile: token\n\
             contexts:\n- name: x\n  context: {{cluster: c, user: u}}\n",
            self.url("")
        );
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn routes(nodes: &mut [Node], routes: usize) {
    for node in nodes {
        let seen = node.wait_for(SHORT, |node| node.table.routes().count() == routes);
        let found = node.table.routes().count();
        assert!(seen.is_some(), "{found} of {routes}, {:?}", node.alarms());
    }
}

/// The server's program; `None`, with the reason printed, where nobody named one.
fn program() -> Option<PathBuf> {
    let Some(program) = std::env::var_os("KUBE_APISERVER") else {
        eprintln!("skipped: KUBE_APISERVER is not set");
        return None;
    };
    assert!(Path::new(&program).exists(), "{}", program.display());
    Some(program.into())
}

#[test]
#[ignore = "needs a kube-apiserver: KUBE_APISERVER=path, see tests/kube-apiserver.sh"]
fn real_server_carries_traffic_by_the_manifests_alone() {
    let Some(program) = program() else { return };
    let Some(fleet) = Fleet::new(NODES) else {
        return;
    };
    let real = Real::start(program, HUB);
    real.apply("rbac.yaml", "", str::to_owned);
    for number in [1, 2] {
        real.put_node(&traffic::object(number));
    }
    // What the kubelet puts into a Pod of the DaemonSet, where it puts it.
    let token = real.path("token");
    std::fs::write(&token, real.service_account_token()).unwrap();
    let account = "/run/secrets/kubernetes.io/serviceaccount";
    let pod = |number: u8| {
        format!(
            "mkdir -p {account} && cp {} {account}/token && cp {} {account}/ca.crt && \
             export KUBERNETES_SERVICE_HOST={HUB} KUBERNETES_SERVICE_PORT={} NODE_NAME=n{number}",
            token.display(),
            real.path("certs/apiserver.crt").display(),
            real.port
        )
    };
    // The ConfigMap's network with a second family, as its head says.
    let map = documents("configmap.yaml");
    let network = of_kind(&map, "ConfigMap")["data"]["net-conf.json"]
        .as_str()
        .unwrap()
        .replacen(
            '{',
            r#"{"EnableIPv6": true, "IPv6Network": "fd00:10:244::/48","#,
            1,
        );
    let path = real.path("net-conf.json");
    std::fs::write(&path, network).unwrap();
    let section = format!("[kubernetes]\nnet-conf = \"{}\"\n", path.display());
    let nodes = traffic::exchange(&fleet, &section, pod, |name| real.node(name));
    // The server may go: what was learned carries on.
    real.signal("kube-apiserver", Signal::SIGSTOP);
    traffic::passes(&fleet, 50);
    real.signal("kube-apiserver", Signal::SIGCONT);
    for node in nodes {
        node.stop();
    }
}

#[test]
#[ignore = "needs a kube-apiserver: KUBE_APISERVER=path, see tests/kube-apiserver.sh"]
fn real_server_agrees() {
    let Some(program) = program() else { return };
    let mut real = Real::start(program, "127.0.0.1");
    let version: Value = serde_json::from_str(&real.text("/version").unwrap()).unwrap();
    eprintln!("version {}", version["gitVersion"]);

    real.apply("rbac.yaml", "", str::to_owned);
    real.apply("configmap.yaml", "", str::to_owned);
    // This far only checked: nobody would run the Pods. Old servers know one host address.
    let minor: u32 = version["minor"]
        .as_str()
        .unwrap()
        .trim_end_matches('+')
        .parse()
        .unwrap();
    real.apply("daemonset.yaml", "?dryRun=All", |text| match minor {
        28.. => text.to_owned(),
        _ => text.replace("status.hostIPs", "status.hostIP"),
    });
    for number in [1, 2] {
        real.put_node(&object(number, true));
    }
    for number in 100..105 {
        real.put_node(&flannel(number));
    }

    let token = real.service_account_token();
    let access = Access::kubeconfig(&real.kubeconfig(&token)).unwrap();
    let mut nodes: Vec<Node> = (1..=2)
        .map(|number| Node::start(access.clone(), number, DUAL))
        .collect();
    let began = Instant::now();
    // Two of each of ours, one of each of flannel's.
    routes(&mut nodes, 2 * 2 + 5);
    eprintln!(
        "two nodes of two families and five of flannel's: {:?}",
        began.elapsed()
    );
    for (number, node) in (1..).zip(&mut nodes) {
        assert_eq!((node.remote(), node.subnets().len()), (7, 2));
        let found = real.node(&format!("n{number}"));
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:01:0{number}"}}"#);
        let expected = json!({
            "node.alpha.kubernetes.io/ttl": "0",
            "flannel.alpha.coreos.com/backend-data": data,
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-v6-data": data,
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{number}"),
            "flannel.alpha.coreos.com/public-ipv6": format!("2001:db8::{number}"),
        });
        assert_eq!(found["metadata"]["annotations"], expected);
        let condition = |found: &Value, kind: &str| {
            let conditions = found["status"]["conditions"].as_array().cloned();
            let mut conditions = conditions.unwrap_or_default().into_iter();
            conditions
                .find(|one| one["type"] == kind)
                .unwrap_or_default()
        };
        let name = format!("n{number}");
        let up = || condition(&real.node(&name), "NetworkUnavailable")["status"] == "False";
        assert!(until(std::slice::from_mut(node), up));
        assert_eq!(condition(&real.node(&name), "Ready")["status"], "True");
        assert_eq!(node.alarms(), Vec::<&str>::new());
    }

    // The role suffices, and reaches no further.
    for (method, path) in [
        ("GET", "/api/v1/nodes/n1"),
        ("GET", "/api/v1/pods"),
        ("GET", "/api/v1/namespaces/warren/secrets"),
        ("PATCH", "/api/v1/nodes/n1"),
        ("DELETE", "/api/v1/nodes/n1"),
        ("POST", "/api/v1/nodes"),
    ] {
        let (code, _) = real.ask(&token, method, path, &json!({}));
        assert_eq!(code, 403, "{method} {path}");
    }

    let began = Instant::now();
    real.put_node(&flannel(200));
    routes(&mut nodes, 10);
    eprintln!("a new Node: {:?}", began.elapsed());
    let began = Instant::now();
    real.ask("admin", "DELETE", "/api/v1/nodes/n200", &Value::Null);
    routes(&mut nodes, 9);
    eprintln!("a Node gone: {:?}", began.elapsed());

    // Silence is noticed, and its end.
    let withdrawn = nodes[0].withdrawn();
    real.signal("kube-apiserver", Signal::SIGSTOP);
    let took = nodes[0].wait_for(Duration::from_secs(15), Node::is_lost);
    eprintln!("SIGSTOP: noticed after {took:?}");
    assert!(took.is_some());
    real.signal("kube-apiserver", Signal::SIGCONT);
    let took = nodes[0].wait_for(SHORT, |node| !node.is_lost());
    eprintln!("SIGCONT: answers again after {took:?}");
    assert!(took.is_some());

    // Killed and started again: what it remembers begins anew, so versions of before are gone.
    let fulls = nodes[0].fulls;
    real.kill("kube-apiserver");
    nodes[0].wait_for(SHORT, Node::is_lost).unwrap();
    nodes[0].run(Duration::from_secs(3));
    assert_eq!((nodes[0].remote(), nodes[0].withdrawn()), (7, withdrawn));
    real.serve();
    let began = Instant::now();
    real.put_node(&flannel(201));
    routes(&mut nodes, 10);
    eprintln!(
        "kill -9 and again: change seen after {:?}, {} new lists",
        began.elapsed(),
        nodes[0].fulls - fulls
    );
    assert_eq!(nodes[0].withdrawn(), withdrawn);

    // Away takes away what was published.
    let leaver = nodes.pop().unwrap();
    leaver.tell(SourceCommand::Leave);
    routes(&mut nodes, 8);
    let annotations = &real.node("n2")["metadata"]["annotations"];
    assert_eq!(*annotations, json!({ "node.alpha.kubernetes.io/ttl": "0" }));
    drop(leaver);
}
