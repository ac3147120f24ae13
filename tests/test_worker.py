"""Real workers on a real Redis."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import http.server
import inspect
import json
import os
import pathlib
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import typing as t
import uuid
import zlib

import psutil
import pytest
import redis
import rq
import rq.suspension
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from rq.exceptions import StopRequested

from example_app.redis_server import free_port
from example_app.redis_server import own_redis
from flask_credly import accounts
from flask_credly import course_completed
from flask_credly import jobs
from flask_credly.errors import CredlyError
from flask_credly.issuing import notifier
from flask_credly.issuing import periodic
from flask_credly.issuing import workers
from flask_credly.issuing.worker import CredlyWorker
from flask_credly.issuing.worker import OwnJob
from flask_credly.ledger import backfills
from flask_credly.ledger import turns
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator
from tests.support.farm import Farm
from tests.support.farm import farm as farm
from tests.support.farm import wait_for
from tests.support.farm import WORKER


def children(pid: int) -> list[int]:
    """A worker's horse has a process group of its own."""
    return [child.pid for child in psutil.Process(pid).children()]


@every_database
def test_a_worker_issues_what_was_completed(farm: Farm) -> None:
    for number in range(5):
        farm.host.complete(str(number))

    output = farm.run(*WORKER, "--burst")

    assert len(farm.credly.badges) == 5
    assert {row.state for row in farm.host.rows()} == {"issued"}
    # One line, and no word of anything else.
    assert output.endswith("INFO in lane: Badges issued: 5.\n")
    assert output.count("\n") == 1
    assert farm.run(*WORKER, "--burst") == ""


@pytest.mark.slow
def test_a_job_has_nothing_to_load(farm: Farm) -> None:
    farm.host.complete()
    farm.run(*WORKER, "--burst")

    heavy = {"cryptography", "flask_credly", "requests", "rq", "sqlalchemy", "urllib3"}
    assert farm.states() == {"issued": 1}
    assert not heavy & farm.loaded_in_jobs()


def test_many_completions_are_one_job(farm: Farm) -> None:
    for number in range(50):
        farm.host.complete(str(number))

    assert notifier.web_queue(farm.host.state).count == 1


def test_a_completion_after_the_drain_began_rings_anew(farm: Farm) -> None:
    queue = notifier.web_queue(farm.host.state)
    farm.host.complete("1")
    farm.host.drain()
    farm.host.complete("2")
    until = time.monotonic() + 30

    while queue.count < 2 and time.monotonic() < until:
        time.sleep(0.05)

    assert queue.count == 2


def test_the_bell_is_rung_after_the_hosts_commit(farm: Farm) -> None:
    queue = notifier.web_queue(farm.host.state)
    queue.empty()
    farm.redis.flushdb()
    farm.host.db.session.execute(sa.text("UPDATE credly_template SET name = 'x'"))
    farm.host.complete()
    assert queue.count == 0

    farm.host.db.session.commit()
    farm.host.wait_for_ring()
    assert queue.count == 1


@pytest.mark.slow
def test_a_process_that_ends_at_once_rings_all_the_same(farm: Farm) -> None:
    """A command of the host's, which has not even loaded RQ by then."""
    farm.redis.flushdb()

    assert farm.run("flask", "complete") == ""
    assert notifier.web_queue(farm.host.state).count == 1


FORK = """
import os, sys
import host_app as host
from flask_credly import Member, course_completed

app = host.create_app()

def complete():
    member = Member(str(os.getpid()), "ada@example.org", "Ada", "Example")
    course_completed.send(app, member=member, course_id="py-101")

complete()

if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

with app.app_context():
    host.db.engine.dispose(close=False)  # they are the parent's

complete()
ringer = app.extensions["credly"].web_queue.ringer
ringer.join(10)
os._exit(ringer.is_alive())
"""


@pytest.mark.slow
def test_a_process_rings_that_was_forked_after_a_completion(farm: Farm) -> None:
    """As a server does that loads the application before it forks, or a view that
    starts a process: while a thread loads RQ, or talks to Redis.
    """
    (farm.folder / "forking.py").write_text(FORK)

    for _ in range(3):
        assert farm.run("forking") == ""


