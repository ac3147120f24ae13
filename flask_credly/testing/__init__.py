"""A local Credly to test against."""

from __future__ import annotations

from .serving import SimulatorServer
from .simulator import CredlySimulator
from .simulator import Received

__all__ = ["CredlySimulator", "Received", "SimulatorServer"]
