"""Workloads: what real programs did to memory, one model behind several file formats.

Read ``model`` first (what a workload is), then ``readers`` (which file is what), then ``execute`` (how one
is run on a machine). This file imports nothing, so that the command line's ``--help`` pays for no numpy.
"""
