"""``flask credly doctor``: each thing that can be wrong, by its name."""

from __future__ import annotations

import base64
import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import email.utils
import json
import logging.config
import os
import pathlib
import pickle
import re
import subprocess
import sys
import time
import tracemalloc
import typing as t
import uuid
import zlib

import pytest
import redis
import rq
import rq.suspension
import sqlalchemy as sa
from click.testing import Result
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from cryptography.fernet import Fernet
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from pymysql.constants import CLIENT

from flask_credly import accounts
from flask_credly import Course
from flask_credly import jobs
from flask_credly.issuing import notifier
from flask_credly.issuing import periodic
from flask_credly.issuing import workers
from flask_credly.issuing.worker import CredlyWorker
from flask_credly.ledger import clock
from flask_credly.ledger import comparisons
from flask_credly.ledger import gates
from flask_credly.ledger import removing
from flask_credly.ledger.transaction import in_session
from flask_credly.models import Account
from flask_credly.models import Batch
from flask_credly.models import Installation
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.models import Template
from flask_credly.options import Options
from flask_credly.settings import Settings
from flask_credly.settings import unknown
from flask_credly.state import get_state
from flask_credly.testing import CredlySimulator
from tests.support.farm import Farm
from tests.support.farm import farm as farm
from tests.support.farm import wait_for
from tests.support.farm import WORKER
from tests.support.pages import Browser
from tests.support.pages import WINDOW

KEY, OTHER = (Fernet.generate_key().decode() for _ in range(2))

CHECKS = [
    "settings",
    "key",
    "pages",
    "database",
    "tables",
    "hooks",
    "redis",
    "workers",
    "queue",
    "jobs",
    "secret",
    "connection",
    "token",
    "clock",
    "templates",
    "poll",
    "comparison",
    "waiting",
    "removal",
    "failed",
    "unrecorded",
]


class Clinic:
    """A host in which all is well: connected, mapped, with a worker."""

    def __init__(
        self,
        connected: Connected,
        queue: rq.Queue,
        folder: pathlib.Path,
        undo: contextlib.ExitStack,
    ) -> None:
        self.host, self.credly, self.template_id = connected
        self.app = self.host.app
        self.queue = queue
        self.folder = folder
        self.undo = undo
        self.worker = CredlyWorker(self.app, queue)
        self.worker.register_birth()  # type: ignore[no-untyped-call]
        self.worker._ring(get_state())

    def run(self, *arguments: str) -> Result:
        self.host.db.session.rollback()
        return self.app.test_cli_runner().invoke(
            args=["credly", "doctor", *arguments], catch_exceptions=False
        )

    def doctor(self) -> tuple[int, dict[str, dict[str, t.Any]]]:
        done = self.run("--json")
        found = json.loads(done.output)
        assert found["ok"] == (done.exit_code == 0)
        assert list(found["checks"]) == CHECKS
        return done.exit_code, found["checks"]

    def troubles(self) -> dict[str, str]:
        """What is not as it should be, by its name."""
        _, checks = self.doctor()
        return {
            name: check["status"]
            for name, check in checks.items()
            if check["status"] in ("warning", "error")
        }

    def change(self, statement: str | sa.sql.dml.DMLWhereBase) -> None:
        """Change the database behind the application's back."""
        with self.host.state.engine.begin() as connected:
            connected.execute(
                sa.text(statement) if isinstance(statement, str) else statement
            )


MakeClinic = cabc.Callable[..., Clinic]


@pytest.fixture
def make_clinic(
    make_host: MakeHost,
    credly: CredlySimulator,
    redis_url: str,
    tmp_path: pathlib.Path,
) -> cabc.Iterator[MakeClinic]:
    with contextlib.ExitStack() as stack:

        def make(**given: t.Any) -> Clinic:
            host = make_host(
                **{
                    "CREDLY_REDIS_URL": redis_url,
                    "CREDLY_QUEUE": f"credly-{uuid.uuid4().hex}",
                    "CREDLY_ENCRYPTION_KEYS": [KEY],
                    "member": lambda id_: None,
                    "past_completions": lambda *_: [],
                    **given,
                }
            )
            stack.enter_context(host.app.app_context())
            patient = stack.enter_context(redis.Redis.from_url(redis_url))
            queue = notifier.make_queue(host.app, host.state.settings, patient)
            host.state.web_queue.queue = queue
            return Clinic(connect(host, credly), queue, tmp_path, stack)

        yield make

    if (away := tmp_path / "away.db").exists():
        (tmp_path / "host.db").rmdir()
        away.rename(tmp_path / "host.db")


@pytest.fixture
def clinic(make_clinic: MakeClinic) -> Clinic:
    return make_clinic()


@every_database
def test_all_is_well(clinic: Clinic) -> None:
    done = clinic.run()
    status, checks = clinic.doctor()

    assert {check["status"] for check in checks.values()} == {"ok"}, checks
    assert (status, done.exit_code) == (0, 0)
    assert {line.split()[0] for line in done.output.splitlines()} == {"ok"}
    assert all(check["detail"] and not check["hint"] for check in checks.values())


# Each breaks one thing.


def no_key(clinic: Clinic) -> None:
    clinic.app.config.update(CREDLY_ENCRYPTION_KEYS=None, SECRET_KEY=None)


def no_secret_key(clinic: Clinic) -> None:
    clinic.app.config["SECRET_KEY"] = None


def derived_key(clinic: Clinic) -> None:
    clinic.app.config["CREDLY_ENCRYPTION_KEYS"] = None
    credly = clinic.credly
    accounts.connect(
        clinic.host.state,
        organization_id=credly.organization_id,
        client_id=credly.client_id,
        client_secret=credly.client_secret,
    )


def lost_key(clinic: Clinic) -> None:
    clinic.app.config["CREDLY_ENCRYPTION_KEYS"] = [OTHER]


