"""Real workers on a real Redis."""

from __future__ import annotations

import collections.abc as cabc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing as t
import uuid

import pytest
import redis
import rq
import sqlalchemy as sa
from conftest import connect
from conftest import every_database
from conftest import Host
from conftest import MakeHost

from flask_credly import connection
from flask_credly.issuing import bell
from flask_credly.issuing import workers
from flask_credly.issuing.worker import OwnJob
from flask_credly.testing import CredlySimulator

APP = """
import json, os
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_credly import Course, Credly

credly = Credly()
db = SQLAlchemy()

@credly.courses
def courses():
    return [Course(id="py-101", title="Python 101")]

@credly.is_admin
def is_admin():
    return True

def create_app():
    app = Flask("host")
    app.config.update(json.loads(os.environ["HOST_CONFIG"]))
    db.init_app(app)
    credly.init_app(app)
    return app
"""


class Farm:
    """A host, a served Credly, and workers in processes of their own."""

    def __init__(
        self, host: Host, credly: CredlySimulator, folder: pathlib.Path
    ) -> None:
        self.host = host
        self.credly = credly
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        (folder / "host_app.py").write_text(APP)
        config = {
            key: value
            for key, value in host.app.config.items()
            if key.startswith(("CREDLY_", "SECRET_KEY", "SQLALCHEMY_DATABASE"))
            and isinstance(value, (str, int, float))
        }
        self._environment = {
            **os.environ,
            "HOST_CONFIG": json.dumps(config),
            "FLASK_APP": "host_app",
            "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
        }

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a command to its end. Its output must hold no trouble."""
        found = subprocess.run(
            [sys.executable, "-m", *command],
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout + found.stderr

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=self._environment,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._running.append(process)
        return process

    def stop(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    @property
    def redis(self) -> redis.Redis:
        return bell.web_queue(self.host.state).connection

    def wait_for_badges(self, number: int, seconds: float = 40) -> None:
        until = time.monotonic() + seconds

        while len(self.credly.badges) < number and time.monotonic() < until:
            time.sleep(0.05)

        assert len(self.credly.badges) == number


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
        )

        # A busy machine may keep Redis longer than a web request would wait for it.
        patient = redis.Redis.from_url(redis_url)
        host.state.web_queue.queue = bell.make_queue(
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


@every_database
def test_a_worker_issues_what_was_completed(farm: Farm) -> None:
    for number in range(5):
        farm.host.complete(str(number))

    output = farm.run(*WORKER, "--burst")

    assert len(farm.credly.badges) == 5
    assert {row.state for row in farm.host.rows()} == {"issued"}
    assert output == ""


def test_many_completions_are_one_job(farm: Farm) -> None:
    for number in range(50):
        farm.host.complete(str(number))

    assert bell.web_queue(farm.host.state).count == 1


def test_a_completion_after_the_drain_began_rings_anew(farm: Farm) -> None:
    farm.host.complete("1")
    farm.host.drain()
    farm.host.complete("2")

    assert bell.web_queue(farm.host.state).count == 2


def test_the_bell_is_rung_after_the_hosts_commit(farm: Farm) -> None:
    queue = bell.web_queue(farm.host.state)
    queue.empty()
    farm.redis.flushdb()
    farm.host.db.session.execute(sa.text("UPDATE credly_template SET name = 'x'"))
    farm.host.complete()
    assert queue.count == 0

    farm.host.db.session.commit()
    assert queue.count == 1


def test_a_running_worker_retries_in_time(farm: Farm) -> None:
    farm.start(*WORKER)
    farm.credly.fail("issue", status=500)
    farm.host.complete()
    farm.wait_for_badges(1)

    assert farm.credly.count("issue") == 2


def test_a_flushed_redis_loses_nothing(farm: Farm) -> None:
    for number in range(5):
        farm.host.complete(str(number))

    farm.redis.flushdb()
    farm.run(*WORKER, "--burst")

    assert len(farm.credly.badges) == 5


def test_a_row_that_nobody_rang_for_is_swept(farm: Farm) -> None:
    farm.start(*WORKER)
    until = time.monotonic() + 30

    while not workers.count(farm.host.state) and time.monotonic() < until:
        time.sleep(0.05)

    farm.host.state.web_queue.silent_until = time.monotonic() + 60
    farm.host.complete()
    farm.wait_for_badges(1)


def test_a_killed_worker_loses_nothing(farm: Farm) -> None:
    """Killed with its work horse while Credly has the request."""
    farm.credly.fail("issue", how="hang", delay=5, after=True)
    farm.host.complete()
    worker = farm.start(*WORKER)
    farm.wait_for_badges(1)
    kill_family(worker.pid)
    worker.wait()
    row = farm.host.row()
    assert (row.state, row.attempts, row.maybe_issued) == ("sending", 1, True)

    farm.host.make_due()
    farm.run(*WORKER, "--burst")

    assert farm.host.row().state == "issued"
    assert (len(farm.credly.badges), farm.credly.count("issue")) == (1, 1)


def kill_family(pid: int) -> None:
    """Kill a worker and its horse, which has a process group of its own."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    os.kill(pid, signal.SIGKILL)

    for child in found.stdout.split():
        os.kill(int(child), signal.SIGKILL)


