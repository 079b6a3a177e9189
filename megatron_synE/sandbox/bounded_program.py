"""Runs a program that a model wrote, in a process that can compute and read files, and nothing else.

Started by `run_code` as ``python -I -S bounded_program.py PROGRAM TOKEN SECONDS MEMORY_BYTES``. Before the program
begins, the kernel limits time and memory and allows (seccomp) only the system calls in the table: no socket, no other
process, no file that is opened for writing, no signal to others. Where the kernel cannot do that, nothing is run.
The token is written once the program has come to its end; exit status ``NO_SANDBOX`` says that it was not begun.
"""

import contextlib
import ctypes
import os
import platform
import resource
import struct
import sys

NO_SANDBOX = 77
# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 readv writev
# sched_yield mremap madvise dup nanosleep getpid exit uname fcntl getcwd gettimeofday getrusage sysinfo times getuid
# getgid geteuid getegid getppid sigaltstack gettid futex sched_getaffinity getdents64 clock_gettime clock_getres
# clock_nanosleep exit_group newfstatat readlinkat faccessat set_robust_list getrandom statx rseq faccessat2
X86_64 = (
    0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20,
    24, 25, 28, 32, 35, 39, 60, 63, 72, 79, 96, 98, 99, 100, 102,
    104, 107, 108, 110, 131, 186, 202, 204, 217, 228, 229,
    230, 231, 262, 267, 269, 273, 318, 332, 334, 439,
)  # fmt: skip
AARCH64 = (
    63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 67, 65, 66,
    124, 216, 233, 23, 101, 172, 93, 160, 25, 17, 169, 165, 179, 153, 174,
    176, 175, 177, 173, 132, 178, 98, 123, 61, 113, 114,
    115, 94, 79, 78, 48, 99, 278, 291, 293, 439,
)  # fmt: skip
X86_64_OLD = (4, 6, 7, 21, 23, 89)
"""stat, lstat, poll, access, select and readlink, which newer architectures have in other forms only."""
OPENAT = {"x86_64": 257, "aarch64": 56}
OPEN = {"x86_64": 2}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1
NUMBER_OFFSET, ARCH_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def filter_program(machine: str) -> bytes:
    """The seccomp filter of an architecture, as an array of `struct sock_filter`."""

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    def open_rule(number: int, flags_argument: int) -> list[bytes]:
        return [
            instruction(JUMP_EQUAL, number, 0, 4),
            instruction(LOAD, ARGUMENTS_OFFSET + 8 * flags_argument),
            instruction(JUMP_SET, WRITING, 0, 1),
            instruction(RETURN, REFUSE),
            instruction(RETURN, ALLOW),
        ]

    allowed = [*X86_64, *X86_64_OLD] if machine == "x86_64" else list(AARCH64)
    program = [
        instruction(LOAD, ARCH_OFFSET),
        instruction(JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER_OFFSET),
    ]
    for number in allowed:
        program += [instruction(JUMP_EQUAL, number, 0, 1), instruction(RETURN, ALLOW)]
    program += open_rule(OPENAT[machine], flags_argument=2)
    if machine in OPEN:
        program += open_rule(OPEN[machine], flags_argument=1)
    return b"".join([*program, instruction(RETURN, REFUSE)])


def enter_sandbox() -> None:
    """Install the filter. OSError where the kernel has none."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in AUDIT_ARCH:
        raise OSError("no filter of system calls for this machine")
    program = filter_program(machine)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count, padding, a pointer
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def limit(seconds: int, memory_bytes: int) -> None:
    """Time of computing, memory, no core file, nothing written."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def main() -> None:
    path, token, seconds, memory_bytes = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        source = file.read()
    sys.argv = ["program"]
    out = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.setrecursionlimit(10_000)
    try:
        limit(int(seconds), int(memory_bytes))
        enter_sandbox()
    except (OSError, ValueError):
        os._exit(NO_SANDBOX)
    with contextlib.suppress(SystemExit):
        exec(compile(source, "program", "exec"), {"__name__": "program"})
        os.write(out, token.encode())
        os._exit(0)
    os._exit(1)


if __name__ == "__main__":
    main()
