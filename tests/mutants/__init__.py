"""The mutation table of the source: single changes to the core and the architectures, and who notices each.

``docs/mutations.md`` breaks what hooks answer; here lines of code change: a lock is dropped, a flush comes too late,
a range ends a page early. ``python -m tests.mutants`` makes docs/mutants.md.
"""
