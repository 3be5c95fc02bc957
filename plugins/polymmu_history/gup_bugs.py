"""Known bugs of get_user_pages by their number in the gallery, each one step left out or done wrong."""

from __future__ import annotations

from polymmu.mm.gup import GetUserPages
from polymmu.structs import VM_WRITE, vm_area_struct

__all__ = ["GUP"]


class Bug061(GetUserPages):
    """After any fault the page is looked up to be read: what the fault has brought may be another one's by then."""

    since = "2.6.13, mended within the month"
    wrong = "INV-COW: a store goes to the page of the file"

    def still_writes(self, vma: vm_area_struct, kind: str) -> bool:
        return False


class Bug062(GetUserPages):
    """Where the program may not store, the page is looked up to be read once it was copied (Dirty COW)."""

    since = "2.6.22, mended 4.9"
    wrong = "INV-COW: a store goes to the page of the file"

    def still_writes(self, vma: vm_area_struct, kind: str) -> bool:
        return bool(vma.vm_flags & VM_WRITE) or kind != "cow"


class Bug069(GetUserPages):
    """What was read without a lock is believed."""

    since = "never in Linux: the design of 2.6.27 has the second look"
    wrong = "INV-WALK: a frame is held that was freed meanwhile"

    def rereads(self) -> bool:
        return False


GUP = {"bug-61": Bug061, "bug-62": Bug062, "bug-69": Bug069}
