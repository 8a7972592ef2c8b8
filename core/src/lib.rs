//! Warren core.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod batch;
pub mod encap;
pub mod fib;
pub mod fragment;
pub mod gso;
pub mod packet;
pub mod pmtu;
pub mod tables;
pub mod units;
pub mod verdict;
pub mod wire;
