"""A local Credly to test against."""

from __future__ import annotations

from .organization import Organization
from .record import Received
from .serving import SimulatorServer
from .simulator import CredlySimulator

__all__ = ["CredlySimulator", "Organization", "Received", "SimulatorServer"]
