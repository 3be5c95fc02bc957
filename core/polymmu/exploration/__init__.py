"""Every interleaving: who may go next, which orders are alike, and what was covered."""
