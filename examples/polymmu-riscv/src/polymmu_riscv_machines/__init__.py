"""RISC-V machines: YAML files, one machine each, named after the file. No code."""
