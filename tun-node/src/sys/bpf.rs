//! Programs of extended BPF that classify packets, where they are attached, and the maps that they
//! share with this process: `bpf(2)`.
//!
//! What a program does is decided above; the kernel's verifier proves that it harms nothing.

use std::io::{Error, ErrorKind, Result};
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use zerocopy::{Immutable, IntoBytes};

/// What to do about an error of this module, for the end of a sentence.
#[must_use]
pub fn hint(error: &Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (give the node CAP_BPF and CAP_NET_ADMIN)",
        Some(libc::EINVAL | libc::ENOSYS) => " (it needs Linux 6.6)",
        _ => "",
    }
}

/// One instruction, as `struct bpf_insn` has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// Makes an instruction; `to` and `from` are numbers of registers, 0 to 10.
    #[must_use]
    pub const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        let registers = if cfg!(target_endian = "little") {
            to | from << 4
        } else {
            from | to << 4
        };
        Self {
            code,
            registers,
            offset,
            immediate,
        }
    }
}

/// Loads a program that sees packets at a device (`BPF_PROG_LOAD`, `BPF_PROG_TYPE_SCHED_CLS`).
///
/// # Errors
///
/// The kernel's: `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN` over the host, `EINVAL` where it
/// does not know a function that is called, `EACCES` where the verifier refuses.
pub fn load_classifier(program: &[Instruction]) -> Result<OwnedFd> {
    load(program, &mut [])
}

/// As [`load_classifier`], with what the verifier has to say in `log`.
///
/// # Errors
///
/// As [`load_classifier`], and `ENOSPC` where the log is too small.
pub fn load_classifier_logged(program: &[Instruction], log: &mut [u8]) -> Result<OwnedFd> {
    load(program, log)
}

fn load(program: &[Instruction], log: &mut [u8]) -> Result<OwnedFd> {
    let is_logged = !log.is_empty();
    let attributes = Load {
        program_type: PROGRAM_SCHED_CLS,
        instructions: u32::try_from(program.len()).map_err(|_| ErrorKind::InvalidInput)?,
        program: address(program.as_ptr()),
        license: address(c"MIT".as_ptr()),
        log_level: u32::from(is_logged),
        log_octets: u32::try_from(log.len()).map_err(|_| ErrorKind::InvalidInput)?,
        log: if is_logged {
            address(log.as_mut_ptr().cast_const())
        } else {
            0
        },
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `attributes` is the front of `union bpf_attr` as `BPF_PROG_LOAD` reads it, its size
    // is given and the kernel takes the rest as zero; the instructions and the license behind its
    // addresses are live and as long as told, and are only read. The log is as long as told, ours
    // alone to write, and the kernel is done with it when the call returns.
    let program = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const attributes,
            size_of::<Load>(),
        )
    };
    owned(program)
}

/// Attaches a program where packets leave the stack for the device (`BPF_LINK_CREATE`,
/// `BPF_TCX_EGRESS`, kernel 6.6), for as long as the returned descriptor is open.
///
/// # Errors
///
/// The kernel's: `EINVAL` where it does not know such attachments, `ENODEV` for no such device in
/// the network namespace of the calling thread.
pub fn attach_egress(program: BorrowedFd<'_>, device: u32) -> Result<OwnedFd> {
    attach(program, device, TCX_EGRESS)
}

/// Attaches a program where packets of the device enter the stack (`BPF_TCX_INGRESS`).
///
/// # Errors
///
/// As [`attach_egress`].
pub fn attach_ingress(program: BorrowedFd<'_>, device: u32) -> Result<OwnedFd> {
    attach(program, device, TCX_INGRESS)
}

fn attach(program: BorrowedFd<'_>, device: u32, kind: u32) -> Result<OwnedFd> {
    let attributes = Attach {
        program: program.as_raw_fd(),
        device,
        kind,
        flags: 0,
        relative: 0,
        padding: 0,
        revision: 0,
    };
    // SAFETY: `attributes` is the front of `union bpf_attr` as `BPF_LINK_CREATE` reads it, its
    // size is given and the kernel takes the rest as zero; it has no addresses.
    let link = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            LINK_CREATE,
            &raw const attributes,
            size_of::<Attach>(),
        )
    };
    owned(link)
}

