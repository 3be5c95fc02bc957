"""Which algorithms ran in which Linux release: one YAML file each, a row of names by axis (``polymmu.releases``).

What a row does not name is as in core: a new axis needs a line in every row.
"""
