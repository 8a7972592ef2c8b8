//! Programs of extended BPF that classify packets, and where they are attached: `bpf(2)`.
//!
//! What a program does is decided above; the kernel's verifier proves that it harms nothing.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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
    let attributes = Load {
        program_type: PROGRAM_SCHED_CLS,
        instructions: u32::try_from(program.len()).map_err(|_| ErrorKind::InvalidInput)?,
        program: address(program.as_ptr()),
        license: address(c"MIT".as_ptr()),
        log_level: 0,
        log_octets: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `attributes` is the front of `union bpf_attr` as `BPF_PROG_LOAD` reads it, its size
    // is given and the kernel takes the rest as zero; the instructions and the license behind its
    // addresses are live and as long as told, and are only read.
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
    let attributes = Attach {
        program: program.as_raw_fd(),
        device,
        kind: TCX_EGRESS,
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

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROGRAM_SCHED_CLS: u32 = 3;
const TCX_EGRESS: u32 = 47;
