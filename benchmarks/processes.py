"""Processes that are measured from outside: the fake Credly, workers, peers."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.parse
import urllib.request

import psutil
import redis
import rq

from example_app import redis_server

from .host import CONFIG
from .measure import Options
from .measure import Skip

ROOT = pathlib.Path(__file__).parents[1]


def start(arguments: cabc.Sequence[str], **options: t.Any) -> subprocess.Popen[str]:
    """Start a Python process. Its environment is small: requests slows with it."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= options.pop("environment", {})
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        text=True,
        **options,
    )


def call(module: str, function: str, **given: t.Any) -> t.Any:
    """Call a function in a process of its own, and get what it returns."""
    code = (
        f"import json, sys; from {module} import {function} as f;"
        "print(json.dumps(f(**json.loads(sys.argv[1]))))"
    )
    process = start(["-c", code, json.dumps(given)], stdout=subprocess.PIPE)
    output, _ = process.communicate()

    if process.returncode:
        raise RuntimeError(f"{module}.{function} failed.")

    return json.loads(output.splitlines()[-1])


class Fake:
    """The fake Credly in a process of its own."""

    def __init__(self, options: Options) -> None:
        self._process = start(["-m", "benchmarks.fake"], stdout=subprocess.PIPE)
        options.ends.callback(_end, self._process)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.config = {
            "CREDLY_API_URL": f"{self.url}/v1",
            "CREDLY_TOKEN_URL": f"{self.url}/oauth/token",
        }

    def ask(self, path: str, **given: t.Any) -> dict[str, t.Any]:
        """``reset``, ``books``, or ``wait``."""
        query = urllib.parse.urlencode(given)

        with urllib.request.urlopen(f"{self.url}/{path}?{query}") as answer:
            return t.cast(dict[str, t.Any], json.load(answer))

    def cpu(self) -> float:
        return cpu(psutil.Process(self._process.pid))


def cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and of its children that have ended."""
    return float(sum(process.cpu_times()[:4]))


def _end(process: subprocess.Popen[str]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()

    process.kill()
    process.wait()


def start_redis(options: Options) -> str:
    """Start a Redis of our own. Get its address."""
    try:
        made = redis_server.own_redis(redis_server.free_port())
        return options.ends.enter_context(made)
    except redis_server.NoRedis as e:
        raise Skip(f"redis: {e}") from None


class Workers:
    """RQ workers, ready to work."""

    def __init__(
        self, command: cabc.Sequence[str], config: dict[str, t.Any], number: int = 1
    ) -> None:
        self._redis = redis.Redis.from_url(config["CREDLY_REDIS_URL"])
        environment = {
            CONFIG: json.dumps(config),
            "FLASK_APP": "benchmarks.host:create_app",
        }
        # Into the table only what went wrong.
        self._said = tempfile.TemporaryFile("w+")
        self._processes = [
            start(command, environment=environment, stderr=self._said)
            for _ in range(number)
        ]
        self.parents = [psutil.Process(each.pid) for each in self._processes]

    def __enter__(self) -> t.Self:
        wait_for(lambda: rq.Worker.count(connection=self._redis) == len(self.parents))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self._processes:
            _end(process)

        with self._said as said:
            if kind is not None:
                said.seek(0)
                sys.stderr.write(said.read())

        self._redis.flushall()
        self._redis.close()

    def wait_until_idle(self) -> None:
        """Wait until no work horse is left: then its CPU time is the parent's."""
        wait_for(lambda: not any(each.children() for each in self.parents))

    def cpu(self) -> float:
        return sum(cpu(each) for each in self.parents)


OURS = ("-m", "flask", "credly", "worker")


def wait_for(found: cabc.Callable[[], bool], seconds: float = 600) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds

    while not found():
        if time.monotonic() > until:
            raise RuntimeError("Waited in vain.")

        time.sleep(0.005)
