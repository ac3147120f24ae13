"""Processes that are killed and come back."""

from __future__ import annotations

import collections.abc as cabc
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import typing as t

import psutil

ROOT = pathlib.Path(__file__).parents[2]

Kill = t.Literal["parent", "horse", "both"]

KILLS: tuple[Kill, ...] = t.get_args(Kill)


class Family:
    """A process, what it forks, and what was left behind by those before it: each
    start has a session of its own, which a work horse does not leave.
    """

    def __init__(
        self,
        name: str,
        command: cabc.Sequence[str],
        environment: cabc.Mapping[str, str],
        folder: pathlib.Path,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._command = [sys.executable, *command]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions: set[int] = set()
        self._back_at: float | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        self.starts += 1
        self._sessions.add(self._process.pid)
        self._back_at = None

    @property
    def exit_code(self) -> int | None:
        """How it ended. ``None`` while it runs."""
        assert self._process is not None
        return self._process.poll()

    def supervise(self, rng: random.Random) -> None:
        """Start it again, a moment after it ended, however it ended."""
        if self.exit_code is None:
            return

        if self._back_at is None:
            self._back_at = time.monotonic() + rng.uniform(0.2, 0.8)
        elif time.monotonic() >= self._back_at:
            self.start()

    def horses(self) -> list[int]:
        """The children of the process that runs now."""
        assert self._process is not None
        return [pid for pid, parent in self.members() if parent == self._process.pid]

    def kill(self, kill: Kill) -> None:
        """Kill with SIGKILL."""
        assert self._process is not None
        horses = self.horses()

        if kill != "horse":
            self._process.kill()
            self._process.wait()

        if kill != "parent":
            for pid in horses:
                _kill(pid)

    def end(self) -> None:
        """Kill it and whatever it left behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

        for pid, _ in self.members():
            _kill(pid)

    def members(self) -> list[tuple[int, int]]:
        """Process and parent ids of all that live in its sessions."""
        members = []

        for process in psutil.process_iter(["pid", "ppid", "status"]):
            pid, parent = process.info["pid"], process.info["ppid"]

            if process.info["status"] == psutil.STATUS_ZOMBIE:
                continue

            if _session_of(pid) in self._sessions:
                members.append((pid, parent))

        return members


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
