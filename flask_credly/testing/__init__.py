"""A local Credly to test against."""

from __future__ import annotations

from .record import Received
from .serving import SimulatorServer
from .simulator import CredlySimulator

__all__ = ["CredlySimulator", "Received", "SimulatorServer"]