@pytest.mark.slow
def test_a_redis_that_comes_back_empty_knows_its_workers_again(farm: Farm) -> None:
    queue = notifier.web_queue(farm.host.state)
    signed = [workers.signature(farm.host.state.engine)]
    farm.start(*WORKER)
    wait_for(lambda: list(workers.listening(queue).values()) == signed)
    farm.redis.flushdb()

    wait_for(lambda: list(workers.listening(queue).values()) == signed)
    assert len(rq.Worker.all(queue=queue)) == 1


@pytest.mark.slow
def test_a_worker_with_another_key_leaves_the_badges_to_the_others(farm: Farm) -> None:
    right = farm.environment
    config = json.loads(right["HOST_CONFIG"])
    config["CREDLY_ENCRYPTION_KEYS"] = config["CREDLY_ENCRYPTION_KEYS"].swapcase()
    farm.environment = {**right, "HOST_CONFIG": json.dumps(config)}
    farm.start(*WORKER)
    wait_for(farm.host.log)
    farm.host.complete("1")
    said = farm.run(*WORKER, "--burst")

    assert farm.states() == {"none": 1}
    assert "This process cannot decrypt the stored Client Secret" in said

    farm.environment = right
    farm.start(*WORKER)

    for number in range(2, 5):
        farm.host.complete(str(number))
        farm.wait_for_badges(number)

    ((error, details),) = farm.host.log()
    assert error == "Wrong encryption key"
    assert details.startswith("A worker cannot decrypt the stored Client Secret")


@pytest.mark.slow
def test_a_running_worker_retries_in_time(farm: Farm) -> None:
    farm.start(*WORKER)
    farm.credly.fail("issue", status=500)
    farm.host.complete()
    farm.wait_for_badges(1)

    assert farm.credly.count("issue") == 2


@pytest.mark.slow
def test_a_flushed_redis_loses_nothing(farm: Farm) -> None:
    for number in range(5):
        farm.host.complete(str(number))

    farm.redis.flushdb()
    farm.run(*WORKER, "--burst")

    assert len(farm.credly.badges) == 5


@pytest.mark.slow
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
    assert (row.state, row.attempts, row.outcome_unknown) == ("none", 1, True)

    farm.host.make_due()
    farm.run(*WORKER, "--burst")

    assert farm.host.row().state == "issued"
    assert (len(farm.credly.badges), farm.credly.count("issue")) == (1, 1)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_family(pid: int) -> None:
    """Kill a worker and its horse."""
    for each in (pid, *children(pid)):
        os.kill(each, signal.SIGKILL)


@pytest.mark.slow
def test_orphan_horse_fenced(farm: Farm) -> None:
    """A worker dies and its horse lives on: what it does after its lease has ended
    changes nothing.
    """
    farm.credly.fail("issue", delay=4, after=True)
    farm.host.complete()
    worker = farm.start(*WORKER)
    wait_for(lambda: farm.credly.count("issue"))
    (horse,) = children(worker.pid)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()

    farm.host.make_due()
    farm.host.drain()
    row = farm.host.row()
    assert row.state == "issued"

    settled_at = row.settled_at
    wait_for(lambda: not is_alive(horse))
    assert farm.host.row().settled_at == settled_at
    assert len(farm.credly.badges) == 1
    assert [each.answer for each in farm.host.attempts()] == ["died"]


@pytest.mark.slow
def test_a_worker_says_that_it_has_started(farm: Farm) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", *WORKER],
        env=farm.environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr is not None
        assert worker.stderr.readline().startswith("Issuing queued badges.")
        worker.terminate()


def asked(farm: Farm) -> int:
    """Count the badges that were asked for, alone or with others."""
    batches = [each.json for each in farm.credly.received if each.kind == "batch"]
    together = sum(len(t.cast(t.Any, each)["badges"]) for each in batches)
    return farm.credly.count("issue") + together


def test_a_worker_told_to_stop_finishes_what_is_on_its_way(farm: Farm) -> None:
    """A supervisor may tell all processes at once."""
    for number in range(60):
        farm.host.complete(str(number))

    worker = farm.start(*WORKER)
    wait_for(lambda: asked(farm))

    for each in (worker.pid, *children(worker.pid)):
        os.kill(each, signal.SIGTERM)

    worker.wait(timeout=30)
    states = farm.states()

    assert set(states) <= {"issued", "none"}
    assert states["issued"] == len(farm.credly.badges)
    # What waited for a free thread is given back.
    assert {each.answer for each in farm.host.attempts()} <= {"issued", "not sent"}

    farm.run(*WORKER, "--burst")
    assert farm.states() == {"issued": 60}
    assert asked(farm) == 60


