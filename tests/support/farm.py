"""A host, a Credly that is served, and workers in processes of their own."""

from __future__ import annotations

import collections
import collections.abc as cabc
import json
import os
import pathlib
import subprocess
import sys
import time
import uuid

import pytest
import redis
from conftest import connect
from conftest import Host
from conftest import MakeHost

from flask_credly.issuing import notifier
from flask_credly.testing import CredlySimulator

APP = """
import json, os, sys
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_credly import Course, course_completed, Credly, Member

credly = Credly()
db = SQLAlchemy()

@credly.courses
def courses():
    return [Course(id="py-101", title="Python 101")]

@credly.is_admin
def is_admin():
    return True

@sa.event.listens_for(sa.Pool, "connect")
def remember(connection, record):
    record.info["process"] = os.getpid()

@sa.event.listens_for(sa.Pool, "checkout")
def compare(connection, record, proxy):
    if record.info["process"] != os.getpid():
        open("shared", "a").write("a connection of another process\\n")

worker = os.getpid()

@sys.addaudithook
def note_import(event, arguments):
    if event == "import" and os.getpid() != worker:
        open("loaded", "a").write(f"{arguments[0]}\\n")

def create_app():
    app = Flask("host")
    app.config.update(json.loads(os.environ["HOST_CONFIG"]))
    db.init_app(app)
    credly.init_app(app)

    with app.app_context():
        # As a host may do at its start: the connection stays in the pool.
        db.session.execute(sa.text("SELECT 1"))

    @app.cli.command()
    def complete():
        ada = Member(id="42", email="ada@example.org", first_name="A", last_name="B")
        course_completed.send(app, member=ada, course_id="py-101")

    return app
"""


class Farm:
    """A host, a served Credly, and workers in processes of their own."""

    def __init__(
        self, host: Host, credly: CredlySimulator, folder: pathlib.Path
    ) -> None:
        self.host = host
        self.credly = credly
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        (folder / "host_app.py").write_text(APP)
        config = {
            key: value
            for key, value in host.app.config.items()
            if key.startswith(("CREDLY_", "SECRET_KEY", "SQLALCHEMY_DATABASE"))
            and isinstance(value, (str, int, float))
        }
        self.environment = {
            **os.environ,
            "HOST_CONFIG": json.dumps(config),
            "FLASK_APP": "host_app",
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
        }

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a command to its end. Its output must hold no trouble."""
        found = subprocess.run(
            [sys.executable, "-m", *command],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout + found.stderr

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._running.append(process)
        return process

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()

        # No work horse may use a connection that its parent has open.
        assert not (self.folder / "shared").exists()

    def loaded_in_jobs(self) -> set[str]:
        """Get the packages that the processes of jobs had to load."""
        path = self.folder / "loaded"
        names = path.read_text().split() if path.exists() else []
        return {name.partition(".")[0] for name in names}

    @property
    def redis(self) -> redis.Redis:
        return notifier.web_queue(self.host.state).connection

    def wait_for_badges(self, number: int) -> None:
        wait_for(lambda: len(self.credly.badges) >= number)
        assert len(self.credly.badges) == number

    def states(self) -> dict[str, int]:
        return dict(collections.Counter(row.state for row in self.host.rows()))


def wait_for(condition: cabc.Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds

    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def farm(
    make_host: MakeHost, redis_url: str, tmp_path: pathlib.Path
) -> cabc.Iterator[Farm]:
    credly = CredlySimulator()

    with credly.serve() as server:
        host = make_host(
            CREDLY_REDIS_URL=redis_url,
            CREDLY_QUEUE=f"credly-{uuid.uuid4().hex}",
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
            CREDLY_RETRY_DELAY=1,
            CREDLY_ENCRYPTION_KEYS="MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=",
        )

        # A busy machine may keep Redis longer than a web request would wait for it.
        patient = redis.Redis.from_url(redis_url)
        host.state.web_queue.queue = notifier.make_queue(
            host.app, host.state.settings, patient
        )

        with host.app.app_context(), patient:
            connect(host, credly)
            farm = Farm(host, credly, tmp_path)

            try:
                yield farm
            finally:
                farm.stop()

    assert credly.problems == []


WORKER = ("flask", "credly", "worker")
