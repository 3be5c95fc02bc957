"""A device's file: to map it is to map memory of its driver's, frames that the mm core does not manage.

The driver has one piece of memory, from when the file is made until nobody holds it. It does as drivers do that were
met half way by a failure: where its memory cannot be mapped and nobody has it, it gives the memory up; and it may find
that its device is gone when everything is mapped already. When the device is pulled out it has everybody's ptes
removed, and believes that nobody reaches the memory then.
"""

from __future__ import annotations

import errno
from typing import Any

from polymmu.errors import SyscallError, syscall_error
from polymmu.hooks import ArchKernel
from polymmu.mm.frames import alloc_pages, free_pages
from polymmu.mm.linear import vma_pages
from polymmu.mm.pagecache import new_file
from polymmu.mm.remap import remap_pfn_range
from polymmu.mm.truncate import unmap_mapping_range
from polymmu.structs import File, Kernel, address_space, vm_area_struct

__all__ = ["new_driver"]


class Driver:
    """The memory behind one such file: ``pages`` frames from ``pfn`` on; -1 when it was given up."""

    def __init__(self, kernel: ArchKernel, pages: int, *, refuses: bool) -> None:
        self.kernel = kernel
        self.pages = pages
        self.order = (pages - 1).bit_length()
        self.refuses = refuses
        self.mapped = False
        """Whether it ever was, all of a mapping."""
        self.pfn = alloc_pages(kernel, self.order, "driver")
        if self.pfn < 0:
            raise syscall_error(errno.ENOMEM, f"no {pages} free frames in one block for a driver")

    def mmap(self, file: File, vma: vm_area_struct) -> None:
        """The file's mmap operation."""
        pages = vma_pages(vma)
        if self.pfn < 0:
            raise syscall_error(errno.ENODEV, f"the driver of {file.name} has given up its memory")
        if vma.vm_pgoff + pages > self.pages:
            raise syscall_error(
                errno.EINVAL, f"{file.name} has {self.pages} pages, not {vma.vm_pgoff + pages}"
            )
        try:
            remap_pfn_range(vma, vma.vm_start, self.pfn + vma.vm_pgoff, pages)
        except SyscallError:
            if not self.mapped:
                self.release()
            raise
        if self.refuses:
            raise syscall_error(errno.ENODEV, f"the device of {file.name} is gone")
        self.mapped = True

    def remove(self, mapping: address_space) -> None:
        """The file's remove operation: the device is pulled out, and its memory goes, whoever has it mapped.

        A mapping that is still being made would not be found: no mmap of it may be under way.
        """
        unmap_mapping_range(self.kernel, mapping, 0, 0, True)
        self.release()

    def release(self) -> None:
        """The file's release operation: the memory goes."""
        if self.pfn >= 0:
            free_pages(self.kernel, self.pfn, self.order)
            self.pfn = -1


def new_driver(kernel: Kernel[Any], name: str, size: int, *, refuses: bool) -> File:
    """The file of a device with ``size`` bytes of memory, with one reference, the caller's.

    ``refuses``: its mmap maps everything, and fails then. Raises ENOMEM.
    """
    driver = Driver(kernel, -(-size // kernel.shape.layout.page_size), refuses=refuses)
    file = new_file(kernel, name, size, mmap=driver.mmap)
    file.remove = lambda: driver.remove(file.mapping)
    file.release = driver.release
    return file