def older_key(clinic: Clinic) -> None:
    clinic.app.config["CREDLY_ENCRYPTION_KEYS"] = [OTHER, KEY]


def token_of_other_keys(clinic: Clinic) -> None:
    clinic.change(sa.update(Account).values(token="sealed elsewhere"))


def misspelled_setting(clinic: Clinic) -> None:
    clinic.app.config["CREDLY_RETRY_DELY"] = 5


def log_switched_off(clinic: Clinic) -> None:
    logger = logging.getLogger("flask_credly")
    clinic.undo.callback(setattr, logger, "disabled", logger.disabled)
    logging.config.dictConfig({"version": 1})


def database_away(clinic: Clinic) -> None:
    clinic.host.db.session.remove()
    clinic.host.state.engine.dispose()
    path = clinic.folder / "host.db"
    path.rename(clinic.folder / "away.db")
    path.mkdir()


def table_missing(clinic: Clinic) -> None:
    clinic.change("DROP TABLE credly_attempt")


def column_missing(clinic: Clinic) -> None:
    clinic.change("ALTER TABLE credly_issuance DROP COLUMN look_ups")


def constraint_missing(clinic: Clinic) -> None:
    table = t.cast(sa.Table, Issuance.__table__)
    plain = sa.Table(
        table.name,
        sa.MetaData(),
        *(sa.Column(each.name, each.type) for each in table.columns),
    )
    clinic.change(f"DROP TABLE {table.name}")
    plain.create(clinic.host.state.engine)


def redis_read_only(clinic: Clinic) -> None:
    def refuse(*_: t.Any, **__: t.Any) -> t.NoReturn:
        raise redis.exceptions.ReadOnlyError("You can't write against a replica.")

    connection = redis.Redis.from_url(clinic.host.state.settings.redis_url)
    connection.pipeline = refuse  # type: ignore[method-assign]
    give_queue(clinic, lambda _: rq.Queue(connection=connection, serializer="json"))


def queue_of_pickles(clinic: Clinic) -> None:
    connection = redis.Redis.from_url(clinic.host.state.settings.redis_url)
    give_queue(clinic, lambda _: rq.Queue("own", connection=connection))


def queue_function_fails(clinic: Clinic) -> None:
    def fail(_: Flask) -> t.NoReturn:
        raise KeyError("RQ_QUEUES")

    give_queue(clinic, fail)


def give_queue(clinic: Clinic, queue: t.Any) -> None:
    clinic.app.config["CREDLY_QUEUE"] = queue
    changed = dataclasses.replace(clinic.host.state.settings, queue=queue)
    clinic.app.extensions["credly"] = dataclasses.replace(
        clinic.host.state, settings=changed
    )


def no_worker(clinic: Clinic) -> None:
    clinic.worker.register_death()  # type: ignore[no-untyped-call]


def no_worker_that_lives(clinic: Clinic) -> None:
    """As where a worker's entry was brought back from a copy of long ago."""
    clinic.queue.connection.hset(
        clinic.worker.key, "last_heartbeat", "2001-01-01T00:00:00.000000Z"
    )


def no_worker_with_an_end(clinic: Clinic) -> None:
    """It died, and its entry stays."""
    clinic.queue.connection.persist(clinic.worker.key)


def suspended(clinic: Clinic) -> None:
    rq.suspension.suspend(clinic.queue.connection, ttl=60)
    clinic.undo.callback(rq.suspension.resume, clinic.queue.connection)


def badge_waits(clinic: Clinic, *, bulk: bool) -> None:
    """For longer than a minute, and not for two."""
    clinic.host.complete()
    clinic.host.wait_for_ring()
    early = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=70)
    clinic.change(
        sa.update(Issuance)
        .where(sa.true())
        .values(recorded_at=early, due_at=early, bulk=bulk)
    )


def queue_shared(clinic: Clinic) -> None:
    other = CredlyWorker(clinic.app, clinic.queue)
    other.register_birth()  # type: ignore[no-untyped-call]
    workers.sign(clinic.queue, other.name, "of another application")


def pickle_worker(clinic: Clinic) -> None:
    notifier.enqueue(clinic.queue, periodic.DRAIN, insist=True)
    fail_jobs(clinic, rq.Queue(clinic.queue.name, connection=clinic.queue.connection))


def failing_jobs(clinic: Clinic) -> None:
    clinic.queue.enqueue_call(
        "flask_credly.jobs.gone", description=periodic.DRAIN.function, failure_ttl=60
    )
    fail_jobs(clinic, clinic.queue)


def foreign_jobs(clinic: Clinic) -> None:
    clinic.queue.enqueue_call("os.getcwdx", failure_ttl=60)
    fail_jobs(clinic, clinic.queue)


def fail_jobs(clinic: Clinic, queue: rq.Queue) -> None:
    """Run what is in the queue, as a worker that goes on to live."""

    class Living(rq.SimpleWorker):
        def register_death(self) -> None:
            pass

    worker = Living([queue], connection=queue.connection, serializer=queue.serializer)
    worker.work(burst=True, logging_level="CRITICAL")
    assert queue.failed_job_registry.count


def disconnected(clinic: Clinic) -> None:
    accounts.remove(clinic.host.state)


def expired(clinic: Clinic) -> None:
    gate = gates.read(clinic.host.state.engine, "default")
    assert gate is not None
    gates.expire(clinic.host.state.engine, "default", gate.generation)


def rate_limited(clinic: Clinic) -> None:
    gate = gates.read(clinic.host.state.engine, "default")
    assert gate is not None
    gates.pause(
        clinic.host.state.engine, "default", gate.generation, "rate limit", 90, "slow"
    )


def switched_off(clinic: Clinic) -> None:
    gates.switch(clinic.host.state.engine, "default", on=False)


def refused(clinic: Clinic) -> None:
    clinic.credly.revoke_client()
    clinic.credly.revoke_tokens()


