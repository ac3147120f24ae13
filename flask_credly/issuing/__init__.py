"""Brings the ledger and Credly together: the notifier, the drain, the worker."""

from __future__ import annotations

import threading

stopping = threading.Event()
"""Set where the process was told to end: what is on its way is finished, and nothing
more is begun.
"""