/// A map from keys of `K` to values of `V`, of which a program finds an entry by the octets of its
/// key (`BPF_MAP_TYPE_HASH`). An entry is replaced as a whole: a program sees the old or the new one.
#[derive(Debug)]
pub struct HashMap<K, V> {
    descriptor: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: IntoBytes + Immutable, V: IntoBytes + Immutable> HashMap<K, V> {
    /// Makes a map with room for `entries`, which the kernel allocates at once.
    ///
    /// # Errors
    ///
    /// The kernel's: `EPERM` without `CAP_BPF`, `ENOMEM`.
    pub fn new(entries: u32) -> Result<Self> {
        let descriptor = create(&Create {
            kind: MAP_HASH,
            key_octets: octets_of::<K>()?,
            value_octets: octets_of::<V>()?,
            entries,
            flags: 0,
        })?;
        Ok(Self {
            descriptor,
            types: PhantomData,
        })
    }

    /// Writes an entry, in the place of one of that key if there is one.
    ///
    /// # Errors
    ///
    /// The kernel's: `E2BIG` when the map is full.
    pub fn insert(&self, key: &K, value: &V) -> Result<()> {
        let attributes = Element {
            map: self.descriptor.as_raw_fd(),
            padding: 0,
            key: address(std::ptr::from_ref(key)),
            value: address(std::ptr::from_ref(value)),
            flags: 0,
        };
        // SAFETY: `attributes` is the front of `union bpf_attr` as `BPF_MAP_UPDATE_ELEM` reads it,
        // its size is given and the kernel takes the rest as zero; key and value behind its
        // addresses are live, have no padding, are as long as the map was made for, and are only
        // read.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                MAP_UPDATE_ELEMENT,
                &raw const attributes,
                size_of::<Element>(),
            )
        };
        none(outcome)
    }

    /// Takes an entry out.
    ///
    /// # Errors
    ///
    /// The kernel's: `ENOENT` when there is none.
    pub fn remove(&self, key: &K) -> Result<()> {
        let attributes = Element {
            map: self.descriptor.as_raw_fd(),
            padding: 0,
            key: address(std::ptr::from_ref(key)),
            value: 0,
            flags: 0,
        };
        // SAFETY: as in `insert`, of `BPF_MAP_DELETE_ELEM`, which reads no value.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                MAP_DELETE_ELEMENT,
                &raw const attributes,
                size_of::<Element>(),
            )
        };
        none(outcome)
    }
}

impl<K, V> AsFd for HashMap<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Memory that programs and this process see at the same time: an array of one value
/// (`BPF_MAP_TYPE_ARRAY` with `BPF_F_MMAPABLE`), mapped into this process as long as it lives. Who shows
/// it to others says why that is sound.
#[derive(Debug)]
pub(super) struct SharedMemory {
    base: NonNull<u8>,
    octets: u32,
    map: OwnedFd,
}

impl SharedMemory {
    /// Makes an array of that many octets, all zero.
    pub(super) fn new(octets: u32) -> Result<Self> {
        let map = create(&Create {
            kind: MAP_ARRAY,
            key_octets: octets_of::<u32>()?,
            value_octets: octets,
            entries: 1,
            flags: MAP_MMAPABLE,
        })?;
        Self::mapped(octets, map)
    }

    /// Memory of a file in place of a map, for tests that write it themselves.
    #[cfg(test)]
    pub(super) fn of_a_file(octets: u32) -> Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(octets.into())?;
        Self::mapped(octets, file.into())
    }

    fn mapped(octets: u32, map: OwnedFd) -> Result<Self> {
        // SAFETY: a mapping of its own at an address that the kernel chooses, as long as the value of
        // the only entry, which the map was just made with, or the file.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                octets as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or(ErrorKind::InvalidData)?;
        Ok(Self { base, octets, map })
    }

    /// Where it begins: at a page.
    pub(super) const fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `mapped` made, of that length, which nobody sees any more.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.octets as usize) };
    }
}

/// Numbers of 64 bits that programs and this process read and write at the same time.
#[derive(Debug)]
pub struct SharedNumbers {
    memory: SharedMemory,
    count: NonZeroUsize,
}

// SAFETY: what it points to is mapped for as long as it lives, wherever that is, and is only seen as
// atomic numbers.
unsafe impl Send for SharedNumbers {}
// SAFETY: as above.
unsafe impl Sync for SharedNumbers {}

