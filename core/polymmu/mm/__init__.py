"""What a kernel does with memory, in Linux's words; no architecture in it."""
