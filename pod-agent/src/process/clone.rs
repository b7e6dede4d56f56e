//! Creates a process in a version 2 cgroup (clone3(2), `CLONE_INTO_CGROUP`, Linux 5.7).
//!
//! A process that moves itself to a cgroup waits until all cores have passed through the scheduler,
//! about 10 ms, and meanwhile slows down all other starts and ends of processes on the machine. One
//! that is created there does not. The C library has no function for this call.

use std::arch::asm;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// Not `libc::CLONE_INTO_CGROUP`, which is too small for its value.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// The alignment of a stack, on all machines.
const STACK_ALIGNMENT: usize = 16;

/// What the child does. It does not return.
type Child<'a> = &'a mut dyn FnMut() -> isize;

/// Runs `child` in a new process in `cgroup`, as `clone` does with `CLONE_VM | CLONE_VFORK`, and
/// returns when it has executed a program or ended.
///
/// # Errors
/// If the kernel refuses it, or does not know how.
///
/// # Safety
/// As for `nix::sched::clone`: the child shares the memory of this process.
#[expect(unsafe_code, reason = "see `spawn.rs`")]
pub(super) unsafe fn clone_into(
    mut child: Child<'_>,
    stack: &mut [u8],
    cgroup: BorrowedFd<'_>,
) -> Result<Pid, Errno> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK;
    let start = stack.as_ptr().addr().next_multiple_of(STACK_ALIGNMENT);
    let end = stack.as_ptr_range().end.addr() / STACK_ALIGNMENT * STACK_ALIGNMENT;
    let arguments = libc::clone_args {
        flags: u64::from(flags.cast_unsigned()) | CLONE_INTO_CGROUP,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: start as u64,
        stack_size: (end - start) as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: the caller's.
    let result = unsafe { clone3(&arguments, &raw mut child) };
    match i32::try_from(result) {
        Ok(pid) if pid >= 0 => Ok(Pid::from_raw(pid)),
        Ok(errno) => Err(Errno::from_raw(-errno)),
        Err(_) => Err(Errno::UnknownErrno),
    }
}

/// Makes the system call. The child starts with its own stack, so it can only call a function.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "see `clone_into`")]
unsafe fn clone3(arguments: &libc::clone_args, child: *mut Child<'_>) -> isize {
    let mut result = libc::SYS_clone3 as isize;
    // SAFETY: the system call keeps all registers but these three. The child does not return.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "2:",
            inlateout("rax") result,
            in("rdi") arguments,
            in("rsi") size_of_val(arguments),
            in("r12") child,
            in("r13") run as extern "C" fn(*mut Child<'_>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "see `clone_into`")]
unsafe fn clone3(arguments: &libc::clone_args, child: *mut Child<'_>) -> isize {
    let result: isize;
    // SAFETY: the system call keeps all registers but `x0`. The child does not return.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "2:",
            inlateout("x0") arguments => result,
            in("x1") size_of_val(arguments),
            in("x8") libc::SYS_clone3,
            in("x20") child,
            in("x21") run as extern "C" fn(*mut Child<'_>) -> !,
        );
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[expect(unsafe_code, reason = "it is unsafe elsewhere")]
unsafe fn clone3(_: &libc::clone_args, _: *mut Child<'_>) -> isize {
    -(libc::ENOSYS as isize)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[expect(unsafe_code, reason = "see `clone_into`")]
extern "C" fn run(child: *mut Child<'_>) -> ! {
    // SAFETY: it is on the stack of `clone_into`, which waits until the child has executed or ended.
    let code = unsafe { (*child)() };
    // SAFETY: ends this process without running anything of the one whose memory it shares.
    unsafe { libc::_exit(code as i32) }
}
