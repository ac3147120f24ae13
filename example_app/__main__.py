"""``python -m example_app``: starts everything, and ends everything."""

from __future__ import annotations

import argparse
import collections.abc as cabc
import contextlib
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.request

from .redis_server import free_port
from .redis_server import NoRedis
from .redis_server import running_redis

HOST = "127.0.0.1"
STARTING = 2.0
"""Seconds within which a worker that ends could not start at all."""

HELLO = """
Gradual, the example application, runs at  http://{host}:{port}

  1. At the bottom of the page, become Alex Admin.
  2. Open Simulator and copy the three values that stand for the account at Credly.
  3. Open Integrations, click Set Up, enter them and click Connect.
  4. Map a course to a badge template. "Accessibility basics" is one to be repeated each
     year: behind Options, let its badge expire after 12 months and be renewed.
  5. Become Ada Example, open Courses and complete that course.
  6. Open My badges: the badge waits for her.
  7. Open Simulator: there is the badge. Accept it, and My badges says so within five
     minutes, or as soon as the admin clicks Check now on the badge's page.
  8. Let the simulator misbehave, and complete another course. Complete one again, or
     withdraw it: the mapping's options say what becomes of its badge.
  9. Become Dan, who has no last name, and complete a course: his badge fails. Find out
     why, add the name under Members, and retry.
 10. Map "Flask foundations", which 500 members completed before, and issue badges for
     these earlier completions.
 11. Become Carol Coordinator, an admin who may not take back badges, or Vera Viewer,
     who sees the pages and changes nothing.

Stop with Ctrl-C.
"""
HELLO_TO_SEVERAL = """
Gradual, the example application, runs at  http://{host}:{port}

It has two communities, each with an account of its own at Credly.

  1. At the bottom of the page, become the admin of one community.
  2. Open Simulator and copy the three values that stand for its account at Credly.
  3. Open Integrations, click Set Up, enter them and click Connect.
  4. Map a course to a badge template. Do the same as the other community's admin.
  5. Become Ada Example, who is in both, and complete a course in each.
  6. Open My badges: there is the badge, and only this community's.
  7. Open Simulator: let it misbehave, and see that the other community's badges go on.
  8. Become Ola Operator and open Communities.

Stop with Ctrl-C.
"""


class Failed(Exception):
    """The demo cannot go on. The message is for the terminal."""


class Part:
    """One process of the demo, with its output in a file."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        log: pathlib.Path,
    ) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._log = log
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()

        with self._log.open("wb") as output:
            # In a session of its own: it is stopped by us and in our order, together
            # with the processes that it starts itself.
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise if it has died. A worker that somebody ended is started again, as a
        real site's would be.
        """
        if (status := self._process.poll()) is None:
            return

        if self.name == "worker" and time.monotonic() - self._started > STARTING:
            print(
                f"The worker ended with status {status}. It starts again.", flush=True
            )
            self.stop()
            self._start()
            return

        lines = self._log.read_text(errors="replace").splitlines()[-15:]
        said = "\n".join(f"    {line}" for line in lines)
        raise Failed(f"The {self.name} ended with status {status}.\n{said}")

    def stop(self) -> None:
        """End it and all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=3)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo until it is told to stop.

    :return: The exit status: 0 after Ctrl-C, 1 if something went wrong.
    """
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _interrupt)

    try:
        with contextlib.ExitStack() as stack:
            _run(stack, options.port, options.data, options.communities)
    except KeyboardInterrupt:
        print("\nStopped.", flush=True)
        return 0
    except (Failed, NoRedis) as e:
        print(f"The demo cannot run. {e}", file=sys.stderr, flush=True)
        return 1

    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_app")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--data", type=pathlib.Path, help="keep the data here")
    parser.add_argument(
        "--communities", type=int, choices=(1, 2), default=1, help="default: 1"
    )
    return parser.parse_args(arguments)


def _interrupt(*_: object) -> t.NoReturn:
    raise KeyboardInterrupt


def _run(
    stack: contextlib.ExitStack,
    port: int,
    data: pathlib.Path | None,
    communities: int,
) -> t.NoReturn:
    _refuse_taken(port)
    logs = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = data or logs
    folder.mkdir(parents=True, exist_ok=True)
    simulator = free_port()
    database = "example.db" if communities == 1 else "communities.db"
    environment = {
        **os.environ,
        "EXAMPLE_COMMUNITIES": str(communities),
        "EXAMPLE_CREDLY_API_URL": f"http://{HOST}:{simulator}/v1",
        "EXAMPLE_CREDLY_TOKEN_URL": f"http://{HOST}:{simulator}/oauth/token",
        "EXAMPLE_CREDLY_REDIS_URL": stack.enter_context(running_redis()),
        "EXAMPLE_DATABASE": f"sqlite:///{(folder / database).resolve()}",
        "EXAMPLE_SECRET_KEY": _secret_key(folder),
        "FLASK_APP": "example_app",
        # The worker forks. macOS would end a fork that asks for proxies.
        "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES",
    }
    parts: list[Part] = []

    def start(name: str, *command: str) -> None:
        part = Part(name, list(command), environment, logs / f"{name}.log")
        parts.append(part)
        stack.callback(part.stop)

    start(
        "simulator",
        *("flask_credly.testing", "--port", str(simulator)),
        *("--organizations", str(communities)),
        "--pictures",
    )
    _wait_for(f"http://{HOST}:{simulator}/_simulator/record", parts)
    start("web application", "example_app.web", str(port))
    _wait_for(f"http://{HOST}:{port}/", parts)
    start("worker", "flask", "credly", "worker")
    hello = HELLO if communities == 1 else HELLO_TO_SEVERAL
    print(hello.format(host=HOST, port=port), flush=True)

    while True:
        time.sleep(0.3)
        _check(parts)


def _check(parts: cabc.Iterable[Part]) -> None:
    for part in parts:
        part.check()


def _secret_key(folder: pathlib.Path) -> str:
    path = folder / "secret-key"

    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex())

    return path.read_text()


def _refuse_taken(port: int) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError):
        raise Failed(
            f"Port {port} cannot be used; another program may have it. Choose another:"
            " make demo DEMO_ARGS='--port 8123'"
        ) from None


def _wait_for(url: str, parts: list[Part]) -> None:
    until = time.monotonic() + 30

    while time.monotonic() < until:
        _check(parts)

        # Not by way of a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        with contextlib.suppress(OSError), opener.open(url, timeout=5):
            return

        time.sleep(0.05)

    raise Failed(f"The {parts[-1].name} does not answer.")


if __name__ == "__main__":
    sys.exit(main())