impl SharedNumbers {
    /// Makes `count` numbers, all zero.
    ///
    /// # Errors
    ///
    /// The kernel's: `EPERM` without `CAP_BPF`, `ENOMEM`.
    pub fn new(count: NonZeroUsize) -> Result<Self> {
        let octets = count.get().checked_mul(size_of::<AtomicU64>());
        let octets = octets.and_then(|octets| u32::try_from(octets).ok());
        let memory = SharedMemory::new(octets.ok_or(ErrorKind::InvalidInput)?)?;
        Ok(Self { memory, count })
    }

    /// The numbers.
    #[must_use]
    pub const fn numbers(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, as long as `count` numbers, and lives as long as
        // `self`; all values are valid, and whoever else writes it, a program or a CPU, does so with
        // aligned stores or atomic additions of 64 bits.
        unsafe { std::slice::from_raw_parts(self.memory.base().as_ptr().cast(), self.count.get()) }
    }
}

impl AsFd for SharedNumbers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

fn create(attributes: &Create) -> Result<OwnedFd> {
    // SAFETY: `attributes` is the front of `union bpf_attr` as `BPF_MAP_CREATE` reads it, its size is
    // given and the kernel takes the rest as zero; it has no addresses.
    let map = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            MAP_CREATE,
            std::ptr::from_ref(attributes),
            size_of::<Create>(),
        )
    };
    owned(map)
}

fn octets_of<T>() -> Result<u32> {
    u32::try_from(size_of::<T>()).map_err(|_| ErrorKind::InvalidInput.into())
}

#[repr(C)]
struct Create {
    kind: u32,
    key_octets: u32,
    value_octets: u32,
    entries: u32,
    flags: u32,
}

#[repr(C)]
struct Element {
    map: RawFd,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_octets: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    program: RawFd,
    device: u32,
    kind: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

fn address<T>(of: *const T) -> u64 {
    of.expose_provenance() as u64
}

fn owned(descriptor: libc::c_long) -> Result<OwnedFd> {
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    let descriptor = RawFd::try_from(descriptor).map_err(|_| ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec as all that bpf(2)
    // makes, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn none(outcome: libc::c_long) -> Result<()> {
    if outcome < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEMENT: libc::c_int = 2;
const MAP_DELETE_ELEMENT: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_HASH: u32 = 1;
const MAP_ARRAY: u32 = 2;
const MAP_MMAPABLE: u32 = 1 << 10;
const PROGRAM_SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;

/// Numbers of the kernel's interface that programs use (`linux/bpf.h`).
pub mod abi {
    /// Offsets in `struct __sk_buff`.
    pub const SKB_LEN: i16 = 0;
    /// See above, as all that follow.
    pub const SKB_PACKET_TYPE: i16 = 4;
    /// The mark.
    pub const SKB_MARK: i16 = 8;
    /// The Ethernet type, in network order.
    pub const SKB_PROTOCOL: i16 = 16;
    /// Whether there is a VLAN tag.
    pub const SKB_VLAN_PRESENT: i16 = 20;
    /// Where the part that can be read at once begins.
    pub const SKB_DATA: i16 = 76;
    /// Where it ends.
    pub const SKB_DATA_END: i16 = 80;
    /// Octets of a segment; zero for a packet that is not to be cut.
    pub const SKB_GSO_SIZE: i16 = 176;

    /// The mode of `bpf_skb_adjust_room` in which room is made behind the link's header.
    pub const BEHIND_MAC: i32 = 1;

    /// What a program says of a packet that goes on: `TCX_NEXT`.
    pub const NEXT: i32 = -1;
    /// And of one that is dropped: `TCX_DROP`.
    pub const DROP: i32 = 2;

    /// `bpf_map_lookup_elem`.
    pub const LOOKUP: i32 = 1;
    /// `bpf_get_prandom_u32`.
    pub const RANDOM: i32 = 7;
    /// `bpf_skb_store_bytes`.
    pub const STORE_BYTES: i32 = 9;
    /// `bpf_redirect`.
    pub const REDIRECT: i32 = 23;
    /// `bpf_skb_load_bytes`.
    pub const LOAD_BYTES: i32 = 26;
    /// `bpf_skb_change_head`.
    pub const CHANGE_HEAD: i32 = 43;
    /// `bpf_skb_adjust_room`.
    pub const ADJUST_ROOM: i32 = 50;
    /// `bpf_redirect_neigh`.
    pub const REDIRECT_NEIGH: i32 = 152;
    /// `bpf_ktime_get_coarse_ns`.
    pub const COARSE_TIME: i32 = 160;
}
