"""strace's way of printing arguments, turned back into the numbers that the program passed.

What has to be told apart, one of each:

    3, NULL, 0x7f00, 0644, PROT_READ|PROT_WRITE, AT_FDCWD, "a, \\"path\\"", {flags=..., ...}, [1, 2],
    child_stack=NULL, 3</a/path>, /* 4 vars */
"""

from __future__ import annotations

import re

from polymmu.workload import syscalls
from polymmu.workload.syscalls import signed_fd

__all__ = ["call_arguments"]

SYMBOLS: dict[str, int] = {
    "NULL": 0,
    "AT_FDCWD": -100,
    "PROT_NONE": 0,
    "PROT_READ": syscalls.PROT_READ,
    "PROT_WRITE": syscalls.PROT_WRITE,
    "PROT_EXEC": syscalls.PROT_EXEC,
    "MAP_SHARED": syscalls.MAP_SHARED,
    "MAP_PRIVATE": 0x02,
    "MAP_SHARED_VALIDATE": syscalls.MAP_SHARED_VALIDATE,
    "MAP_FIXED": syscalls.MAP_FIXED,
    "MAP_ANONYMOUS": syscalls.MAP_ANONYMOUS,
    "MAP_GROWSDOWN": syscalls.MAP_GROWSDOWN,
    "MAP_DENYWRITE": 0x0800,
    "MAP_NORESERVE": 0x4000,
    "MAP_POPULATE": syscalls.MAP_POPULATE,
    "MAP_HUGETLB": syscalls.MAP_HUGETLB,
    "MAP_STACK": 0x20000,
    "MAP_FIXED_NOREPLACE": syscalls.MAP_FIXED_NOREPLACE,
    "MREMAP_MAYMOVE": syscalls.MREMAP_MAYMOVE,
    "MREMAP_FIXED": syscalls.MREMAP_FIXED,
    "MREMAP_DONTUNMAP": syscalls.MREMAP_DONTUNMAP,
    "MADV_DONTNEED": syscalls.MADV_DONTNEED,
    "MADV_FREE": 8,
    "CLONE_VM": syscalls.CLONE_VM,
    "CLONE_VFORK": syscalls.CLONE_VFORK,
    "CLONE_THREAD": syscalls.CLONE_THREAD,
    "SIGCHLD": 17,
    "O_TMPFILE": syscalls.O_TMPFILE,
    "F_DUPFD": syscalls.F_DUPFD,
    "F_DUPFD_CLOEXEC": syscalls.F_DUPFD_CLOEXEC,
}
"""Flags that change what a call does to mappings. Others count as 0: they only tune."""

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(?:\.\.\.)?|[][(){},]|[^][(){},"]+|"', re.DOTALL)
_FLAGS = re.compile(r"flags=([A-Z0-9_|x]+)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_COMMENT = re.compile(r"/\*.*?\*/")
_PATH_CALLS = {
    "open": 0,
    "creat": 0,
    "truncate": 0,
    "openat": 1,
    "openat2": 1,
    "execve": 0,
    "memfd_create": 0,
}


def split(text: str) -> list[str]:
    """The arguments of a call, cut at commas that are in no string, bracket or brace."""
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts] if text.strip() else []


def number(text: str) -> int:
    """One argument's value; strings, structures and unknown symbols are 0."""
    text = _COMMENT.sub("", text).strip()
    _, equals, value = text.partition("=")
    if equals and not text.startswith(("{", '"')):
        text = value
    text = text.partition("<")[0] if not text.startswith('"') and "<<" not in text else text
    total = 0
    for part in text.split("|"):
        word, shifted, _ = part.strip().partition("<<MAP_HUGE_SHIFT")
        try:
            octal = len(word) > 1 and word.startswith("0") and word.isdigit()
            total |= int(word, 8 if octal else 0) << (syscalls.MAP_HUGE_SHIFT if shifted else 0)
        except ValueError:
            total |= SYMBOLS.get(word, 0)
    return total


def call_arguments(name: str, text: str) -> tuple[tuple[int, ...], str]:
    """(arguments, path) of a call that strace printed as ``name(text)``.

    ``clone`` and ``clone3`` give their flags as the first argument, whatever order strace printed.
    """
    if name in ("clone", "clone3"):
        flags = _FLAGS.search(text)
        return (number(flags[1]) if flags else 0,), ""
    parts = split(text)
    position = _PATH_CALLS.get(name)
    path = ""
    if position is not None and position < len(parts):
        string = _STRING.match(parts[position])
        path = string[1] if string else ""
    values = tuple(number(part) for part in parts[:6])
    if name == "fcntl" and len(parts) > 1 and parts[1] not in SYMBOLS:
        values = (values[0], -1, *values[2:])  # F_DUPFD is 0, so an unknown command must be something else
    return signed_fd(name, values), path
