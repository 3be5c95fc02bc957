"""What every architecture must do: the kit's checks, on each machine of this one."""

from polymmu import conformance


class TestConformance(conformance.Suite):
    arch = "riscv"
    machines = ("riscv64", "riscv64-sv39", "riscv64-sv57", "sifive-u74")


class TestHardwareSetsTheBits(conformance.Suite):
    arch = "riscv"
    machines = ("riscv64",)
    sets = ("riscv.ad_bits=svadu", "riscv.svvptc=true", "riscv.asid_bits=0", "riscv.remote_fence=ipi")
