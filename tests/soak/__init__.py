"""The soak: everything goes wrong, again and again, and at the end every single scrape is accounted for.

``python -m tests.soak`` runs a real Prometheus, real exporters, a hostile client and the daemon under a
supervisor, all on loopback, and breaks what can break. It takes down what it has set up. What it checks are
sums: of Prometheus's ``up`` against the access log, of the access log against the daemon's counters, of each
page against the checksum in it, and of what the process still holds when everything is quiet.
"""
