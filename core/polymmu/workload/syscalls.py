"""The x86-64 Linux system calls a workload is made of: numbers, names, flags.

Only calls that can change mappings, the files behind them, or who shares an mm are listed; a reader drops the
rest. Numbers: arch/x86/entry/syscalls/syscall_64.tbl; flags: the uapi headers mman.h, sched.h, fcntl.h.
"""

from __future__ import annotations

__all__ = [
    "CLONE_THREAD",
    "CLONE_VFORK",
    "CLONE_VM",
    "FORKS",
    "NAMES",
    "NUMBERS",
    "huge_size",
    "prot_letters",
    "signed_fd",
]

NAMES: dict[int, str] = {
    2: "open",
    3: "close",
    9: "mmap",
    10: "mprotect",
    11: "munmap",
    12: "brk",
    25: "mremap",
    28: "madvise",
    32: "dup",
    33: "dup2",
    56: "clone",
    57: "fork",
    58: "vfork",
    59: "execve",
    60: "exit",
    61: "wait4",
    72: "fcntl",
    76: "truncate",
    77: "ftruncate",
    85: "creat",
    231: "exit_group",
    257: "openat",
    292: "dup3",
    319: "memfd_create",
    322: "execveat",
    435: "clone3",
    437: "openat2",
}
NUMBERS: dict[str, int] = {name: number for number, name in NAMES.items()}

FORKS = frozenset({"clone", "clone3", "fork", "vfork"})

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE = 0x01, 0x03, 0x0F
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x100
MAP_NORESERVE = 0x4000
MAP_POPULATE = 0x8000
MAP_HUGETLB, MAP_HUGE_SHIFT = 0x40000, 26
MAP_FIXED_NOREPLACE = 0x100000

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4

MADV_DONTNEED = 4

F_DUPFD, F_DUPFD_CLOEXEC = 0, 1030

O_TMPFILE = 0o20200000

CLONE_VM = 0x00000100
CLONE_VFORK = 0x00004000
CLONE_THREAD = 0x00010000


def prot_letters(prot: int) -> str:
    """``PROT_*`` bits as the letters the mm handles take: 5 is ``rx``, 0 is empty."""
    return "".join(letter for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if prot & bit)


def huge_size(flags: int) -> int:
    """Bytes of the huge pages that mmap flags ask for, 0 for none.

    The six bits from MAP_HUGE_SHIFT on are the size's log2; none: x86-64's default, 2 MiB.
    """
    return 1 << (flags >> MAP_HUGE_SHIFT & 0x3F or 21) if flags & MAP_HUGETLB else 0


_INT_ARGUMENTS = {
    "mmap": (4,),
    "openat": (0,),
    "openat2": (0,),
    "execveat": (0,),
    "close": (0,),
    "wait4": (0,),
    "dup": (0,),
    "dup2": (0, 1),
    "dup3": (0, 1),
    "fcntl": (0,),
    "ftruncate": (0,),
}


def signed_fd(name: str, args: tuple[int, ...]) -> tuple[int, ...]:
    """``args`` with C ``int`` arguments (descriptors, pids) that were printed unsigned made signed again."""
    positions = _INT_ARGUMENTS.get(name)
    if positions is None:
        return args
    return tuple(
        value - (1 << 32) if index in positions and 1 << 31 <= value < 1 << 32 else value
        for index, value in enumerate(args)
    )
