//! Where routes come from. Each source knows its own store and the RIB's one type
//! ([`SourceUpdate`](crate::rib::SourceUpdate)), and nothing else of the node.

pub mod etcd;
