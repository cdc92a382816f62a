"""The fault matrix: every point of what a scrape proxy must do to a message, as cases that can be played.

``cases.py`` is the table. Each case is played by a scripted exporter and a scripted scraper, with the real
daemon in between (``ways.py``: the eight ways in which it reaches an exporter) or one of its peers
(``peers.py``), and judged by what the two ends saw. ``python -m tests.faults`` prints who holds what.
"""
