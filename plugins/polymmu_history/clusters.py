"""try_to_unmap in nonlinear vmas as it was until 2004-04 (``cluster_scan: resched``): it gave way after each cluster,
below i_mmap_lock (INV-ATOMIC where that is a spinlock), and held the lock for as long as the scan took."""

from __future__ import annotations

from polymmu.mm.clusters import ClusterScan
from polymmu.structs import address_space

__all__ = ["ReschedulingScan"]


class ReschedulingScan(ClusterScan):
    """Gave way after each cluster, the list's lock held."""

    since = "to 2004-04"
    wrong = (
        "it may sleep below i_mmap_lock (INV-ATOMIC where that is a spinlock), and nobody else gets that"
        " lock meanwhile"
    )

    def after_cluster(self) -> None:
        self.kernel.sched.cond_resched()

    def between_rounds(self, mapping: address_space) -> None:
        """Nobody else gets the lock."""