def unreachable(clinic: Clinic) -> None:
    clinic.credly.fail("templates", how="reset")


def token_endpoint_down(clinic: Clinic) -> None:
    clinic.change(sa.update(Account).values(token=None))
    clinic.credly.fail("token", status=503)


def template_archived(clinic: Clinic) -> None:
    clinic.change(sa.update(Template).values(active=False))


def templates_old(clinic: Clinic) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
    clinic.change(sa.update(Account).values(templates_synced_at=before))


def templates_failed(clinic: Clinic) -> None:
    now = dt.datetime.now(dt.UTC)
    clinic.change(sa.update(Account).values(templates_failed_at=now))


def templates_never_loaded(clinic: Clinic) -> None:
    clinic.change(sa.update(Account).values(templates_synced_at=None))


def each_time_without_duplicates(clinic: Clinic) -> None:
    clinic.change(sa.update(Template).values(allows_duplicates=True))
    (mapping,) = accounts.list_mappings(clinic.host.db.session, "default")
    accounts.change_options(clinic.host.state, mapping.id, Options(again="each"))
    clinic.change(sa.update(Template).values(allows_duplicates=False))


def issue(clinic: Clinic, days_ago: int = 0) -> None:
    clinic.host.complete()
    clinic.host.drain()
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago)
    clinic.change(sa.update(Issuance).values(recorded_at=before))


def list_in_another_order(clinic: Clinic) -> None:
    issue(clinic)
    clinic.change(sa.update(Account).values(poll_unsorted=True))


def badges_not_read_since(clinic: Clinic) -> None:
    issue(clinic)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=2, minutes=1)
    # Nor is it said that they come late where that is so.
    clinic.change(sa.update(Account).values(surveyed_at=before, poll_unsorted=True))


def badges_never_read(clinic: Clinic) -> None:
    issue(clinic, days_ago=3)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
    # A worker that fails puts it off.
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=15)
    clinic.change(sa.update(Account).values(connected_at=before, survey_due_at=later))


def compare(clinic: Clinic, **values: t.Any) -> None:
    comparisons.start(clinic.host.state.engine, "default")
    jobs.compare()
    clinic.change(sa.update(Batch).values(**values))


def comparison_failed(clinic: Clinic) -> None:
    unread = {"counts": {}, "moving": 0, "host": True, "unread": [["refused", 3]]}
    compare(clinic, state="partial", found=unread)


def not_compared_since(clinic: Clinic) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=14, minutes=1)
    compare(clinic, started_at=before)


def never_compared(clinic: Clinic) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=7, minutes=1)
    clinic.change(sa.update(Account).values(compare_due_at=before))


def overdue(clinic: Clinic) -> None:
    clinic.host.complete()
    before = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=10)
    clinic.change(sa.update(Issuance).values(due_at=before, recorded_at=before))


def removed_and_left(clinic: Clinic) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removing, "PORTION", 0)
        accounts.remove(clinic.host.state)

    before = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=10)
    clinic.change(sa.update(Batch).values(due_at=before))


def badge_failed(clinic: Clinic) -> None:
    clinic.host.complete()
    clinic.change(sa.update(Issuance).values(state="failed", due_at=None))


def credlys_clock_is_ahead(clinic: Clinic) -> None:
    ahead = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)
    clinic.credly.fail(
        "templates",
        status=200,
        headers={"Date": email.utils.format_datetime(ahead, usegmt=True)},
        body={"data": [], "metadata": {"total_pages": 1}},
    )


def layout_missing(clinic: Clinic) -> None:
    give_layout(clinic, "nowhere.html")


def layout_without_content(clinic: Clinic) -> None:
    give_layout(clinic, "host.html", "{% block body %}{% endblock %}")


def layout_with_an_error(clinic: Clinic) -> None:
    give_layout(clinic, "host.html", "{% block content %}")


def give_layout(clinic: Clinic, name: str, text: str | None = None) -> None:
    clinic.app.root_path = str(clinic.folder)
    (clinic.folder / "templates").mkdir()

    if text is not None:
        (clinic.folder / "templates" / name).write_text(text)

    clinic.app.jinja_loader.searchpath[:] = [str(clinic.folder / "templates")]  # type: ignore[union-attr]
    clinic.app.config["CREDLY_LAYOUT"] = name
    changed = dataclasses.replace(clinic.host.state.settings, layout=name)
    clinic.app.extensions["credly"] = dataclasses.replace(
        clinic.host.state, settings=changed
    )


