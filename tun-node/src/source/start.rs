//! Which sources a node has, and how each is started: the one place that knows them all.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use super::etcd::agent::AgentSettings;
use super::etcd::gateway::{Cluster, ClusterError, Gateway};
use super::etcd::{EtcdSettings, EtcdSource, own_node, previous_subnet};
use super::kube::access::{Access, AccessError};
use super::kube::{KubeSettings, KubeSource};
use super::{Outlet, Own, Source, kube};
use crate::config::{self, Config, KubernetesNetwork};
use crate::flannel::{NetConf, NetConfError};

/// Why a source cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The description of the etcd cluster.
    #[error(transparent)]
    Etcd(#[from] ClusterError),
    /// How the Kubernetes API is reached.
    #[error(transparent)]
    Kubernetes(#[from] AccessError),
    /// The file with the network.
    #[error("kubernetes: net-conf {}", path.display())]
    NetConfFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("kubernetes: net-conf {}: {source}", path.display())]
    NetConf {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NetConfError,
    },
    /// flannel's layout knows nodes by their IPv4 addresses.
    #[error("etcd: nodes are known by their IPv4 addresses; add one to `node.underlay`")]
    NoIpv4,
}

/// Starts the sources that `config` names.
///
/// # Errors
///
/// [`SourceError`]; those that were started end again.
pub fn start_all(
    config: &Config,
    own: Own,
    outlet: &Outlet,
) -> Result<Vec<Box<dyn Source>>, SourceError> {
    let mut started: Vec<Box<dyn Source>> = Vec::new();
    let sources = &config.sources;
    if let Some(etcd) = &sources.etcd {
        let settings = etcd_settings(config, etcd, own)?;
        started.push(Box::new(EtcdSource::start(settings, outlet.clone())?));
    }
    if let Some(kubernetes) = &sources.kubernetes {
        let settings = kube_settings(config, kubernetes, own)?;
        started.push(Box::new(KubeSource::start(settings, outlet.clone())?));
    }
    Ok(started)
}

/// Reads every file that the sources of `config` are started with, and starts none.
///
/// # Errors
///
/// Those of [`start_all`].
pub fn check_all(config: &Config) -> Result<(), SourceError> {
    let own = Own::of(config);
    if let Some(etcd) = &config.sources.etcd {
        let settings = etcd_settings(config, etcd, own)?;
        Gateway::new(&settings.cluster, &settings.agent.prefix)?;
    }
    if let Some(kubernetes) = &config.sources.kubernetes {
        let settings = kube_settings(config, kubernetes, own)?;
        kube::check(&settings)?;
    }
    Ok(())
}

fn etcd_settings(
    config: &Config,
    etcd: &config::Etcd,
    own: Own,
) -> Result<EtcdSettings, SourceError> {
    let subnet_env = config.sources.subnet_env.as_deref();
    Ok(EtcdSettings {
        cluster: Cluster {
            endpoints: etcd.endpoints.clone(),
            ca: etcd.ca.clone(),
            certificate: etcd.certificate.clone(),
            user: etcd.user.clone(),
        },
        agent: AgentSettings {
            prefix: etcd.prefix.clone(),
            lease_ttl_s: etcd.lease_ttl_s.into(),
            allow_loopback: own.v4.is_some_and(|address| address.is_loopback()),
            seed: RandomState::new().hash_one(&config.node.name),
            previous: subnet_env.and_then(previous_subnet),
            ..AgentSettings::default()
        },
        own: own_node(own).ok_or(SourceError::NoIpv4)?,
    })
}

fn kube_settings(
    config: &Config,
    kubernetes: &config::Kubernetes,
    own: Own,
) -> Result<KubeSettings, SourceError> {
    let access = kube_access(kubernetes)?;
    let network = kubernetes_network(kubernetes)?;
    let node = kubernetes.node.clone();
    let node = node.or_else(|| variable("NODE_NAME"));
    let node = node.unwrap_or_else(|| config.node.name.clone());
    let mut agent = kube::agent::AgentSettings::new(node, network);
    agent.prefix.clone_from(&kubernetes.annotation_prefix);
    agent.allow_loopback = own.v4.is_some_and(|address| address.is_loopback());
    Ok(KubeSettings { access, agent, own })
}

/// The network that a node is part of, which Kubernetes does not know.
///
/// # Errors
///
/// [`SourceError`] of the file that it is in.
pub(crate) fn kubernetes_network(kubernetes: &config::Kubernetes) -> Result<NetConf, SourceError> {
    match &kubernetes.network {
        KubernetesNetwork::Keys(network) => Ok(network.clone()),
        KubernetesNetwork::File(path) => net_conf(path),
    }
}

/// The API server that a node is to ask; `None` where nothing says which.
pub(crate) fn kubernetes_server(kubernetes: &config::Kubernetes) -> Option<String> {
    kube_access(kubernetes).ok().map(|access| access.server)
}

fn kube_access(kubernetes: &config::Kubernetes) -> Result<Access, AccessError> {
    match &kubernetes.kubeconfig {
        Some(path) => Access::kubeconfig(path),
        None => Access::in_cluster(variable),
    }
}

/// What a variable of the environment says, if anything.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The network that a file as flannel's describes.
fn net_conf(path: &Path) -> Result<NetConf, SourceError> {
    let octets = std::fs::read(path).map_err(|source| SourceError::NetConfFile {
        path: path.to_owned(),
        source,
    })?;
    NetConf::parse(&octets).map_err(|source| SourceError::NetConf {
        path: path.to_owned(),
        source,
    })
}