@every_database
def test_missing_tables_are_said_once_until_they_are_there(
    make_host: MakeHost, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"credly-{uuid.uuid4().hex}"
    host = make_host(CREDLY_REDIS_URL=redis_url, CREDLY_QUEUE=name)

    def said() -> list[str]:
        return [vars(each).get("credly_event", "") for each in caplog.records]

    with host.app.app_context():
        host.db.drop_all()
        worker = CredlyWorker(host.app, notifier.web_queue(host.state))
        caplog.clear()

        for _ in range(3):
            worker._sweep()

        assert said() == ["tables_missing"]
        assert "flask db upgrade" in caplog.text
        assert "Traceback" not in caplog.text

        host.db.create_all()
        worker._sweep()
        host.db.drop_all()
        worker._sweep()
        assert said() == ["tables_missing"] * 2


@pytest.mark.slow
def test_a_worker_told_to_stop_while_it_sweeps_stops(farm: Farm) -> None:
    with farm.host.state.engine.connect() as other:
        other.execute(sa.text("SELECT 1"))
        worker = farm.start(*WORKER)
        wait_for(lambda: workers.count(farm.host.state))

        for _ in range(20):
            os.kill(worker.pid, signal.SIGTERM)
            time.sleep(0.02)

            if worker.poll() is not None:
                break

        worker.wait(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_worker_told_to_stop_while_the_database_hangs_stops(farm: Farm) -> None:
    with farm.host.state.engine.begin() as other:
        # Even a reader waits for that. The worker meets it in its first sweep, before
        # it has a job that would be waited for.
        other.execute(sa.text("LOCK TABLE credly_issuance IN ACCESS EXCLUSIVE MODE"))
        farm.redis.flushdb()
        worker = farm.start(*WORKER)
        wait_for(lambda: waits_for_a_lock(other))
        worker.send_signal(signal.SIGTERM)
        worker.wait(timeout=30)


def test_a_worker_stops_also_where_the_signals_exception_was_lost(farm: Farm) -> None:
    """As by code that lets none pass, such as a finalizer."""
    worker = CredlyWorker(farm.host.app, notifier.web_queue(farm.host.state))
    worker.told_to_stop = True

    with pytest.raises(StopRequested):
        worker.dequeue_job_and_maintain_ttl(1)


def waits_for_a_lock(connected: sa.Connection) -> bool:
    query = """
        SELECT count(*) FROM pg_locks
        JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE NOT granted AND datname = current_database()
    """
    return bool(connected.scalar(sa.text(query)))


@pytest.mark.slow
def test_a_worker_outlives_its_redis(
    make_host: MakeHost, tmp_path: pathlib.Path
) -> None:
    credly = CredlySimulator()
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(credly.serve())
        host = make_host(
            CREDLY_REDIS_URL=url,
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
            CREDLY_ENCRYPTION_KEYS="MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=",
        )
        stack.enter_context(host.app.app_context())
        redis_server = stack.enter_context(contextlib.ExitStack())
        redis_server.enter_context(own_redis(port))
        connect(host, credly)
        farm = Farm(host, credly, tmp_path)
        stack.callback(farm.stop)
        credly.fail("issue", delay=3, after=True)
        host.complete("1")
        worker = farm.start(*WORKER)
        wait_for(lambda: credly.count("issue"))
        redis_server.close()
        wait_for(lambda: host.row().state == "issued")

        host.complete("2")
        redis_server.enter_context(own_redis(port))
        farm.wait_for_badges(2)
        assert worker.poll() is None


@pytest.mark.slow
@every_database
def test_four_workers_at_once_issue_each_badge_once(farm: Farm) -> None:
    for number in range(100):
        farm.host.complete(str(number))

    for _ in range(4):
        farm.start(*WORKER, "--burst")
        notifier.notify(farm.host.state, insist=True)

    farm.wait_for_badges(100)
    wait_for(lambda: farm.states() == {"issued": 100})

    assert asked(farm) == 100
    assert farm.credly.count("token") <= 2


@pytest.mark.slow
def test_failed_registry_empty_after_failures(farm: Farm) -> None:
    farm.credly.fail("issue", status=422, times=None)
    farm.host.complete()
    farm.run(*WORKER, "--burst")
    farm.host.make_due()
    farm.run(*WORKER, "--burst")
    farm.credly.clear_faults()

    assert farm.host.row().state == "failed"
    assert notifier.web_queue(farm.host.state).failed_job_registry.count == 0


@pytest.mark.slow
def test_json_job_on_pickle_worker_is_visible(farm: Farm) -> None:
    """RQ's worker without the serializer cannot read the job: nothing is lost, and
    the admin sees that badges wait.
    """
    from tests.support.pages import Browser
    from tests.support.pages import WINDOW

    farm.host.complete()
    settings = farm.host.state.settings
    command = ("rq.cli", "worker", "--burst", "--url", settings.redis_url)
    farm.run(*command, str(settings.queue))
    assert farm.host.row().state == "none"

    early = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=10)
    farm.host.db.session.execute(sa.update(Issuance).values(due_at=early))
    farm.host.db.session.commit()
    assert "1 badge is queued, the oldest since" in (
        Browser(farm.host.app).get(WINDOW).text
    )

    farm.run(*WORKER, "--burst")
    assert farm.host.row().state == "issued"


def test_redis_readonly_is_caught(farm: Farm, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        admin.replicaof("127.0.0.1", 1)

        try:
            farm.host.complete()
        finally:
            admin.replicaof("NO", "ONE")

    assert farm.host.row().state == "none"


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("function", ["drain", "sync"])
def test_a_job_of_an_older_version_is_understood(farm: Farm, function: str) -> None:
    """What version 0.1 put into Redis, to the letter."""
    if function == "drain":
        farm.host.complete()
    else:
        session = farm.host.db.session
        session.execute(sa.delete(Template))
        session.execute(sa.update(Account).values(templates_synced_at=None))
        session.commit()

    farm.redis.flushdb()
    job_id = uuid.uuid4().hex
    name = f"flask_credly.jobs.{function}"
    queue = str(farm.host.state.settings.queue)
    payload = f'["{name}", null, [], {{}}]'
    farm.redis.hset(
        f"rq:job:{job_id}",
        mapping={
            "status": "queued",
            "origin": queue,
            "description": name,
            "created_at": "2026-11-24T06:00:00.000000Z",
            "enqueued_at": "2026-11-24T06:00:00.000000Z",
            "data": zlib.compress(payload.encode()),
            "timeout": "600",
            "result_ttl": "0",
            "failure_ttl": "86400",
        },
    )
    farm.redis.sadd("rq:queues", f"rq:queue:{queue}")
    farm.redis.rpush(f"rq:queue:{queue}", job_id)
    command = ("rq.cli", "worker", "--burst", "--serializer", "json", "--url")
    farm.run(*command, farm.host.state.settings.redis_url, queue)

    if function == "drain":
        assert farm.host.row().state == "issued"
    else:
        assert accounts.list_templates(farm.host.db.session, "default")


@pytest.mark.slow
def test_a_long_list_of_templates_is_synced_by_the_worker(farm: Farm) -> None:
    for number in range(320):
        farm.credly.add_template(f"Badge {number:03}")

    found = accounts.connect(
        farm.host.state,
        organization_id=farm.credly.organization_id,
        client_id=farm.credly.client_id,
        client_secret=farm.credly.client_secret,
    )
    assert not found.complete

    farm.run(*WORKER, "--burst")
    farm.host.db.session.rollback()

    assert len(accounts.list_templates(farm.host.db.session, "default")) == 321


@pytest.mark.slow
def test_a_list_of_templates_that_is_old_is_loaded_by_the_worker(farm: Farm) -> None:
    session = farm.host.db.session
    farm.credly.add_template("Added since")
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    session.execute(sa.update(Account).values(templates_synced_at=old))
    session.commit()
    asked = farm.credly.count("templates")

    def is_synced() -> bool:
        session.rollback()
        return session.scalar(sa.select(Account.templates_synced_at)) != old

    farm.start(*WORKER)
    wait_for(is_synced)

    names = [each.name for each in accounts.list_templates(session, "default")]
    assert "Added since" in names
    assert farm.credly.count("templates") == asked + 1


def test_a_list_that_could_not_be_loaded_is_left_for_an_hour(farm: Farm) -> None:
    session = farm.host.db.session
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=2)
    session.execute(sa.update(Account).values(templates_synced_at=old))
    session.commit()
    farm.credly.fail("templates", status=503)

    with pytest.raises(CredlyError):
        accounts.sync_templates(farm.host.state)

    assert turns.to_sync(farm.host.state.engine) == []

    before = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=61)
    session.execute(sa.update(Account).values(templates_failed_at=before))
    session.commit()
    assert turns.to_sync(farm.host.state.engine) == ["default"]