FAULTS: list[tuple[cabc.Callable[[Clinic], None], str, str, str]] = [
    (no_key, "key", "error", "Set CREDLY_ENCRYPTION_KEYS"),
    (no_secret_key, "pages", "error", "Set SECRET_KEY"),
    (derived_key, "key", "warning", "flask credly rotate-keys"),
    (lost_key, "secret", "error", "/integrations/credly/connection"),
    (older_key, "secret", "warning", "flask credly rotate-keys"),
    (token_of_other_keys, "secret", "warning", "the same CREDLY_ENCRYPTION_KEYS"),
    (misspelled_setting, "settings", "warning", "CREDLY_RETRY_DELAY in place of"),
    (log_switched_off, "settings", "warning", "disable_existing_loggers=False"),
    (database_away, "database", "error", "SQLALCHEMY_DATABASE_URI"),
    (table_missing, "tables", "error", "db.create_all()"),
    (column_missing, "tables", "error", "ALTER TABLE"),
    (constraint_missing, "tables", "error", "ALTER TABLE"),
    (redis_read_only, "redis", "error", "to the primary"),
    (queue_function_fails, "redis", "error", "return an rq.Queue"),
    (
        queue_of_pickles,
        "redis",
        "error",
        'Queue("own", connection=…, serializer="json")',
    ),
    (no_worker, "workers", "warning", "flask credly worker"),
    (no_worker_that_lives, "workers", "warning", "flask credly worker"),
    (no_worker_with_an_end, "workers", "warning", "flask credly worker"),
    (suspended, "workers", "error", "rq resume"),
    (queue_shared, "queue", "error", "CREDLY_QUEUE"),
    (pickle_worker, "jobs", "error", "--serializer json"),
    (failing_jobs, "jobs", "error", "worker's log"),
    (foreign_jobs, "jobs", "warning", "CREDLY_QUEUE"),
    (disconnected, "connection", "warning", "/integrations/credly"),
    (expired, "connection", "error", "/integrations/credly/connection"),
    (rate_limited, "connection", "warning", "resumes automatically"),
    (switched_off, "connection", "warning", "Resume issuing"),
    (refused, "token", "error", "/integrations/credly/connection"),
    (unreachable, "token", "error", "this machine can reach"),
    (token_endpoint_down, "token", "error", "https://www.credly.com/oauth/token"),
    (template_archived, "templates", "error", "change the mapping"),
    (templates_old, "templates", "warning", "flask credly sync"),
    (templates_failed, "templates", "warning", "flask credly sync"),
    (templates_never_loaded, "templates", "warning", "flask credly sync"),
    (each_time_without_duplicates, "templates", "error", "or choose Renew"),
    (list_in_another_order, "poll", "warning", "flask credly poll"),
    (badges_not_read_since, "poll", "warning", "credly_event poll_failed"),
    (badges_never_read, "poll", "warning", "credly_event poll_failed"),
    (comparison_failed, "comparison", "warning", "credly_event reconcile_failed"),
    (not_compared_since, "comparison", "warning", "flask credly worker"),
    (never_compared, "comparison", "warning", "flask credly worker"),
    (overdue, "waiting", "error", "flask credly worker"),
    (removed_and_left, "removal", "error", "flask credly worker"),
    (badge_failed, "failed", "warning", "flask credly retry --all"),
    (credlys_clock_is_ahead, "clock", "warning", "NTP"),
    (layout_missing, "pages", "error", "CREDLY_LAYOUT"),
    (layout_without_content, "pages", "error", "{% block content %}"),
    (layout_with_an_error, "pages", "error", "line 1"),
]

FOLLOWED_BY = {
    "no_key": {"pages": "error", "secret": "error"},
    "constraint_missing": {},
    "removed_and_left": {"connection": "warning"},
}


def test_when_all_badges_were_last_read_is_said(clinic: Clinic) -> None:
    def said() -> str:
        _, checks = clinic.doctor()
        assert checks["poll"]["status"] == "ok"
        return t.cast(str, checks["poll"]["detail"])

    assert said() == "No badge was issued yet."
    issue(clinic, days_ago=90)
    # Of an earlier connection: the worker has a day from now on.
    assert "a day after the first" in said()
    clinic.change(sa.update(Account).values(survey_due_at=dt.datetime.now(dt.UTC)))
    jobs.poll()
    row = accounts.get(clinic.host.db.session, "default")
    assert row is not None
    assert row.surveyed_at is not None
    assert f"last read from Credly at {row.surveyed_at:%Y-%m-%d %H:%M} UTC" in said()


def test_what_was_last_compared_is_said(clinic: Clinic) -> None:
    def said() -> str:
        _, checks = clinic.doctor()
        assert checks["comparison"]["status"] == "ok"
        return t.cast(str, checks["comparison"]["detail"])

    assert said() == "Badges were never compared with Credly."
    compare(clinic, healing=True)
    assert "last compared with Credly at" in said()
    assert said().endswith("Differences: 0.")


def test_no_reading_is_missed_while_it_is_not_possible(clinic: Clinic) -> None:
    badges_not_read_since(clinic)
    clinic.change(sa.update(Account).values(poll_unsorted=False))
    switched_off(clinic)
    assert clinic.troubles() == {"connection": "warning"}


def test_each_course_whose_further_badges_are_held_back_is_named(
    clinic: Clinic,
) -> None:
    each_time_without_duplicates(clinic)
    _, checks = clinic.doctor()
    assert "allow duplicates: Python Badge for py-101." in checks["templates"]["detail"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "name", "status", "mend"),
    FAULTS,
    ids=[fault.__name__ for fault, *_ in FAULTS],
)
def test_a_fault_is_named_and_what_mends_it(
    clinic: Clinic,
    fault: cabc.Callable[[Clinic], None],
    name: str,
    status: str,
    mend: str,
) -> None:
    fault(clinic)
    exit_code, checks = clinic.doctor()
    troubles = {
        each: check["status"]
        for each, check in checks.items()
        if check["status"] not in ("ok", "skipped")
    }

    assert troubles == {name: status, **FOLLOWED_BY.get(fault.__name__, {})}, checks
    assert mend in checks[name]["hint"]
    assert exit_code == (1 if "error" in troubles.values() else 0)


@pytest.mark.parametrize(
    ("address", "methods"),
    [
        ("/integrations/credly", ["GET"]),
        ("/integrations/", ["GET"]),
        ("/integrations/credly/mappings", ["POST"]),
        ("/integrations/static/<path:name>", ["GET"]),
    ],
)
def test_a_route_of_the_hosts_in_front_of_a_page_is_named(
    make_clinic: MakeClinic, address: str, methods: list[str]
) -> None:
    def setup(app: Flask, db: SQLAlchemy) -> None:
        app.add_url_rule(address, "of_the_host", lambda: "", methods=methods)

    found = make_clinic(setup=setup).doctor()[1]["pages"]

    assert found["status"] == "error"
    assert address.partition("<")[0] in found["detail"]
    assert "leads to of_the_host" in found["detail"]
    assert "CREDLY_URL_PREFIX" in found["hint"]


def test_what_is_missing_in_the_database_is_listed(clinic: Clinic) -> None:
    table_missing(clinic)
    column_missing(clinic)
    detail = clinic.doctor()[1]["tables"]["detail"]

    assert "credly_attempt" in detail
    assert "credly_issuance.look_ups" in detail


