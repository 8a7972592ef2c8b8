//! Where routes come from besides the file itself, and how carefully what goes is let go.

use std::path::PathBuf;

use crate::flannel::NetConf;

/// What the file says about sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `[etcd]`: nodes that find each other in an etcd cluster.
    pub etcd: Option<Etcd>,
    /// `[kubernetes]`: nodes that find each other by the Kubernetes API.
    pub kubernetes: Option<Kubernetes>,
    /// `[files]`: a directory of route files.
    pub files: Option<Files>,
    /// `[guard]`.
    pub guard: Guard,
    /// Where the node writes which subnet a source gave it; `None` for nowhere.
    pub subnet_env: Option<PathBuf>,
    /// What `subnet.env` says about masquerading.
    pub ip_masq: bool,
}

impl Sources {
    /// Whether some source may give this node its subnet.
    #[must_use]
    pub const fn may_claim(&self) -> bool {
        self.etcd.is_some() || self.kubernetes.is_some()
    }
}

/// An etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// The members' client addresses; not empty.
    pub endpoints: Vec<String>,
    /// Where flannel's keys are, without a slash at the end.
    pub prefix: String,
    /// The certificate authorities that members are believed by.
    pub ca: Option<PathBuf>,
    /// This node's certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// A user, and the file with the password.
    pub user: Option<(String, PathBuf)>,
    /// How long the claim lives without being renewed.
    pub lease_ttl_s: u32,
    /// Whether the claim is given back at a clean end.
    pub leave: bool,
}

/// A Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// The name of this node's Node object; `None` for what `NODE_NAME` of the environment says,
    /// or the node's own name.
    pub node: Option<String>,
    /// A kubeconfig; `None` for the service account of the Pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The network.
    pub network: KubernetesNetwork,
    /// What flannel's annotations begin with.
    pub annotation_prefix: String,
    /// Whether the annotations are taken away at a clean end.
    pub leave: bool,
}

/// Where it is written what the network is, which Kubernetes does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubernetesNetwork {
    /// In a file as flannel's `net-conf.json`.
    File(PathBuf),
    /// Here.
    Keys(NetConf),
}

/// A directory of route files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The directory; every `*.toml` in it is read.
    pub directory: PathBuf,
}

/// When withdrawals are held; see [`Settings`](crate::rib::Settings).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// More than so many per cent of a source's remote routes gone at once are held.
    pub percent: u8,
    /// For how long.
    pub hold_s: u32,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            percent: 50,
            hold_s: 60,
        }
    }
}

/// Where flannel's DaemonSet puts its ConfigMap.
pub(super) const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";
/// Where flannel's CNI plugin looks.
pub(super) const SUBNET_ENV: &str = "/run/flannel/subnet.env";
