//! Which sources a node has, and how each is started: the one place that knows them all.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use super::etcd::agent::AgentSettings;
use super::etcd::gateway::{Cluster, ClusterError};
use super::etcd::{EtcdSettings, EtcdSource, own_node, previous_subnet};
use super::{Outlet, Own, Source};
use crate::config::{self, Config};

/// Why a source cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The description of the etcd cluster.
    #[error(transparent)]
    Etcd(#[from] ClusterError),
    /// The file with the password.
    #[error("etcd: password-file {}", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
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
    Ok(started)
}

fn etcd_settings(
    config: &Config,
    etcd: &config::Etcd,
    own: Own,
) -> Result<EtcdSettings, SourceError> {
    let user = match &etcd.user {
        Some((name, path)) => Some((name.clone(), password(path)?)),
        None => None,
    };
    let subnet_env = config.sources.subnet_env.as_deref();
    Ok(EtcdSettings {
        cluster: Cluster {
            endpoints: etcd.endpoints.clone(),
            ca: etcd.ca.clone(),
            certificate: etcd.certificate.clone(),
            user,
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

/// The password in a file, without the end of its line.
fn password(path: &Path) -> Result<String, SourceError> {
    let text = std::fs::read_to_string(path).map_err(|source| SourceError::Password {
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
