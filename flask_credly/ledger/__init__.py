"""Rows and their states: record, claim, decide, settle. Knows no HTTP, no queue.

A row's way is :mod:`.record` → :mod:`.claim` → :mod:`.decide` → :mod:`.settle`.
"""
