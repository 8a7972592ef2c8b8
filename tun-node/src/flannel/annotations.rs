//! A node's attributes as annotations of its Kubernetes Node object.
//!
//! flannel reads its own MAC address back by cutting `backend-data` at `:"`, so the two members
//! `VNI` and `VtepMAC` stand there in this order, without a space and with nothing added.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::fault::{Fault, Refused};
use super::json::Object;
use super::lease::{LeaseAttrs, LeaseBackend, LeaseRules, VxlanAttrs, backend, underlay_address};

/// What flannel's annotations begin with, unless it is told otherwise.
pub const ANNOTATION_PREFIX: &str = "flannel.alpha.coreos.com";

/// What the annotations of a Node say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Annotations {
    /// The outer IPv4 address; there when the node has an IPv4 subnet.
    pub public_ip: Option<Ipv4Addr>,
    /// The outer IPv6 address; there when the node has an IPv6 subnet.
    pub public_ipv6: Option<Ipv6Addr>,
    /// How packets to it are wrapped.
    pub backend: LeaseBackend,
}

impl Annotations {
    /// Reads the annotations of a Node; `None` when flannel does not look after it.
    ///
    /// # Errors
    ///
    /// Any [`Fault`] but those of keys.
    pub fn parse(
        annotations: &BTreeMap<String, String>,
        prefix: &str,
        rules: &LeaseRules,
    ) -> Result<Option<Self>, Refused> {
        let find = |name: &str| {
            let value = annotations.get(&format!("{prefix}/{name}"));
            value.map(String::as_str)
        };
        if find("kube-subnet-manager") != Some("true") {
            return Ok(None);
        }
        let data = |member: &'static str| {
            let name = if member == "BackendData" {
                "backend-data"
            } else {
                "backend-v6-data"
            };
            match find(name) {
                None | Some("" | "null") => Ok(None),
                Some(json) => Object::read(json.as_bytes()).map(Some),
            }
        };
        let backend = backend(find("backend-type").unwrap_or(""), rules, data)?;
        let given = |name: &str| find(name).filter(|text| !text.is_empty());
        let public_ip = given("public-ip")
            .map(|text| underlay_address(text, "public-ip", rules))
            .transpose()?;
        let public_ipv6 = given("public-ipv6")
            .map(|text| underlay_address(text, "public-ipv6", rules))
            .transpose()?;
        if public_ip.is_none() && public_ipv6.is_none() {
            return Err(Fault::MissingMember.with("public-ip"));
        }
        Ok(Some(Self {
            public_ip,
            public_ipv6,
            backend,
        }))
    }

    /// The address that the administrator wants published in place of the node's own.
    ///
    /// # Errors
    ///
    /// [`Fault::BadAddress`], [`Fault::UnusableAddress`].
    pub fn overwrites(
        annotations: &BTreeMap<String, String>,
        prefix: &str,
        rules: &LeaseRules,
    ) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), Refused> {
        let find = |name: &str| annotations.get(&format!("{prefix}/{name}"));
        let v4 = find("public-ip-overwrite")
            .map(|text| underlay_address(text, "public-ip-overwrite", rules))
            .transpose()?;
        let v6 = find("public-ipv6-overwrite")
            .map(|text| underlay_address(text, "public-ipv6-overwrite", rules))
            .transpose()?;
        Ok((v4, v6))
    }

    /// The annotations to publish, by their whole names.
    #[must_use]
    pub fn to_map(&self, prefix: &str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let mut put = |name: &str, value: String| {
            map.insert(format!("{prefix}/{name}"), value);
        };
        put("kube-subnet-manager", "true".to_owned());
        put(
            "backend-type",
            self.backend.name().unwrap_or("udp").to_owned(),
        );
        let (v4, v6) = match &self.backend {
            LeaseBackend::Vxlan { v4, v6 } => (*v4, *v6),
            LeaseBackend::Ipip | LeaseBackend::HostGw | LeaseBackend::Udp => (None, None),
        };
        let data = |vxlan: Option<VxlanAttrs>| {
            vxlan.map_or_else(|| "null".to_owned(), |vxlan| vxlan.to_json())
        };
        if let Some(address) = self.public_ip {
            put("public-ip", address.to_string());
            put("backend-data", data(v4));
        }
        if let Some(address) = self.public_ipv6 {
            put("public-ipv6", address.to_string());
            put("backend-v6-data", data(v6));
        }
        map
    }
}

impl From<LeaseAttrs> for Annotations {
    fn from(attrs: LeaseAttrs) -> Self {
        Self {
            public_ip: Some(attrs.public_ip),
            public_ipv6: attrs.public_ipv6,
            backend: attrs.backend,
        }
    }
}
