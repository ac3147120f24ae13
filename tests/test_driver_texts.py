"""What a database refuses names no member: neither in a log nor in Redis."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import logging
import traceback
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

from flask_credly.issuing import notifier
from flask_credly.issuing import periodic
from flask_credly.ledger.transaction import cause
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator

COLUMNS = t.cast(sa.Table, Issuance.__table__).columns
PERSONAL = ["example.org", "Ada", "'42'", '"42"', "(42)"]


def execute(host: Host, *statements: str) -> None:
    host.db.session.remove()

    with host.state.engine.begin() as connection:
        for statement in statements:
            # As it is: a colon or a percent sign means nothing.
            connection.exec_driver_sql(statement)


def column_that_must_be_filled(host: Host, event: str) -> None:
    kind = host.state.engine.dialect.name

    if event == "UPDATE":
        checked = "lease IS NULL"
    elif kind == "sqlite":
        checked = "email IS NULL"
    else:
        checked = "email = ''"

    if kind == "sqlite":
        pytest.skip("SQLite adds no such constraint")

    execute(host, f"ALTER TABLE credly_issuance ADD CONSTRAINT odd CHECK ({checked})")


def trigger(host: Host, event: str) -> None:
    """One that repeats what it refuses."""
    kind = host.state.engine.dialect.name
    head = f"CREATE TRIGGER odd BEFORE {event} ON credly_issuance FOR EACH ROW"

    if kind == "sqlite":
        said = "RAISE(ABORT, 'No: member-42@example.org, Ada')"
        execute(host, f"{head} BEGIN SELECT {said}; END")
    elif kind == "postgresql":
        execute(
            host,
            "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE"
            " EXCEPTION 'No: %%, %%', NEW.email, NEW.first_name; END $$",
            f"{head} EXECUTE FUNCTION odd()",
        )
    else:
        execute(
            host,
            f"{head} BEGIN DECLARE said TEXT; SET said ="
            " CONCAT('No: ', NEW.email, NEW.first_name);"
            " SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = said; END",
        )


@pytest.fixture
def unharmed(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Host]:
    host = make_host()

    with host.app.app_context():
        connect(host, credly)
        yield host
        host.db.session.remove()


def trigger_with_a_code(host: Host, event: str) -> None:
    """One that gives a code of its own: it looks like an error of the server."""
    kind = host.state.engine.dialect.name

    if kind == "sqlite":
        pytest.skip("SQLite has no such codes")

    trigger(host, event)
    head = f"CREATE TRIGGER odd BEFORE {event} ON credly_issuance FOR EACH ROW"

    if kind == "postgresql":
        execute(
            host,
            "CREATE OR REPLACE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$"
            " BEGIN RAISE EXCEPTION 'No: %%, %%', NEW.email, NEW.first_name"
            " USING ERRCODE = 'insufficient_privilege'; END $$",
        )
    else:
        execute(
            host,
            "DROP TRIGGER odd",
            f"{head} BEGIN DECLARE said TEXT; SET said ="
            " CONCAT('No: ', NEW.email, NEW.first_name);"
            " SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 30001, MESSAGE_TEXT = said;"
            " END",
        )


def trigger_with_a_borrowed_number(host: Host, event: str) -> None:
    """One of the host's that takes a number of the server's for itself."""
    trigger(host, event)

    if host.state.engine.dialect.name == "mysql":
        execute(
            host,
            "DROP TRIGGER odd",
            f"CREATE TRIGGER odd BEFORE {event} ON credly_issuance FOR EACH ROW"
            " BEGIN DECLARE said TEXT; SET said ="
            " CONCAT('No: ', NEW.email, NEW.first_name);"
            " SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 1114, MESSAGE_TEXT = said;"
            " END",
        )


Fault = cabc.Callable[[Host, str], None]
faults = pytest.mark.parametrize(
    "fault",
    [
        column_that_must_be_filled,
        trigger,
        trigger_with_a_code,
        trigger_with_a_borrowed_number,
    ],
    ids=lambda fault: fault.__name__,
)


@every_database
@faults
def test_a_completion_that_is_refused_names_the_member_by_id_only(
    unharmed: Host, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    fault(unharmed, "INSERT")
    caplog.set_level(logging.DEBUG)
    unharmed.complete()
    said = "\n".join(
        [caplog.text, *(str(each.exc_text) for each in caplog.records if each.exc_text)]
    )

    assert "A completion was not recorded: member '42'" in said
    assert "Traceback" in said
    assert "example.org" not in said
    assert "Ada" not in said


@every_database
@faults
def test_a_badge_that_cannot_be_saved_names_nobody_in_the_log_and_in_redis(
    unharmed: Host, fault: Fault, caplog: pytest.LogCaptureFixture, redis_url: str
) -> None:
    unharmed.complete()
    fault(unharmed, "UPDATE")
    caplog.set_level(logging.DEBUG, "flask_credly")

    with redis.Redis.from_url(redis_url) as connection:
        queue = rq.Queue(uuid.uuid4().hex, connection=connection, serializer="json")
        notifier.enqueue(queue, periodic.DRAIN, insist=True)
        worker = rq.SimpleWorker([queue], connection=connection, serializer="json")
        worker.work(burst=True, logging_level="CRITICAL")
        (id_,) = queue.failed_job_registry.get_job_ids()
        result = rq.job.Job.fetch(
            id_, connection=connection, serializer="json"
        ).latest_result()

    assert result is not None
    kept = t.cast(str, result.exc_string)
    assert "Traceback" in kept
    assert [each for each in PERSONAL if each in kept + caplog.text] == []


@every_database
def test_what_helps_to_mend_it_is_still_said(unharmed: Host) -> None:
    with pytest.raises(sa.exc.DatabaseError) as caught:
        execute(unharmed, "SELECT nothing FROM credly_issuance")

    assert "nothing" in cause(caught.value)
    assert "\n" not in cause(caught.value)
    assert "nothing" in "".join(traceback.format_exception(caught.value))


@every_database
def test_what_is_refused_is_named(unharmed: Host) -> None:
    if unharmed.state.engine.dialect.name == "sqlite":
        pytest.skip("SQLite adds no such constraint")

    column_that_must_be_filled(unharmed, "INSERT")

    with pytest.raises(sa.exc.DatabaseError) as caught:
        with unharmed.state.engine.begin() as connection:
            now = dt.datetime.now(dt.UTC)
            texts = [each.name for each in COLUMNS if isinstance(each.type, sa.String)]
            times = {"completed_at": now, "recorded_at": now}
            values = dict.fromkeys(texts, "Ada") | {"email": "a@example.org"} | times
            connection.execute(sa.insert(Issuance).values(values))

    assert any(name in cause(caught.value) for name in ("odd", "4025"))
    assert "example.org" not in "".join(traceback.format_exception(caught.value))


@every_database
def test_an_error_of_the_hosts_own_is_left_as_it_is(unharmed: Host) -> None:
    with pytest.raises(sa.exc.DatabaseError) as caught:
        with unharmed.state.engine.begin() as connection:
            connection.execute(sa.text("SELECT :it FROM no_table"), {"it": "Ada"})

    assert "Ada" in str(caught.value)
