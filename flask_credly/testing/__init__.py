"""A local Credly to test against."""

from __future__ import annotations

from .entry import Change
from .entry import Mail
from .organization import Organization
from .record import Received
from .serving import SimulatorServer
from .simulator import CredlySimulator

__all__ = [
    "Change",
    "CredlySimulator",
    "Mail",
    "Organization",
    "Received",
    "SimulatorServer",
]
