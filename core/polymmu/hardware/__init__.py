"""What silicon does: RAM, table walks, TLBs, CPUs. No kernel and no mm in here."""