def test_a_backlog_makes_no_queue_of_jobs(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        farm.host.complete(str(number))

    monkeypatch.setattr("flask_credly.issuing.dispatcher.BUDGET", 0.05)
    farm.redis.flushdb()

    queue = notifier.web_queue(farm.host.state)

    for _ in range(6):
        queue.connection.lpop(queue.key)  # as a worker takes the job that it runs
        jobs.drain()

    assert queue.count <= 1


@pytest.mark.slow
def test_sweep_rings(farm: Farm) -> None:
    queue = notifier.web_queue(farm.host.state)
    farm.redis.flushdb()

    assert "No badge is due." in farm.run("flask", "credly", "sweep")
    assert [job.func_name for job in queue.jobs] == [periodic.PRUNE.function]

    farm.host.complete()
    farm.redis.flushdb()

    assert "A worker was notified." in farm.run("flask", "credly", "sweep")
    assert [job.func_name for job in queue.jobs] == [
        periodic.DRAIN.function,
        periodic.PRUNE.function,
    ]


@pytest.mark.slow
def test_sweep_sees_to_all_that_a_worker_of_ours_does_by_itself(farm: Farm) -> None:
    host = farm.host
    mapping = accounts.list_mappings(host.state.session, "default")[0]
    backfills.start(host.state.engine, "default", mapping.id, None)
    host.db.session.execute(sa.update(Account).values(templates_synced_at=None))
    host.db.session.commit()
    farm.redis.flushdb()
    farm.run("flask", "credly", "sweep")
    queue = notifier.web_queue(host.state)

    assert [job.func_name for job in queue.jobs] == [
        periodic.SYNC.function,
        periodic.BACKFILL.function,
        periodic.PRUNE.function,
    ]


def test_a_job_rings_by_itself_as_its_process_ends_without_a_thread(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of the host's, that completes several courses."""
    monkeypatch.setattr("rq.get_current_job", lambda: object())
    rung: list[None] = []
    monkeypatch.setattr(
        "flask_credly.issuing.notifier.notify", lambda *_: rung.append(None)
    )
    farm.host.complete("1")
    farm.host.complete("2")

    assert len(rung) == 2
    assert farm.host.state.web_queue.ringer is None


@pytest.mark.slow
def test_status_counts_the_workers(farm: Farm) -> None:
    farm.start(*WORKER)
    until = time.monotonic() + 30

    while not workers.count(farm.host.state) and time.monotonic() < until:
        time.sleep(0.05)

    found = json.loads(farm.run("flask", "credly", "status", "--json"))

    assert found["workers"] == 1


def test_description_has_no_args_and_redis_nothing_of_a_member(farm: Farm) -> None:
    farm.host.complete()
    dump = b""

    for key in farm.redis.scan_iter():
        dump += key + (farm.redis.dump(key) or b"")

    queue = notifier.web_queue(farm.host.state)
    (job,) = queue.jobs
    assert (job.args, job.kwargs) in [((), {}), ([], {})]
    assert job.description == job.func_name == "flask_credly.jobs.drain"

    for secret in ("example.org", "Ada", farm.credly.client_secret):
        assert secret.encode() not in dump


@pytest.mark.parametrize("function", ["os.system", "subprocess.call"])
def test_forged_os_system_job_refused(farm: Farm, function: str) -> None:
    marker = pathlib.Path(farm.folder / "marker")
    queue = notifier.web_queue(farm.host.state)
    job = queue.enqueue(function, f"touch {marker}", failure_ttl=60)
    farm.run(*WORKER, "--burst")

    assert job.get_status(refresh=True) == rq.job.JobStatus.FAILED
    assert not marker.exists()


class Forger:
    """Writes whatever it likes into Redis, and sees whether anything came of it."""

    def __init__(self, farm: Farm, address: str) -> None:
        self.redis = farm.redis
        self.queue = str(farm.host.state.settings.queue)
        self.marker = farm.folder / "marker"
        (farm.folder / "gadget.py").write_text(
            f"def go(*a, **k):\n    open({str(self.marker)!r}, 'w').close()\n"
        )
        self.webhooks = json.dumps(
            [
                {
                    "url": f"{address}/{status}",
                    "job_status": status,
                    "method": "POST",
                    "headers": {"Metadata-Flavor": "Google"},
                    "timeout": 3,
                }
                for status in ("finished", "failed", "stopped")
            ]
        )

    def job(self, *, described: str = periodic.PRUNE.function, **fields: t.Any) -> str:
        """Write a job that names code wherever RQ lets one, and get its id."""
        job_id = uuid.uuid4().hex
        evil = pickle.dumps(Evil(self.marker))
        self.redis.hset(
            f"rq:job:{job_id}",
            mapping={
                "data": zlib.compress(json.dumps(["gadget.go", None, [], {}]).encode()),
                "description": described,
                "status": "queued",
                "origin": self.queue,
                "created_at": "2024-01-01T00:00:00.000000Z",
                "started_at": "2024-01-01T00:00:00.000000Z",
                "success_callback_name": "gadget.go",
                "failure_callback_name": "gadget.go",
                "stopped_callback_name": "gadget.go",
                "webhooks": self.webhooks,
                "meta": evil,
                "result": evil,
                **fields,
            },
        )
        self.redis.sadd("rq:queues", f"rq:queue:{self.queue}")
        return job_id

    def push(self, *job_ids: str) -> None:
        self.redis.rpush(f"rq:queue:{self.queue}", *job_ids)


class Evil:
    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __reduce__(self) -> t.Any:
        return (pathlib.Path.touch, (self.marker,))


@pytest.fixture
def visits() -> cabc.Iterator[tuple[str, list[str]]]:
    """An address that nobody has a reason to ask, and who did."""
    found: list[str] = []

    class Note(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: t.Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Note) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", found
        server.shutdown()


@pytest.fixture
def forger(farm: Farm, visits: tuple[str, list[str]]) -> cabc.Iterator[Forger]:
    forger = Forger(farm, visits[0])
    yield forger
    assert not forger.marker.exists()
    assert visits[1] == []


@pytest.mark.slow
def test_what_a_forged_job_names_is_neither_called_nor_asked(
    farm: Farm, forger: Forger
) -> None:
    """One that succeeds, one that is refused, one of pickles, and one that is too big
    for the memory.
    """
    evil = zlib.compress(
        pickle.dumps((periodic.DRAIN.function, None, (Evil(forger.marker),), {}))
    )
    forger.push(
        forger.job(),
        forger.job(described="gadget.go"),
        forger.job(described="gadget.go", data=evil),
        forger.job(data=evil),
        forger.job(data=zlib.compress(bytes(100_000_000)), exc_info=evil),
    )
    farm.host.complete()
    farm.run(*WORKER, "--burst")

    assert farm.states() == {"issued": 1}
    assert farm.redis.llen(f"rq:queue:{forger.queue}") == 0


@pytest.mark.slow
def test_what_waits_for_a_forged_job_is_not_run_as_it_says(
    farm: Farm, forger: Forger
) -> None:
    """Its dependents, its repeats, its retries, its limits and its group."""
    first, second = forger.job(), forger.job(described="gadget.go", status="deferred")
    forger.redis.sadd(f"rq:job:{first}:dependents", second)
    forger.redis.sadd(f"rq:job:{second}:dependencies", first)
    forger.redis.zadd(f"rq:deferred:{forger.queue}", {second: 1})
    many = {
        "repeats_left": 3,
        "repeat_intervals": "[0]",
        "retries_left": 3,
        "number_of_retries": 0,
        "retry_intervals": "[0]",
        "group_id": "evil",
        "rate_limit_key": "evil",
        "rate_limit_concurrency": 1,
        "timeout": -1,
        "result_ttl": -1,
        "failure_ttl": -1,
        "ttl": -1,
        "enqueue_at_front": "yes",
        "dependency_ids": "7",
    }
    forger.push(first, forger.job(**many), forger.job(described="gadget.go", **many))
    farm.host.complete()
    farm.run(*WORKER, "--burst")

    assert farm.states() == {"issued": 1}


@pytest.mark.slow
def test_nothing_that_is_cleaned_up_is_run(farm: Farm, forger: Forger) -> None:
    """RQ's own maintenance loads what was begun, what is ready, and what is stuck."""
    queue = forger.queue
    begun = forger.job(status="started", retries_left=1)
    forger.redis.zadd(f"rq:wip:{queue}", {f"{begun}:x": 1, "\x1b[0m": 1})
    ready = forger.job(described="gadget.go", status="ready_to_enqueue")
    forger.redis.zadd(f"rq:ready:{queue}", {ready: 1})
    stuck = forger.job()
    forger.redis.rpush(f"rq:queue:{queue}:intermediate", stuck)
    forger.redis.set(f"rq:queue:{queue}:intermediate:first_seen:{stuck}", 1)
    forger.redis.zadd(f"rq:failed:{queue}", {forger.job(status="failed"): 1})
    forger.redis.zadd(f"rq:scheduled:{queue}", {forger.job(): 1})
    farm.host.complete()
    farm.run(*WORKER, "--burst")

    assert farm.states() == {"issued": 1}
    assert not forger.redis.exists(f"rq:job:{begun}")
    assert forger.redis.zcard(f"rq:wip:{queue}") == 0
    assert forger.redis.zcard(f"rq:failed:{queue}") == 0


@pytest.mark.slow
def test_a_forged_entry_that_is_no_job_stops_no_worker(
    farm: Farm, forger: Forger
) -> None:
    forger.redis.rpush(f"rq:job:list-{uuid.uuid4().hex}", "x")
    forger.redis.set("rq:job:text", "x")
    odd = forger.job(status="nonsense", description=b"\xff\x1b[2J" + b"x" * 1000)
    forger.redis.rpush(
        f"rq:queue:{forger.queue}", "text", b"\xff\xfe", "a b;c", "gone", odd
    )
    farm.host.complete()
    said = farm.run(*WORKER, "--burst")
    forger.redis.delete("rq:job:text")

    assert farm.states() == {"issued": 1}
    assert "A queue entry was not a job" in said
    assert "\x1b" not in said


@pytest.mark.slow
def test_no_command_by_redis_reaches_a_worker(farm: Farm, forger: Forger) -> None:
    worker = farm.start(*WORKER)
    queue = notifier.web_queue(farm.host.state)
    wait_for(lambda: workers.listening(queue))
    (name,) = workers.listening(queue)

    for command in ("shutdown", "kill-horse", "stop-job"):
        payload = json.dumps({"command": command, "job_id": "x"})
        assert forger.redis.publish(f"rq:pubsub:{name}", payload) == 0

    farm.host.complete()
    farm.wait_for_badges(1)
    assert worker.poll() is None


REACHES = r"import_attribute|_callback\(|send_webhooks|urlopen|pickle|importlib"
"""What makes code or a request of a text."""


def test_no_other_part_of_rq_makes_code_or_a_request_of_what_is_in_redis() -> None:
    """The worker reads jobs by one class, which takes nothing of this from Redis. A
    release of RQ that reaches code in a further place is to be looked at, and then
    written down here.
    """
    folder = pathlib.Path(rq.__file__).parent
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if re.search(REACHES, path.read_text())
    }
    kept_away = {
        # Of a job, of which ours takes no field
        "callbacks.py",
        "job.py",
        "webhook.py",
        # RQ's maintenance, which we do not run
        "registry.py",
        # Of an argument, or of the program itself
        "cli/helpers.py",
        "cli/workers.py",
        "cron.py",
        "queue.py",
        "scheduler.py",
        "serializers.py",
        "utils.py",
        "worker/worker_classes.py",
        # By the job's class
        "worker/base.py",
    }
    assert found - kept_away == set()


def test_a_job_takes_nothing_from_redis_but_which_of_ours_it_is() -> None:
    fields = re.findall(r"obj(?:\.get\(|\[)'(\w+)'", inspect.getsource(rq.job))
    assert {"webhooks", "failure_callback_name", "meta", "data"} <= set(fields)
    description = {b"description": periodic.DRAIN.function.encode()}
    client = redis.Redis()
    full, bare = (OwnJob("x", connection=client, serializer="json") for _ in range(2))
    full.restore({name.encode(): b"1" for name in fields} | description)
    bare.restore(description)
    full.created_at = bare.created_at

    assert vars(full) == vars(bare)


@pytest.mark.slow
def test_a_forged_callback_is_refused(farm: Farm) -> None:
    marker = pathlib.Path(farm.folder / "marker")
    queue = notifier.web_queue(farm.host.state)
    queue.enqueue(periodic.DRAIN.function, on_success=rq.Callback("os.mkdir"))
    farm.run(*WORKER, "--burst")

    assert not marker.exists()
    assert OwnJob.success_callback is None


@pytest.mark.parametrize("job", ["SYNC", "PRUNE", "BACKFILL", "DRAIN"])
@pytest.mark.parametrize("how", ["never ends", "ends late", "is a list"])
def test_a_key_that_does_not_end_keeps_no_job_away(
    farm: Farm, job: str, how: str
) -> None:
    queue, name = notifier.web_queue(farm.host.state), getattr(periodic, job)
    farm.redis.flushdb()
    notifier.enqueue(queue, name)
    notifier.enqueue(queue, name)
    assert queue.count == 1

    (key,) = farm.redis.keys("flask-credly:*")

    if how == "never ends":
        farm.redis.persist(key)
    elif how == "ends late":
        farm.redis.expire(key, 10**9)
    else:
        farm.redis.delete(key)
        farm.redis.rpush(key, "x")

    notifier.enqueue(queue, name)
    notifier.enqueue(queue, name)
    assert queue.count == 2


@pytest.mark.slow
def test_suspended_workers_are_said_and_go_on(farm: Farm) -> None:
    rq.suspension.suspend(farm.redis)
    farm.host.complete()
    said = farm.run(*WORKER, "--burst")
    assert said.count("RQ is suspended on this Redis") == 1
    assert "rq resume" in said

    farm.start(*WORKER)
    wait_for(lambda: workers.listening(notifier.web_queue(farm.host.state)))
    assert farm.states() == {"none": 1}
    rq.suspension.resume(farm.redis)
    farm.wait_for_badges(1)


@pytest.mark.slow
def test_a_drain_that_always_fails_does_not_spin(farm: Farm) -> None:
    farm.host.complete()

    with farm.host.state.engine.begin() as other:
        other.execute(sa.text("DROP TABLE credly_attempt"))

    farm.run(*WORKER, "--burst", timeout=30)

    assert farm.host.row().state == "none"


@pytest.mark.parametrize("inside", [False, True])
def test_no_completion_waits_for_a_redis_that_never_answers(
    make_host: MakeHost,
    credly: CredlySimulator,
    inside: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A port that takes connections. The host signals inside of its transaction, so
    that the bell is rung by its commit, or after it.
    """
    monkeypatch.setattr("flask_credly.issuing.notifier.WEB_TIMEOUT", 30)

    def complete(member_id: str) -> None:
        if inside:
            host.db.session.execute(sa.update(Template).values(name="by the host"))

        # Without waiting for the thread, as a view.
        course_completed.send(host.app, member=a_member(member_id), course_id="py-101")
        host.db.session.commit()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        host = make_host(CREDLY_REDIS_URL=f"redis://127.0.0.1:{port}/0")

        with host.app.app_context():
            # Not by the sync that follows a connect.
            host.state.web_queue.silent_until = time.monotonic() + 30
            connect(host, credly)
            host.state.web_queue.silent_until = 0
            caplog.clear()
            complete("1")
            complete("2")

            assert len(host.rows()) == 2
            assert caplog.text == ""  # the thread still waits

    wait_for(lambda: "Redis cannot be reached (ConnectionError)" in caplog.text)


def test_redis_oom_is_caught(farm: Farm, redis_url: str) -> None:
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

    assert farm.host.row().state == "none"


def with_own_queue(make_host: MakeHost, redis_url: str) -> tuple[Host, list[t.Any]]:
    """Make a host that makes its queue itself, and note for which app."""
    made: list[t.Any] = []

    def make_queue(app: t.Any) -> rq.Queue:
        made.append(app)
        return rq.Queue(
            f"own-{uuid.uuid4().hex}",
            connection=redis.Redis.from_url(redis_url),
            serializer="json",
        )

    return make_host(CREDLY_QUEUE=make_queue), made


def test_a_worker_asks_once_for_a_queue_of_the_hosts_own(
    make_host: MakeHost, redis_url: str
) -> None:
    host, made = with_own_queue(make_host, redis_url)
    run = host.app.test_cli_runner().invoke(args=["credly", "worker", "--burst"])
    assert (run.exit_code, made) == (0, [host.app])


def test_a_queue_of_the_hosts_own_is_used(
    make_host: MakeHost, redis_url: str, credly: CredlySimulator
) -> None:
    host, made = with_own_queue(make_host, redis_url)

    with host.app.app_context():
        connect(host, credly)
        host.complete()
        queue = notifier.web_queue(host.state)

        assert queue.name.startswith("own-")
        assert queue.count == 1

    assert made == [host.app]
