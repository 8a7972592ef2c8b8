//! What the manifests say: the role that nodes have, and that the pieces fit each other.

use std::collections::BTreeSet;

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

/// A role: what it permits, as (verb, resource).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Role(pub(crate) BTreeSet<(String, String)>);

impl Role {
    pub(crate) fn permits(&self, verb: &str, resource: &str) -> bool {
        let right = (verb.to_owned(), resource.to_owned());
        self.0.contains(&right)
    }

    /// The role in the manifest that people apply.
    pub(crate) fn of_manifest() -> Self {
        let documents = documents("rbac.yaml");
        let role = of_kind(&documents, "ClusterRole");
        let mut rights = BTreeSet::new();
        for rule in role["rules"].as_vec().unwrap() {
            assert_eq!(texts(&rule["apiGroups"]), [""]);
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    assert!(verb != "*" && resource != "*", "not the least privilege");
                    rights.insert((verb, resource.clone()));
                }
            }
        }
        Self(rights)
    }
}

/// The documents of a file of manifests.
pub(crate) fn documents(file: &str) -> Vec<Yaml> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes");
    let text = std::fs::read_to_string(format!("{folder}/{file}")).unwrap();
    YamlLoader::load_from_str(&text).unwrap()
}

pub(crate) fn of_kind<'a>(documents: &'a [Yaml], kind: &str) -> &'a Yaml {
    let mut found = documents.iter();
    found
        .find(|one| one["kind"].as_str() == Some(kind))
        .unwrap()
}

pub(crate) fn texts(list: &Yaml) -> Vec<String> {
    let list = list.as_vec().unwrap().iter();
    list.map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// The JSON that a YAML value is.
pub(crate) fn json_of(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Null | Yaml::BadValue | Yaml::Alias(_) => Value::Null,
        Yaml::Boolean(value) => Value::from(*value),
        Yaml::Integer(value) => Value::from(*value),
        Yaml::Real(text) => Value::from(text.parse::<f64>().unwrap()),
        Yaml::String(text) => Value::from(text.as_str()),
        Yaml::Array(list) => list.iter().map(json_of).collect(),
        Yaml::Hash(members) => members
            .iter()
            .map(|(key, value)| (key.as_str().unwrap().to_owned(), json_of(value)))
            .collect(),
    }
}
