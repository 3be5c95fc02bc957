"""A process that does only what it is told: 150 bytes of x86-64 code, one page, no stack.

Run as a script (``python bare_process.py COMMANDS REPLIES``) it becomes such a process: it maps one page at
``PAGE``, puts ``CODE`` there and jumps into it. Python, its libraries and its stack are still mapped then; whoever
drives it tells it to unmap them. From there on each fault and each table that the kernel counts for it comes from a
command, because the page it lives on is present, shared (so a fork does not write-protect it) and alone in its part of
the address space.

A command is 64 bytes on the process's own command pipe: what, system call number, six arguments. The reply is 8
bytes on the pipe that all of them share. A forked child goes on with the slot (its 64 bytes of the page) and the
command pipe that arguments 5 and 6 of its fork named; fork itself ignores them. Where the command pipe
has no writer left the process exits.

Only the standard library is imported: this runs before anything else of ours could.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

__all__ = ["CALL", "CODE", "FORK", "LOAD", "PAGE", "STORE", "slot_address"]

PAGE = 0x3000_0000_0000
"""Where it lives: entry 96 of the root, away from Python's mappings and from every address the tests use."""

SLOTS = 0x800
"""Offset of slot 0 in the page; slots are 64 bytes."""

CALL, LOAD, STORE, FORK = range(4)
"""What a command asks for."""

# A line is a label, an instruction's bytes, or a short jump's opcode and where it goes.
# rbx: this process's slot, r12: its command pipe, r13: the reply pipe, r14: what the command asks for.
ASSEMBLY = """
            48 89 FB            mov rbx, rdi            the three arguments of start(slot, commands, replies)
            41 89 F4            mov r12d, esi
            41 89 D5            mov r13d, edx
            31 C0               xor eax, eax            reply 0: ready
            EB reply            jmp reply
next:
            31 C0               xor eax, eax            read(commands, slot, 64)
            44 89 E7            mov edi, r12d
            48 89 DE            mov rsi, rbx
            BA 40 00 00 00      mov edx, 64
            0F 05               syscall
            83 F8 40            cmp eax, 64
            75 exit             jne exit
            4C 8B 33            mov r14, [rbx]
            48 8B 43 08         mov rax, [rbx + 8]
            48 8B 7B 10         mov rdi, [rbx + 16]
            48 8B 73 18         mov rsi, [rbx + 24]
            48 8B 53 20         mov rdx, [rbx + 32]
            4C 8B 53 28         mov r10, [rbx + 40]
            4C 8B 43 30         mov r8, [rbx + 48]
            4C 8B 4B 38         mov r9, [rbx + 56]
            41 83 FE 01         cmp r14d, LOAD
            74 load             je load
            41 83 FE 02         cmp r14d, STORE
            74 store            je store
            0F 05               syscall                 keeps all registers but rax, rcx and r11
            41 83 FE 03         cmp r14d, FORK
            75 reply            jne reply
            48 85 C0            test rax, rax
            75 reply            jne reply
            4C 89 C3            mov rbx, r8             a new child
            45 89 CC            mov r12d, r9d
reply:
            48 89 03            mov [rbx], rax          write(replies, slot, 8)
            B8 01 00 00 00      mov eax, 1
            44 89 EF            mov edi, r13d
            48 89 DE            mov rsi, rbx
            BA 08 00 00 00      mov edx, 8
            0F 05               syscall
            EB next             jmp next
load:
            0F B6 07            movzx eax, byte [rdi]
            EB reply            jmp reply
store:
            40 88 37            mov [rdi], sil
            31 C0               xor eax, eax
            EB reply            jmp reply
exit:
            B8 E7 00 00 00      mov eax, 231            exit_group(0)
            31 FF               xor edi, edi
            0F 05               syscall
"""

OPCODES = 12, 32
"""Columns in which a line's bytes stand."""

LIBC_MAP_FIXED_NOREPLACE = 0x100000
PR_SET_THP_DISABLE = 41
STACK_LIMIT = 8 << 20
"""Linux's default, which the emulated kernel has too."""


def assemble(text: str) -> bytes:
    """The bytes of ``text``, jumps resolved."""
    code = bytearray()
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.endswith(":"):
            labels[line[:-1]] = len(code)
            continue
        for word in line[slice(*OPCODES)].split():
            if len(word) == 2:
                code.append(int(word, 16))
            else:
                jumps.append((len(code), word))
                code.append(0)
    for at, label in jumps:
        code[at] = (labels[label] - (at + 1)) & 0xFF
    return bytes(code)


CODE = assemble(ASSEMBLY)


def slot_address(slot: int) -> int:
    """Where the slot of that number is."""
    return PAGE + SLOTS + 64 * slot


def become_bare(commands: int, replies: int) -> None:
    """Turn this process into a bare one. Does not return; raises OSError where the kernel will not have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    # One CPU: a translation that an earlier step left in another CPU's TLB cannot fault there.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that exit wait for nobody
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_LIMIT, hard))
    if libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE)")
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    rights, flags = 1 | 2 | 4, 0x01 | 0x20 | LIBC_MAP_FIXED_NOREPLACE  # rwx; shared, anonymous
    if libc.mmap(PAGE, 4096, rights, flags, -1, 0) != PAGE:
        raise OSError(ctypes.get_errno(), f"mmap of {PAGE:#x}")
    ctypes.memmove(PAGE, CODE, len(CODE))
    start = ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_int, ctypes.c_int)(PAGE)
    start(slot_address(0), commands, replies)


if __name__ == "__main__":
    become_bare(int(sys.argv[1]), int(sys.argv[2]))
