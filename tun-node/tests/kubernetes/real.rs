//! The same against a real kube-apiserver.
