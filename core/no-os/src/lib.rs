//! The proof that `warren-core` asks the world for nothing: a static library without `std`, with a
//! panic handler and an allocator of its own, that takes a packet through the library.
//!
//! It builds for the host's own target, so that no further toolchain parts are needed. A
//! dependency that pulls in `std` brings a second panic handler and the build ends with "duplicate
//! lang item"; the feature `std-canary` adds such a dependency to show that this is so.
//! `cargo sansio` builds it. It is also the smallest example of an embedding without an operating
//! system.
//!
//! Besides `tun-node/src/sys` the one place with `unsafe`: an allocator cannot be written without.
#![no_std]

extern crate alloc;
#[cfg(feature = "std-canary")]
extern crate std_canary as _;

use alloc::string::String;
use alloc::vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::net::{IpAddr, Ipv4Addr};
use core::panic::PanicInfo;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use ipnet::{IpNet, Ipv4Net};
use warren_core::batch::{Batch, Link};
use warren_core::encap::Encapsulation;
use warren_core::packet::Packet;
use warren_core::tables::{DscpMode, EcnMode, Local, NextHop, Peer, TableWriter, Tunnel};
use warren_core::units::{MacAddr, Mtu, Vni};

/// Takes the packet of `len` octets at `bytes` through the library and returns what a caller
/// without an operating system sees of it: the octets that would leave, or 0 for none.
///
/// # Safety
///
/// `bytes` points to `len` octets that stay as they are during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn warren_no_os(bytes: *const u8, len: usize) -> usize {
    // SAFETY: what the caller promises.
    let bytes = unsafe { core::slice::from_raw_parts(bytes, len) };
    route(bytes).unwrap_or_default()
}

fn route(bytes: &[u8]) -> Option<usize> {
    let here = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let there = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    let mut writer = TableWriter::new(Local {
        underlay: vec![here],
        ..Local::default()
    });
    let peer = writer
        .add_peer(Peer {
            name: String::from("there"),
            underlay: vec![there],
            dscp: DscpMode::Pipe(0),
        })
        .ok()?;
    let tunnel = writer
        .next_hop(NextHop::Tunnel(Tunnel {
            peer,
            local: here,
            remote: there,
            encapsulation: Encapsulation::Vxlan {
                vni: Vni::new(1)?,
                port: 8472,
                mac: MacAddr::new([2, 0, 0, 0, 0, 2]),
            },
            mtu: Mtu::new(1450),
            hop_limit: 64,
            dscp: DscpMode::Pipe(0),
            ecn: EcnMode::Normal,
        }))
        .ok()?;
    let prefix = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 2, 0), 24);
    writer.insert(IpNet::V4(prefix), tunnel).ok()?;
    let tables = writer.publish();

    let mut batch = Batch::new(1, 2048);
    let frame = batch.push(bytes, Link::LOCAL)?;
    let packet = Packet::parse(frame.bytes()).ok()?;
    match tables.lookup(packet.flow.destination)? {
        NextHop::Tunnel(tunnel) => Some(
            packet.total_octets
                + usize::from(tunnel.encapsulation.overhead_octets(tunnel.underlay_family())),
        ),
        NextHop::Direct { .. }
        | NextHop::EqualCost(_)
        | NextHop::Blackhole
        | NextHop::Prohibit
        | NextHop::Local => None,
    }
}

/// Hands out the arena from front to back and takes nothing back: enough for a proof.
struct Bump {
    arena: UnsafeCell<[u8; ARENA_OCTETS]>,
    next: AtomicUsize,
}

// SAFETY: `alloc` gives each octet of the arena to one caller only, by an atomic counter.
unsafe impl Sync for Bump {}

// SAFETY: what is handed out lies in the arena, is aligned and overlaps nothing handed out before.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.arena.get().cast::<u8>();
        let mut block = ptr::null_mut();
        let place = |next: usize| {
            let start = (base.addr() + next).next_multiple_of(layout.align()) - base.addr();
            let end = start.checked_add(layout.size())?;
            if end > ARENA_OCTETS {
                return None;
            }
            // SAFETY: `start` is within the arena.
            block = unsafe { base.add(start) };
            Some(end)
        };
        match self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, place) {
            Ok(_) => block,
            Err(_) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Bump = Bump {
    arena: UnsafeCell::new([0; ARENA_OCTETS]),
    next: AtomicUsize::new(0),
};

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

const ARENA_OCTETS: usize = 1 << 20;
