"""What a process that was told to end tells its jobs."""

from __future__ import annotations

import threading

stopping = threading.Event()
"""Set where the process was told to end: what is on its way is finished, and nothing
more is begun.
"""
