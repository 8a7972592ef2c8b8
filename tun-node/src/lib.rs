//! The Warren node as a library, so that tests and fuzzing reach every module: everything around
//! `warren-core` that touches the host.
//!
//! `tun-node run` reads a [`config`], makes tables of it ([`rib`]), opens the device ([`tun`]) and the
//! underlay ([`udp`]) and starts a [`worker`] that carries packets between them; [`node`]
//! puts these together and watches over them. [`ctl`] and [`metrics`] tell the outside how it goes.

mod assembler;
pub mod cli;
pub mod config;
pub mod counters;
pub mod ctl;
pub mod datapath;
pub mod demo;
pub mod explain;
pub mod flannel;
pub mod hostroutes;
pub mod metrics;
pub mod netlink;
pub mod node;
pub mod output;
pub mod paths;
pub mod plane;
pub mod raw;
pub mod rib;
pub mod ring;
pub mod rootless;
pub mod shortcut;
pub mod snapshot;
pub mod source;
pub mod sys;
pub mod tun;
pub mod udp;
pub mod worker;

#[cfg(test)]
mod testing;
