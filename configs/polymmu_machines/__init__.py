"""The machines that ship with polymmu: YAML files, one machine each, named after the file. No code."""
