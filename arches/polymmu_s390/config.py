"""What a machine file may say about an s390."""

from __future__ import annotations

import attrs
from attrs import field

from polymmu.arch import doc, mm_struct


@attrs.frozen(kw_only=True)
class S390Config:
    """The ``s390`` section of a machine file."""

    mode: str = field(
        default="z", metadata=doc("z (z/Architecture) or esa (ESA/390, 31 bits)", choices=("z", "esa"))
    )
    levels: int = field(
        default=3,
        metadata=doc("levels a program begins with: 2 (a 31-bit program, for good), 3 (grows to 4) or 4; z only",
                     minimum=2, maximum=4),
    )  # fmt: skip
    edat: int = field(
        default=0,
        metadata=doc("enhanced DAT: 1 from z10 on (1 MiB pages), 2 from zEC12 on (2 GiB too); z only",
                     minimum=0, maximum=2),
    )  # fmt: skip
    iep: bool = field(
        default=False, metadata=doc("instruction-execution protection (z14), where CR0 enables it; z only")
    )
    idte: bool = field(
        default=False, metadata=doc("the IDTE instruction (z990); without it whole TLBs are purged; z only")
    )
    strict: bool = field(
        default=False,
        metadata=doc("bits 52 and 55 of a pte must be right even where it is invalid or has no use for them"),
    )

    @property
    def is_esa(self) -> bool:
        """31 bits."""
        return self.mode == "esa"

    @property
    def has_idte(self) -> bool:
        """Whether one mm, or one segment, can be purged."""
        return self.idte and not self.is_esa

    @property
    def has_large_pages(self) -> bool:
        """Whether a segment entry may map 1 MiB."""
        return self.edat >= 1 and not self.is_esa


def config_of(mm: mm_struct) -> S390Config:
    """The section of the machine this mm lives on."""
    section: S390Config = mm.kernel.description.section
    return section