def test_rqs_own_worker_can_run_the_job(farm: Farm) -> None:
    farm.host.complete()
    settings = farm.host.state.settings
    output = farm.run(
        "rq.cli",
        "worker",
        "--burst",
        "--serializer",
        "json",
        "--url",
        settings.redis_url,
        str(settings.queue),
    )

    assert len(farm.credly.badges) == 1, output


def test_a_long_list_of_templates_is_synced_by_the_worker(farm: Farm) -> None:
    for number in range(320):
        farm.credly.add_template(f"Badge {number:03}")

    found = connection.connect(
        farm.host.state,
        organization_id=farm.credly.organization_id,
        client_id=farm.credly.client_id,
        client_secret=farm.credly.client_secret,
    )
    assert not found.complete

    farm.run(*WORKER, "--burst")
    farm.host.db.session.rollback()

    assert len(connection.list_templates(farm.host.db.session)) == 321


def test_sweep_rings(farm: Farm) -> None:
    farm.host.complete()
    farm.redis.flushdb()

    assert "A worker was rung." in farm.run("flask", "credly", "sweep")
    assert bell.web_queue(farm.host.state).count == 1


def test_status_counts_the_workers(farm: Farm) -> None:
    farm.start(*WORKER)
    until = time.monotonic() + 30

    while not workers.count(farm.host.state) and time.monotonic() < until:
        time.sleep(0.05)

    found = json.loads(farm.run("flask", "credly", "status", "--json"))

    assert found["workers"] == 1


def test_redis_holds_nothing_of_a_member_nor_a_secret(farm: Farm) -> None:
    farm.host.complete()
    dump = b""

    for key in farm.redis.scan_iter():
        dump += key + (farm.redis.dump(key) or b"")

    queue = bell.web_queue(farm.host.state)
    (job,) = queue.jobs
    assert (job.args, job.kwargs) in [((), {}), ([], {})]
    assert job.description == job.func_name == "flask_credly.jobs.drain"

    for secret in ("example.org", "Ada", farm.credly.client_secret):
        assert secret.encode() not in dump


@pytest.mark.parametrize("function", ["os.system", "subprocess.call"])
def test_forged_os_system_job_refused(farm: Farm, function: str) -> None:
    marker = pathlib.Path(farm._folder / "marker")
    queue = bell.web_queue(farm.host.state)
    job = queue.enqueue(function, f"touch {marker}", failure_ttl=60)
    farm.run(*WORKER, "--burst")

    assert job.get_status(refresh=True) == rq.job.JobStatus.FAILED
    assert not marker.exists()


def test_a_forged_callback_is_refused(farm: Farm) -> None:
    marker = pathlib.Path(farm._folder / "marker")
    queue = bell.web_queue(farm.host.state)
    queue.enqueue(bell.DRAIN, on_success=rq.Callback("os.mkdir"))
    farm.run(*WORKER, "--burst")

    assert not marker.exists()
    assert OwnJob.success_callback is None


def test_a_drain_that_always_fails_does_not_spin(farm: Farm) -> None:
    farm.host.complete()

    with farm.host.state.engine.begin() as other:
        other.execute(sa.text("DELETE FROM credly_installation"))

    farm.run(*WORKER, "--burst", timeout=30)

    assert farm.host.row().state == "pending"


def test_redis_hanging_holds_a_request_up_only_once(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """A port that takes connections and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        host = make_host(CREDLY_REDIS_URL=f"redis://127.0.0.1:{port}/0")

        with host.app.app_context():
            connect(host, credly)
            host.state.web_queue.silent_until = 0
            started = time.monotonic()
            host.complete("1")
            first = time.monotonic() - started
            host.complete("2")
            second = time.monotonic() - started - first

            assert len(host.rows()) == 2

    assert first < 1.5
    assert second < first


def test_redis_out_of_memory_is_caught(farm: Farm, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        before = admin.config_get("maxmemory")["maxmemory"]
        policy = admin.config_get("maxmemory-policy")["maxmemory-policy"]
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)

        try:
            farm.host.complete()
        finally:
            admin.config_set("maxmemory", before)
            admin.config_set("maxmemory-policy", policy)

    assert farm.host.row().state == "pending"


def test_a_queue_of_the_hosts_own_is_used(
    make_host: MakeHost, redis_url: str, credly: CredlySimulator
) -> None:
    made: list[t.Any] = []

    def make_queue(app: t.Any) -> rq.Queue:
        made.append(app)
        return rq.Queue(
            f"own-{uuid.uuid4().hex}", connection=redis.Redis.from_url(redis_url)
        )

    host = make_host(CREDLY_QUEUE=make_queue)

    with host.app.app_context():
        connect(host, credly)
        host.complete()
        queue = bell.web_queue(host.state)

        assert queue.name.startswith("own-")
        assert queue.count == 1

    assert made == [host.app]
