"""What the tests of the system calls share: mappings as pictures, and what must be left when all is over."""

from __future__ import annotations

from polymmu.hooks import ArchKernel
from polymmu.mm.mmap import do_mmap
from polymmu.mm.vma import vmas_of
from polymmu.structs import VM_EXEC, VM_READ, VM_WRITE, File, mm_struct

PAGE = 4096
RIGHTS = {"-": 0, "r": VM_READ, "w": VM_READ | VM_WRITE, "x": VM_READ | VM_EXEC}
LETTERS = {rights: letter for letter, rights in RIGHTS.items()}


def draw(mm: mm_struct, picture: str, *, at: int, file: File | None = None) -> None:
    """Map what ``picture`` shows, a letter per page (``.``: nothing); a run of one letter is one call."""
    page = 0
    while page < len(picture):
        letter = picture[page]
        end = page
        while end < len(picture) and picture[end] == letter:
            end += 1
        if letter != ".":
            do_mmap(
                mm,
                at + page * PAGE,
                (end - page) * PAGE,
                RIGHTS[letter],
                fixed=True,
                file=file,
                pgoff=page if file is not None else 0,
            )
        page = end


def picture(mm: mm_struct, *, at: int, pages: int) -> str:
    """The mappings of [at, at + pages): a letter per page, ``|`` where one vma ends and the next begins."""
    text = ""
    end = at
    for vma in vmas_of(mm.mmap):
        low, high = max(vma.vm_start, at), min(vma.vm_end, at + pages * PAGE)
        if low < high:
            text += "." * ((low - end) // PAGE) + ("|" if low == end and text else "")
            text += LETTERS[vma.vm_flags & 7] * ((high - low) // PAGE)
            end = high
    return text + "." * ((at + pages * PAGE - end) // PAGE)


def check_links(mm: mm_struct) -> None:
    """The four ways to a vma agree (see polymmu.mm.vma), and so do the counters."""
    vmas = list(vmas_of(mm.mmap))
    assert [vma.vm_start for vma in vmas] == list(mm.vmas)
    assert all(mm.vmas[vma.vm_start] is vma for vma in vmas)
    assert mm.map_count == len(vmas)
    assert mm.total_vm == sum(vma.vm_end - vma.vm_start for vma in vmas) // PAGE
    prev = None
    for vma in vmas:
        assert vma.vm_mm is mm
        assert vma.vm_prev is prev
        assert vma.vm_start < vma.vm_end
        assert prev is None or prev.vm_end <= vma.vm_start
        if vma.vm_file is not None:
            assert vma in vma.vm_file.mapping.i_mmap
        prev = vma


def check_nothing_left(kernel: ArchKernel, free_before: int) -> None:
    """Every address space has exited and every file is closed: nothing is held, not even by a pagevec."""
    assert kernel.vmas.live == 0
    assert kernel.anon_vmas.live == 0
    assert kernel.mappings.live == 0
    assert kernel.mms.live == 1  # the kernel's own
    assert kernel.free.free == free_before
