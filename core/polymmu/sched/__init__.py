"""Who runs when: drivers, locks, and what the mm core asks of them.

The mm core is written once, in plain blocking style, and calls the driver at every place where a real kernel
could be interrupted, made to wait or asked to give way. Under the solo driver (the only one so far) nobody
else can run, so these calls only check that the core keeps the rules.
"""
