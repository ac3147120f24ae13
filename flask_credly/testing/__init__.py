"""A local Credly to test against."""

from __future__ import annotations

from .entry import Change
from .organization import Organization
from .record import Received
from .serving import SimulatorServer
from .simulator import CredlySimulator

__all__ = [
    "Change",
    "CredlySimulator",
    "Organization",
    "Received",
    "SimulatorServer",
]
