"""The demo: it starts all of its parts, and ends them in every case."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
import sqlalchemy as sa

from example_app.redis_server import free_port

ROOT = pathlib.Path(__file__).parent.parent


@contextlib.contextmanager
def demo(port: int, **environment: str) -> cabc.Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "example_app", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

        process.communicate(timeout=20)


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    said = ""

    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, said + process.communicate(timeout=20)[1]
        said += line

    return said


def family(pid: int) -> list[psutil.Process]:
    """All processes that descend from one."""
    return psutil.Process(pid).children(recursive=True)


def alive(parts: list[psutil.Process]) -> list[psutil.Process]:
    return [
        part
        for part in parts
        if part.is_running() and part.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_and_ends_all_of_its_parts(number: signal.Signals) -> None:
    port = free_port()

    with demo(port) as process:
        said = wait_until_ready(process)
        parts = family(process.pid)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
        process.send_signal(number)
        process.communicate(timeout=20)

    assert f"http://127.0.0.1:{port}" in said
    assert "Python 101" in page
    assert len(parts) >= 4 - ("CREDLY_REDIS_URL" in os.environ)
    assert process.returncode == 0
    assert alive(parts) == []


def test_a_taken_port_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = subprocess.run(
            [sys.executable, "-m", "example_app", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert found.returncode == 1
    assert f"Port {port} cannot be used" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_part_that_dies_ends_the_others_and_is_named() -> None:
    with demo(free_port()) as process:
        wait_until_ready(process)
        parts = family(process.pid)
        (simulator,) = [
            part for part in parts if "flask_credly.testing" in part.cmdline()
        ]
        simulator.kill()
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "The simulator ended with status -9" in errors
    assert alive(parts) == []


def test_a_redis_that_does_not_answer_is_said() -> None:
    with demo(free_port(), CREDLY_REDIS_URL="redis://127.0.0.1:1/0") as process:
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert "CREDLY_REDIS_URL" in errors


def test_it_brings_its_own_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one on the PATH."""
    from example_app.redis_server import running_redis

    monkeypatch.delenv("CREDLY_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", "")
    started = time.monotonic()

    with running_redis() as url:
        assert url.startswith("redis://127.0.0.1:")

    assert time.monotonic() - started < 10


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_several_processes_can_be_the_first_at_once(database: str) -> None:
    code = """
from example_app import create_app
from example_app.models import create_example_data
with create_app().app_context():
    input()
    create_example_data()
"""
    environment = {
        **os.environ,
        "EXAMPLE_DATABASE": database,
        "EXAMPLE_SECRET_KEY": "a key for tests",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    time.sleep(3)  # until all of them wait

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors

    engine = sa.create_engine(database)

    with engine.connect() as connection:
        for table, number in (("person", 5), ("course", 6)):
            counted = sa.text(f"SELECT count(*) FROM {table}")
            assert connection.scalar(counted) == number

    engine.dispose()
