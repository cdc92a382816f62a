"""The benchmark: this daemon and its peers side by side in one run, held against the budgets.

``python -m tests.bench`` sets everything up by itself on loopback and takes it down again. Absolute
figures move from machine to machine and from run to run, so that most budgets are ratios to a peer
that was measured in turn with the daemon.
"""
