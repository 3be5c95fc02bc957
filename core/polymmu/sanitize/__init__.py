"""Observers that judge: what the emulated kernel did against what the hardware could still hold."""
