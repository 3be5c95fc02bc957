"""Every architecture of ours conforms, subclassed as a third party would. The slow tests add the other machines."""

from __future__ import annotations

import pytest

from polymmu import conformance


class TestX86(conformance.Suite):
    arch = "x86"
    machines = ("x86", "x86-pae")


class TestX8664(conformance.Suite):
    arch = "x86_64"


class TestIa64(conformance.Suite):
    arch = "ia64"


class TestPpc64(conformance.Suite):
    arch = "ppc64"


class TestSparc64(conformance.Suite):
    arch = "sparc64"


class TestS390(conformance.Suite):
    arch = "s390"


@pytest.mark.slow
class TestOtherX8664(conformance.Suite):
    arch = "x86_64"
    machines = ("x86_64-la57", "skylake", "zen", "nehalem")


@pytest.mark.slow
class TestOtherIa64(conformance.Suite):
    arch = "ia64"
    machines = ("itanium2",)


@pytest.mark.slow
class TestOtherPpc64(conformance.Suite):
    arch = "ppc64"
    machines = ("ppc64-64k", "power5")


@pytest.mark.slow
class TestPpc64OfThreeLevels(conformance.Suite):
    arch = "ppc64"
    sets = ("ppc64.levels=3",)


@pytest.mark.slow
class TestOtherSparc64(conformance.Suite):
    arch = "sparc64"
    machines = ("ultrasparc3", "ultrasparc-t1")


@pytest.mark.slow
class TestSparc64WithALinearTable(conformance.Suite):
    """The virtually mapped table of Linux before 2.6.17."""

    arch = "sparc64"
    sets = ("sparc64.generation=vpte",)


@pytest.mark.slow
class TestSparc64WithWideUpperEntries(conformance.Suite):
    """Its tables wait for the flush, where those of the older releases are a declared deviation."""

    arch = "sparc64"
    sets = ("sparc64.upper_entries=64",)


@pytest.mark.slow
class TestSparc64WithFewContexts(conformance.Suite):
    arch = "sparc64"
    sets = ("sparc64.context_bits=4",)


@pytest.mark.slow
class TestSparc64ThatFreesPagesEarly(conformance.Suite):
    """Linux to 2.6.29 freed a gather's pages before their translations; the kit verifies that."""

    arch = "sparc64"
    sets = ("sparc64.generation=vpte", "sparc64.frees_before_flush=true")


@pytest.mark.slow
class TestOtherS390(conformance.Suite):
    arch = "s390"
    machines = ("s390-31", "z10")


@pytest.mark.slow
class TestS390OfFiveLevels(conformance.Suite):
    """User addresses up to the last page of the word."""

    arch = "s390"
    sets = ("s390.levels=5",)