def test_a_host_with_flask_migrate_is_told_its_commands(
    make_clinic: MakeClinic,
) -> None:
    def setup(app: Flask, db: SQLAlchemy) -> None:
        Migrate(app, db)

    clinic = make_clinic(setup=setup)
    column_missing(clinic)

    assert "flask db upgrade" in clinic.doctor()[1]["tables"]["hint"]


def database_check(host: Host) -> dict[str, t.Any]:
    done = host.app.test_cli_runner().invoke(args=["credly", "doctor", "--json"])
    return t.cast("dict[str, t.Any]", json.loads(done.output)["checks"]["database"])


def warnings_of(clinic: Clinic) -> dict[str, str]:
    _, checks = clinic.doctor()
    return {
        name: check["detail"]
        for name, check in checks.items()
        if check["status"] == "warning" and name in ("database", "tables")
    }


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_column_that_cannot_hold_every_character_is_named(
    make_clinic: MakeClinic,
) -> None:
    clinic = make_clinic()
    clinic.change(
        "ALTER TABLE credly_issuance MODIFY first_name VARCHAR(255)"
        " CHARACTER SET utf8mb3 NOT NULL"
    )
    found = warnings_of(clinic)

    assert list(found) == ["tables"]
    said = "do not store every character: credly_issuance.first_name (utf8mb3)."
    assert said in found["tables"]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
