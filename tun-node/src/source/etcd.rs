//! Nodes that find each other in an etcd cluster, in flannel's layout.

pub mod agent;
mod claim;
pub mod store;

pub use claim::OwnNode;
