"""The scenarios that ship with polymmu: YAML files, one scenario each, named after the file. No code."""