@pytest.mark.parametrize("charset", ["utf8", "latin1"])
def test_a_connection_that_cannot_carry_every_character_is_named(
    make_clinic: MakeClinic, database: str, charset: str
) -> None:
    url = f"{database}?charset={charset}"
    found = warnings_of(make_clinic(SQLALCHEMY_DATABASE_URI=url))

    assert list(found) == ["database"]
    assert "character_set_client" in found["database"]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_connection_that_counts_only_what_a_statement_changes_is_named(
    make_host: MakeHost,
) -> None:
    flags = {"client_flag": CLIENT.MULTI_STATEMENTS}
    host = make_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": flags})
    found = database_check(host)

    assert found["status"] == "error"
    assert "CLIENT.FOUND_ROWS" in found["hint"]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_mode_in_which_an_empty_text_is_null_is_named(make_host: MakeHost) -> None:
    mode = {"sql_mode": "STRICT_ALL_TABLES,EMPTY_STRING_IS_NULL"}
    host = make_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": mode})
    found = database_check(host)

    assert found["status"] == "error"
    assert "sql_mode" in found["hint"] and "EMPTY_STRING_IS_NULL" in found["hint"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_style_of_times_that_drivers_do_not_read_is_named(
    make_host: MakeHost,
) -> None:
    style = {"options": "-c datestyle=German"}
    host = make_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": style})
    found = database_check(host)

    assert found["status"] == "error"
    assert "DateStyle German" in found["detail"] and "ISO" in found["hint"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_search_path_without_the_schema_of_the_tables_is_named(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """A host with a schema for each tenant sets it for each request."""
    with host.app.app_context():
        engine = host.db.engine

    @sa.event.listens_for(engine, "checkout")
    def choose(raw: t.Any, *_: object) -> None:
        raw.execute("SET search_path TO acme")

    found = database_check(host)
    page = host.app.test_client().get("/integrations/credly")

    assert found["status"] == "error"
    assert "in the schema public" in found["detail"] and "(acme)" in found["detail"]
    assert "SET search_path TO acme, public" in found["hint"]
    assert page.status_code == 503 and "flask db upgrade" not in page.text
    assert "SET search_path TO acme, public" in caplog.text


@pytest.fixture
def role(database: str) -> cabc.Iterator[str]:
    """A user of PostgreSQL's that is none of the superusers, whom nothing is hidden
    from.
    """
    name = f"credly_test_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(
        database, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )

    with engine.connect() as connected:
        connected.exec_driver_sql(f"CREATE ROLE {name}")
        connected.exec_driver_sql(f"GRANT ALL ON SCHEMA public TO {name}")

    yield name

    with engine.connect() as connected:
        connected.exec_driver_sql(f"DROP OWNED BY {name}")
        connected.exec_driver_sql(f"DROP ROLE {name}")


def as_role(name: str) -> dict[str, t.Any]:
    return {"connect_args": {"options": f"-c role={name}"}}


def hide(host: Host, table: str, policy: str | None) -> None:
    """Have PostgreSQL show of a table only what a policy lets through."""
    statements = [
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
    ]

    if policy is not None:
        statements.append(f"CREATE POLICY one ON {table} {policy}")

        if policy.startswith("FOR DELETE"):
            for each in ("SELECT USING", "UPDATE USING", "INSERT WITH CHECK"):
                name = each.partition(" ")[0].lower()
                statements.append(
                    f"CREATE POLICY for_{name} ON {table} FOR {each} (true)"
                )

    with host.app.app_context(), host.db.engine.begin() as connected:
        for statement in statements:
            connected.exec_driver_sql(statement)


OWN_TENANT = "tenant = current_setting('school.tenant', true)"


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("table", "policy", "status"),
    [
        ("credly_mapping", None, "error"),
        ("credly_issuance", None, "error"),
        ("credly_mapping", f"USING ({OWN_TENANT})", "error"),
        ("credly_mapping", f"USING ({OWN_TENANT}) WITH CHECK (true)", "error"),
        ("credly_issuance", f"FOR DELETE USING ({OWN_TENANT})", "error"),
        ("credly_mapping", "USING (true)", "ok"),
        ("credly_mapping", "USING (current_user = '{role}')", "ok"),
    ],
)
def test_rows_that_a_policy_hides_are_named(
    make_host: MakeHost, role: str, table: str, policy: str | None, status: str
) -> None:
    host = make_host(SQLALCHEMY_ENGINE_OPTIONS=as_role(role))
    hide(host, table, policy and policy.replace("{role}", role))
    found = database_check(host)

    assert found["status"] == status, found

    if status == "error":
        assert f"rows of {table}" in found["detail"]
        assert "ROW LEVEL SECURITY" in found["hint"]


ROLE = object()
NO_DATABASE = [
    ("mariadb", {"sql_mode": "EMPTY_STRING_IS_NULL"}, None),
    ("mariadb", {"client_flag": CLIENT.MULTI_STATEMENTS}, None),
    ("postgresql", ROLE, None),
    ("postgresql", ROLE, "USING (false) WITH CHECK (true)"),
]


@pytest.mark.parametrize(
    ("database", "connection", "policy"), NO_DATABASE, indirect=["database"]
)
def test_a_page_says_that_the_doctor_knows_why_nothing_can_be_saved(
    make_host: MakeHost,
    request: pytest.FixtureRequest,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    connection: t.Any,
    policy: str | None,
) -> None:
    if connection is ROLE:
        options = as_role(request.getfixturevalue("role"))
    else:
        options = {"connect_args": connection}

    host = make_host(SQLALCHEMY_ENGINE_OPTIONS=options)

    if connection is ROLE:
        hide(host, "credly_account", policy)

    credly.add_template("Python Badge")
    answer = Browser(host.app).connect(credly)

    assert answer.status_code in (422, 503)
    assert (
        "<html" in answer.text and "run the command flask credly doctor" in answer.text
    )
    assert credly.client_secret not in caplog.text
    assert database_check(host)["status"] == "error"

    with host.app.app_context():
        assert in_session(host.db.engine, accounts.get, "default") is None


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_connected_site_says_so_too(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    credly.add_template("Python Badge")
    Browser(make_host().app).connect(credly)
    flags = {"client_flag": CLIENT.MULTI_STATEMENTS}
    browser = Browser(make_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": flags}).app)
    answer = browser.post(f"{WINDOW}/templates", page=WINDOW)

    assert answer.status_code == 503
    assert "run the command flask credly doctor" in answer.text


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("table", ["credly_issuance", "credly_mapping"])
def test_a_lock_that_passes_is_no_fault_of_the_database(
    make_host: MakeHost, table: str
) -> None:
    impatient = {"options": "-c lock_timeout=50ms"}
    host = make_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": impatient})

    with host.app.app_context():
        engine = host.db.engine

    with engine.connect() as other:
        other.execute(sa.text(f"LOCK TABLE {table} IN SHARE MODE"))
        ended: list[object] = []

        @sa.event.listens_for(engine, "handle_error")
        def end(context: object) -> None:
            ended.append(context)
            other.rollback()

        found = database_check(host)

    assert (found["status"], len(ended)) == ("ok", 1), found


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_tables_in_a_schema_that_the_engine_leads_to_are_found(
    make_clinic: MakeClinic,
) -> None:
    def setup(app: Flask, db: SQLAlchemy) -> None:
        engine = sa.create_engine(app.config["SQLALCHEMY_DATABASE_URI"])

        with engine.begin() as connected:
            connected.exec_driver_sql("CREATE SCHEMA school")

        engine.dispose()

    names = {"schema_translate_map": {None: "school"}}
    clinic = make_clinic(
        setup=setup, SQLALCHEMY_ENGINE_OPTIONS={"execution_options": names}
    )
    assert clinic.troubles() == {}

    clinic.change("DROP TABLE school.credly_attempt")
    clinic.change("ALTER TABLE school.credly_issuance DROP COLUMN look_ups")
    detail = clinic.doctor()[1]["tables"]["detail"]
    assert detail == "Missing: credly_attempt, credly_issuance.look_ups."


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_tables_have_transactions_where_others_of_the_server_have_none(
    make_clinic: MakeClinic,
) -> None:
    plain = {"init_command": "SET default_storage_engine = MyISAM"}
    clinic = make_clinic(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": plain})

    assert clinic.troubles() == {}
    assert clinic.host.rows() == []


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_database_that_refuses_statements_without_a_key_is_good_enough(
    make_clinic: MakeClinic,
) -> None:
    careful = {"init_command": "SET SESSION sql_safe_updates = 1"}
    clinic = make_clinic(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": careful})
    run = clinic.app.test_cli_runner().invoke

    assert clinic.troubles() == {}
    assert run(args=["credly", "restored", "--copy"]).exit_code == 0
    assert run(args=["credly", "restored"]).exit_code == 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("encoding", "query", "named"),
    [
        ("LATIN1", "", "server_encoding (LATIN1), client_encoding (LATIN1)"),
        ("LATIN1", "?client_encoding=utf8", "server_encoding (LATIN1)."),
        ("SQL_ASCII", "?client_encoding=utf8", "server_encoding (SQL_ASCII)."),
        ("UTF8", "?client_encoding=latin1", "client_encoding (LATIN1)."),
    ],
)
def test_an_encoding_that_has_not_every_character_is_named(
    make_clinic: MakeClinic, database: str, encoding: str, query: str, named: str
) -> None:
    server = sa.create_engine(database, isolation_level="AUTOCOMMIT")
    name = f"credly_test_{uuid.uuid4().hex[:12]}"

    with server.connect() as connected:
        connected.exec_driver_sql(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            " TEMPLATE template0"
        )

    url = sa.make_url(database).set(database=name)

    try:
        clinic = make_clinic(
            SQLALCHEMY_DATABASE_URI=url.render_as_string(hide_password=False) + query
        )
        found = warnings_of(clinic)
        clinic.host.db.session.remove()
        clinic.host.db.drop_all()
        clinic.host.db.engine.dispose()
    finally:
        with server.connect() as connected:
            connected.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")

        server.dispose()

    assert list(found) == ["database"]
    assert named in found["database"]


def test_run_without_an_app_it_says_what_is_missing(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "flask_credly.doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    )

    assert done.returncode == 1
    assert done.stderr.startswith("Run the doctor through Flask with your app")
    assert "flask --app … credly doctor" in done.stderr


def test_redis_that_is_away_is_an_error(host: Host) -> None:
    done = host.app.test_cli_runner().invoke(args=["credly", "doctor"])

    assert done.exit_code == 1
    assert "Start Redis, or correct the address in CREDLY_REDIS_URL." in done.output
    assert "skipped workers" in done.output


def test_a_clock_that_differs_from_the_databases_is_named(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
    monkeypatch.setattr(clock, "now", lambda _: behind)
    found = clinic.doctor()[1]["clock"]

    assert found["status"] == "warning"
    assert "ahead of the database's" in found["detail"]


def test_everything_wrong_at_once_is_still_an_answer(clinic: Clinic) -> None:
    no_key(clinic)
    database_away(clinic)
    queue_function_fails(clinic)
    layout_missing(clinic)

    exit_code, checks = clinic.doctor()

    assert exit_code == 1
    assert {name for name in CHECKS if checks[name]["status"] == "error"} == {
        "key",
        "pages",
        "database",
        "redis",
    }
    assert checks["token"]["status"] == "skipped"
    # The count stands in the database.
    assert checks["unrecorded"]["status"] == "skipped"


def test_a_check_that_fails_itself_is_an_error(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: t.Any) -> t.NoReturn:
        raise LookupError("with a pass-word")

    monkeypatch.setattr(workers, "listening", fail)
    exit_code, checks = clinic.doctor()

    assert exit_code == 1
    assert checks["workers"]["detail"] == "The check failed (LookupError)."
    assert "pass-word" not in json.dumps(checks)


@pytest.mark.parametrize("fault", [lost_key, expired, rate_limited, disconnected])
def test_credly_is_not_asked_where_it_must_not_be(
    clinic: Clinic, fault: cabc.Callable[[Clinic], None]
) -> None:
    fault(clinic)
    asked = len(clinic.credly.received)
    _, checks = clinic.doctor()

    assert checks["token"]["status"] == "skipped"
    assert len(clinic.credly.received) == asked


def test_it_changes_no_row_of_ours(clinic: Clinic) -> None:
    def rows() -> list[t.Any]:
        with clinic.host.state.engine.connect() as connected:
            return [
                connected.execute(sa.select(table)).all()
                for table in Account.metadata.sorted_tables
            ]

    clinic.host.complete()
    before = rows()
    clinic.doctor()

    assert rows() == before


@pytest.mark.parametrize(
    "fault", [None, refused, overdue, badge_failed, database_away, lost_key]
)
def test_no_secret_and_no_member_is_printed(
    clinic: Clinic,
    fault: cabc.Callable[[Clinic], None] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clinic.host.complete("member-4711")
    row = accounts.get(clinic.host.db.session, "default")
    assert row is not None
    hidden = [
        clinic.credly.client_secret,
        row.client_secret,
        row.token,
        KEY,
        OTHER,
        "a key for tests",
        "example.org",
        "Ada",
        "4711",
    ]

    if fault is not None:
        fault(clinic)

    caplog.clear()
    said = clinic.run().output + clinic.run("--json").output + caplog.text

    assert [each for each in hidden if t.cast(str, each) in said] == []


def test_a_layout_of_the_hosts_is_named_with_its_htmx(clinic: Clinic) -> None:
    outer = "{% block content %}{% endblock %}"
    give_layout(clinic, "host.html", '{% extends "outer.html" %}')
    (clinic.folder / "templates/outer.html").write_text(outer)
    found = clinic.doctor()[1]["pages"]

    assert found["status"] == "ok"
    assert "host.html" in found["detail"]
    assert "htmx" in found["detail"]


def no_catalogue() -> t.NoReturn:
    raise LookupError("postgresql://host:pass-word@db")


@pytest.mark.parametrize(
    ("courses", "said"),
    [
        (no_catalogue, "(LookupError)"),
        (lambda: ["py-101"], "must return a list of flask_credly.Course objects"),
        (lambda: [Course("", "Python")], "must be a string of 1 to 191"),
    ],
)
def test_a_courses_hook_that_fails_is_named(
    make_clinic: MakeClinic, courses: t.Any, said: str
) -> None:
    now = [lambda: COURSES]
    clinic = make_clinic(courses=lambda: now[0]())
    now[0] = courses
    exit_code, checks = clinic.doctor()

    assert exit_code == 1
    assert checks["hooks"]["status"] == "error"
    assert "The @credly.courses hook failed" in checks["hooks"]["detail"]
    assert said in checks["hooks"]["detail"]
    assert "pass-word" not in json.dumps(checks)


def test_hooks_that_are_not_given_are_named(make_clinic: MakeClinic) -> None:
    found = make_clinic(member=None).doctor()[1]["hooks"]

    assert found["status"] == "ok"
    assert found["detail"].endswith("Not registered: member, actor.")


def test_every_setting_is_known() -> None:
    source = pathlib.Path(__file__).parent.parent / "flask_credly/settings.py"
    names = set(re.findall(r'"(CREDLY_[A-Z_]+)"', source.read_text()))

    assert unknown(dict.fromkeys(names)) == {}
    assert len(names) > len(Settings.__dataclass_fields__)


@pytest.mark.parametrize("bulk", [False, True])
def test_a_badge_that_waits_for_a_minute_while_nobody_listens_is_an_error(
    clinic: Clinic, bulk: bool
) -> None:
    no_worker(clinic)
    assert clinic.troubles() == {"workers": "warning"}

    badge_waits(clinic, bulk=bulk)
    assert clinic.troubles() == {"workers": "warning", "waiting": "error"}
    assert "flask credly worker" in clinic.doctor()[1]["waiting"]["hint"]

    switched_off(clinic)
    assert clinic.troubles() == {"workers": "warning", "connection": "warning"}


def test_nothing_of_redis_is_a_command_to_the_terminal(clinic: Clinic) -> None:
    """The name of an error, a worker, a mapped course."""
    queue, evil = clinic.queue, "\x1b]0;gotcha\x07\x9b31m\u202eError"
    job = queue.enqueue_call(
        "os.getcwd", description=periodic.DRAIN.function, failure_ttl=60
    )
    queue.failed_job_registry.add(job, ttl=60)
    rq.results.Result.create_failure(
        job,
        60,
        f"Traceback (most recent call last):\n{evil}: x",
        worker_name=clinic.worker.name,
    )
    template_archived(clinic)
    clinic.change(
        sa.update(Mapping).where(sa.true()).values(course_title=evil, course_id=evil)
    )
    done = clinic.run()

    assert done.exit_code == 1
    assert "Jobs failed (unreadable)" in done.output
    assert "\\u001b]0;gotcha" in done.output
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.output)


def test_what_is_no_text_in_redis_hides_no_worker_and_no_failure(
    clinic: Clinic, caplog: pytest.LogCaptureFixture
) -> None:
    queue, odd = clinic.queue, b"\xff\xfe"
    connection = queue.connection
    prefix = rq.Worker.redis_worker_namespace_prefix.encode()
    connection.sadd(f"rq:workers:{queue.name}", odd, prefix + odd)
    connection.hset(prefix + odd, mapping={"last_heartbeat": odd, "birth": odd})
    connection.expire(prefix + odd, 60)
    connection.hset(
        clinic.worker.key, "credly_success:" + periodic.DRAIN.function, "1" * 5000
    )
    registry = queue.failed_job_registry
    failed = {"exc_string": base64.b64encode(zlib.compress(b"OddError: x"))}

    for id_, described, worker in (
        (odd, b"", odd),
        (b"other", odd, odd),
        (b"ours", periodic.DRAIN.function.encode(), clinic.worker.name.encode()),
    ):
        connection.zadd(registry.key, {id_: time.time() + 60})
        connection.hset(b"rq:job:" + id_, "description", described)
        connection.xadd(b"rq:results:" + id_, failed | {"worker_name": worker})

    assert list(workers.listening(queue)) == [clinic.worker.name]
    assert clinic.troubles() == {"jobs": "error"}
    assert "Jobs failed (OddError)" in clinic.run().output
    assert workers.count(get_state()) == 1
    # Nor does it end the worker.
    clinic.worker.run_maintenance_tasks()
    assert list(workers.listening(queue)) == [clinic.worker.name]
    assert "UnicodeDecodeError" not in caplog.text


def test_a_result_that_runs_as_it_is_read_is_not_read(clinic: Clinic) -> None:
    """Nor is one unpacked that fills the memory."""
    marker = clinic.folder / "marker"
    queue = clinic.queue
    job = queue.enqueue_call(
        "os.getcwd", description=periodic.DRAIN.function, failure_ttl=60
    )
    queue.failed_job_registry.add(job, ttl=60)
    bomb = base64.b64encode(zlib.compress(bytes(50_000_000)))
    queue.connection.xadd(
        rq.results.Result.get_key(job.id),  # type: ignore[no-untyped-call]
        {
            "type": 2,
            "worker_name": clinic.worker.name,
            "return_value": base64.b64encode(pickle.dumps(Evil(marker))),
            "exc_string": bomb,
        },
    )
    tracemalloc.start()

    try:
        (failure,) = workers.failures(queue)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (failure.ours, failure.error) == (True, "unreadable")
    assert most < 20_000_000
    assert clinic.troubles() == {"jobs": "error"}
    assert not marker.exists()


class Evil:
    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __reduce__(self) -> t.Any:
        return (pathlib.Path.touch, (self.marker,))


class TestWorkersOfTwoApplications:
    @pytest.mark.slow
    def test_a_worker_says_whose_badges_it_issues(self, farm: Farm) -> None:
        process = farm.start(*WORKER)
        queue = notifier.web_queue(farm.host.state)
        own = workers.signature(farm.host.state.engine)
        wait_for(lambda: own in workers.listening(queue).values())

        assert '"queue": {"status": "ok"' in farm.run(
            "flask", "credly", "doctor", "--json"
        )

        # Another application: other tables, the same queue.
        farm.host.db.session.execute(
            sa.update(Installation).values(key=uuid.uuid4().hex)
        )
        farm.host.db.session.commit()
        found = farm.host.app.test_cli_runner().invoke(args=["credly", "doctor"])

        assert found.exit_code == 1
        assert "1 of its 1 workers belong to that application" in found.output
        assert process.poll() is None

    def test_rqs_own_worker_says_it_with_its_first_job(self, clinic: Clinic) -> None:
        no_worker(clinic)
        notifier.enqueue(clinic.queue, periodic.DRAIN, insist=True)

        class Living(rq.SimpleWorker):
            def register_death(self) -> None:
                pass

        worker = Living(
            [clinic.queue], connection=clinic.queue.connection, serializer="json"
        )
        worker.work(burst=True, logging_level="CRITICAL")
        own = workers.signature(clinic.host.state.engine)

        assert workers.listening(clinic.queue) == {worker.name: own}

    def test_a_signature_is_not_the_installations_key(self, clinic: Clinic) -> None:
        key = clinic.host.db.session.scalar(sa.select(Installation.key))
        signature = workers.signature(clinic.host.state.engine)

        assert key is not None
        assert signature is not None
        assert signature not in key

    def test_a_worker_that_died_is_not_counted(self, clinic: Clinic) -> None:
        clinic.queue.connection.delete(clinic.worker.key)  # as after a SIGKILL

        assert workers.count(clinic.host.state) == 0
        assert clinic.troubles() == {"workers": "warning"}
