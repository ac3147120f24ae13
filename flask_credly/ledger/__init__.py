"""Rows and their states: record, claim, decide, settle. Knows no HTTP, no queue.

A row's way is :mod:`.insert` → :mod:`.claim` → :mod:`.decide` → :mod:`.settle`. What
must hold whatever dies in between is written down in ``tests/support/invariants.py``.
"""
