"""From the signal to the row in the ledger."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import sys
import threading
import types
import typing as t
import uuid

import pytest
import redis
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from flask import current_app
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy import orm

from flask_credly import connection
from flask_credly import course_completed
from flask_credly import Member
from flask_credly.settings import WebQueue
from flask_credly.testing import CredlySimulator

NOW = dt.datetime.now(dt.UTC)


def enrolments(app: Flask, db: SQLAlchemy) -> None:
    """A table of the host, where it marks courses complete."""
    columns = (
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("done", sa.Boolean),
    )
    table = sa.Table("enrolment", db.metadata, *columns)
    model = type("Enrolment", (object,), {})
    orm.registry().map_imperatively(model, table)
    app.extensions["enrolment"] = model


@pytest.fixture
def enrolled(
    make_host: MakeHost, credly: CredlySimulator
) -> t.Iterator[tuple[Host, t.Any]]:
    """A connected host with an enrolment that is not complete yet."""
    host = make_host(setup=enrolments)

    with host.app.app_context():
        connect(host, credly)
        enrolment = host.app.extensions["enrolment"](id=1, done=False)
        host.db.session.add(enrolment)
        host.db.session.commit()
        yield host, enrolment


def is_done(host: Host) -> bool:
    host.db.session.rollback()
    return bool(host.db.session.scalar(sa.text("SELECT done FROM enrolment")))


def durable_rows(host: Host) -> int:
    """Count what another connection sees."""
    with host.state.engine.connect() as other:
        return other.scalar(sa.text("SELECT count(*) FROM credly_issuance")) or 0


@every_database
class TestTransactions:
    def test_a_row_joins_what_the_host_has_flushed(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, enrolment = enrolled
        enrolment.done = True
        host.db.session.flush()
        host.complete()
        host.db.session.commit()

        assert is_done(host)
        assert len(host.rows()) == 1

    def test_a_row_joins_what_the_host_has_not_flushed_yet(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, enrolment = enrolled
        enrolment.done = True
        host.complete()
        host.db.session.commit()

        assert is_done(host)
        assert len(host.rows()) == 1

    def test_a_row_does_not_wait_for_a_write_that_changes_nothing(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, enrolment = enrolled
        enrolment.done = bool(enrolment.done)
        assert enrolment in host.db.session.dirty

        host.complete()
        host.db.session.rollback()

        assert len(host.rows()) == 1

    def test_a_row_goes_with_the_hosts_rollback(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, enrolment = enrolled
        enrolment.done = True
        host.db.session.flush()
        host.complete()
        host.db.session.rollback()

        assert not is_done(host)
        assert host.rows() == []

    @pytest.mark.parametrize(
        "write",
        [
            lambda s, m: s.execute(sa.update(m).values(done=True)),
            lambda s, m: s.execute(sa.text("UPDATE enrolment SET done = true")),
            lambda s, m: s.bulk_update_mappings(m, [{"id": 1, "done": True}]),
            lambda s, m: s.connection().exec_driver_sql(
                "UPDATE enrolment SET done = true"
            ),
            lambda s, m: s.execute(
                sa.text(
                    "/* a */ -- update\n /* of\n */UPDATE enrolment SET done = true"
                )
            ),
        ],
        ids=["update", "text", "bulk", "driver", "comments"],
    )
    def test_a_row_joins_however_the_host_has_written(
        self, enrolled: tuple[Host, t.Any], write: t.Any
    ) -> None:
        host, enrolment = enrolled
        write(host.db.session, type(enrolment))
        host.complete()
        host.db.session.rollback()

        assert not is_done(host)
        assert host.rows() == []

    def test_a_row_is_durable_at_once_after_the_hosts_commit(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, enrolment = enrolled
        enrolment.done = True
        host.db.session.commit()
        # The commit expired it, so that this reads and opens a transaction.
        assert enrolment.done
        host.complete()

        assert durable_rows(host) == 1

    def test_a_row_is_durable_at_once_without_any_use_of_the_session(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, _ = enrolled
        host.db.session.remove()
        host.complete()

        assert durable_rows(host) == 1

    def test_a_given_session_is_joined_in_any_case(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, _ = enrolled

        with orm.Session(host.state.engine) as session:
            host.complete(session=session)
            session.rollback()

        assert host.rows() == []

        with orm.Session(host.state.engine) as session:
            host.complete(session=session)
            session.commit()

        assert len(host.rows()) == 1

    def test_a_row_goes_with_the_hosts_savepoint(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, enrolment = enrolled
        host.db.session.execute(sa.text("UPDATE enrolment SET id = 1"))
        savepoint = host.db.session.begin_nested()
        enrolment.done = True
        host.db.session.flush()
        host.complete()
        savepoint.rollback()
        host.db.session.commit()

        assert not is_done(host)
        assert host.rows() == []

    def test_a_second_completion_does_not_disturb_the_hosts_transaction(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, enrolment = enrolled
        host.complete()
        enrolment.done = True
        host.complete()
        host.db.session.commit()

        assert is_done(host)
        assert len(host.rows()) == 1

    def test_a_missing_table_of_ours_does_not_stop_the_host(
        self, enrolled: tuple[Host, t.Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        host, enrolment = enrolled

        with host.state.engine.begin() as other:
            other.execute(sa.text("DROP TABLE credly_attempt"))
            other.execute(sa.text("DROP TABLE credly_issuance"))

        enrolment.done = True
        host.complete()
        host.db.session.commit()

        assert is_done(host)
        assert "member '42', course 'py-101'" in caplog.text
        host.db.create_all()

    def test_a_completion_takes_few_statements_whatever_the_number_of_mappings(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, _ = enrolled
        host.db.session.remove()
        seen: list[str] = []

        def note(_c: t.Any, _cursor: t.Any, statement: str, *_: t.Any) -> None:
            seen.append(statement)

        event.listen(host.state.engine, "before_cursor_execute", note)
        host.complete()
        event.remove(host.state.engine, "before_cursor_execute", note)

        assert len(seen) == (2 if host.state.engine.dialect.name == "mysql" else 1)

    def test_ids_that_differ_in_case_are_different_members(
        self, enrolled: tuple[Host, t.Any]
    ) -> None:
        host, _ = enrolled
        host.complete("abc")
        host.complete("ABC")

        assert [row.member_id for row in host.rows()] == ["abc", "ABC"]

    def test_the_row_keeps_the_completion(self, enrolled: tuple[Host, t.Any]) -> None:
        host, _ = enrolled
        completed_at = dt.datetime(
            2026, 11, 1, 9, 30, 15, 250_000, tzinfo=dt.timezone(dt.timedelta(hours=5))
        )
        host.complete(completed_at=completed_at)
        row = host.row()

        assert completed_at == row.completed_at
        assert dt.UTC == row.completed_at.tzinfo
        assert ("member-42@example.org", "Ada", "Example") == (
            row.email,
            row.first_name,
            row.last_name,
        )
        assert ("py-101", "course", "Python Badge") == (
            row.course_id,
            row.kind,
            row.badge_name,
        )


def test_a_locked_database_is_joined_through_the_host(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """Own mode meets the host's own lock, taken in a way that was not seen."""
    host = make_host(
        setup=enrolments,
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}},
    )

    with host.app.app_context():
        connect(host, credly)
        raw = host.db.session.connection().connection
        raw.cursor().execute("INSERT INTO enrolment (id, done) VALUES (1, 1)")
        host.complete()
        host.db.session.commit()

        assert is_done(host)
        assert len(host.rows()) == 1


def test_a_database_locked_by_another_is_reported_and_harmless(
    make_host: MakeHost, credly: CredlySimulator, caplog: pytest.LogCaptureFixture
) -> None:
    host = make_host(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}})

    with host.app.app_context():
        connect(host, credly)
        host.db.session.remove()

        with host.state.engine.connect() as other:
            other.exec_driver_sql("BEGIN EXCLUSIVE")
            host.complete("7")
            other.rollback()

        assert "member '7', course 'py-101'" in caplog.text
        assert host.rows() == []


def test_a_thousand_completions(connected: Connected) -> None:
    for number in range(1000):
        connected.host.complete(str(number))

    assert len(connected.host.rows()) == 1000


def test_an_unmapped_course_leaves_no_row(connected: Connected) -> None:
    connected.host.complete(course_id="sql")

    assert connected.host.rows() == []


@pytest.mark.parametrize("writes", [True, False])
def test_a_completion_that_adds_nothing_is_said_at_debug(
    enrolled: tuple[Host, t.Any], caplog: pytest.LogCaptureFixture, writes: bool
) -> None:
    host, enrolment = enrolled
    host.complete()
    caplog.clear()

    if writes:
        enrolment.done = not enrolment.done

    host.complete()
    host.complete(course_id="sql")
    assert caplog.messages == []

    caplog.set_level(logging.DEBUG, "flask_credly")
    host.complete()
    host.complete(course_id="sql")
    assert [message[:29] for message in caplog.messages] == [
        "A completion of course 'py-10",
        "A completion of course 'sql' ",
    ]
    assert "'42'" not in caplog.text


@every_database
@pytest.mark.parametrize("writes", [True, False])
def test_a_worker_is_rung_for_a_new_row_only(
    enrolled: tuple[Host, t.Any], monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    host, enrolment = enrolled
    rung: list[None] = []
    monkeypatch.setattr("flask_credly.issuing.bell.ring", lambda *_: rung.append(None))
    monkeypatch.setattr("flask_credly.issuing.bell.INTERVAL", 0)

    def complete(course_id: str = "py-101") -> None:
        if writes:
            enrolment.done = not enrolment.done

        host.complete(course_id=course_id)
        host.db.session.commit()
        host.wait_for_ring()

    complete("sql")
    assert rung == []

    complete()
    assert len(rung) == 1

    complete()
    assert len(rung) == 1


def test_many_completions_of_a_process_do_not_each_go_to_redis(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[None] = []
    monkeypatch.setattr("flask_credly.issuing.bell.ring", lambda *_: rung.append(None))
    monkeypatch.setattr("flask_credly.issuing.bell.INTERVAL", 3600)

    for number in range(50):
        connected.host.complete(str(number))

    assert len(rung) == 1

    ringer = connected.host.state.web_queue.ringer
    assert ringer is not None
    assert ringer.is_alive()

    # What the timer does in the end.
    ringer.cancel()
    ringer.function(*ringer.args)
    assert len(rung) == 2


def test_no_request_waits_for_redis(connected: Connected) -> None:
    """As one that hangs, or is far away."""
    answers = threading.Event()
    asked: list[Flask] = []

    def connect_slowly(app: Flask) -> t.NoReturn:
        assert answers.wait(timeout=20)
        asked.append(current_app._get_current_object())  # type: ignore[attr-defined]
        raise redis.ConnectionError

    host = connected.host
    settings = dataclasses.replace(host.state.settings, queue=connect_slowly)
    host.app.extensions["credly"] = dataclasses.replace(
        host.state, settings=settings, web_queue=WebQueue()
    )
    course_completed.send(host.app, member=a_member(), course_id="py-101")

    assert asked == []
    assert host.row().state == "pending"

    answers.set()
    host.wait_for_ring()
    assert asked == [host.app]


def test_a_completion_while_another_thread_loads_rq_is_recorded(
    connected: Connected,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "rq", types.ModuleType("rq"))
    connected.host.complete()

    assert connected.host.row().state == "pending"
    assert "A completion was not recorded" not in caplog.text


def test_a_queue_that_hangs_holds_one_thread(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of the host's without time-outs."""
    answers = threading.Event()
    asked: list[Flask] = []

    def hang(app: Flask) -> t.NoReturn:
        asked.append(app)
        assert answers.wait(timeout=20)
        raise redis.ConnectionError

    host = connected.host
    settings = dataclasses.replace(host.state.settings, queue=hang)
    host.app.extensions["credly"] = dataclasses.replace(
        host.state, settings=settings, web_queue=WebQueue()
    )
    monkeypatch.setattr("flask_credly.issuing.bell.INTERVAL", 0)

    for number in range(20):
        course_completed.send(
            host.app, member=a_member(str(number)), course_id="py-101"
        )

    assert len(host.rows()) == 20
    assert len(asked) <= 1

    answers.set()


def test_a_process_that_gets_no_thread_rings_at_once(
    connected: Connected,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def start(timer: threading.Timer) -> t.NoReturn:
        raise RuntimeError("can't start new thread")

    rung: list[None] = []
    monkeypatch.setattr("flask_credly.issuing.bell.ring", lambda *_: rung.append(None))
    monkeypatch.setattr("flask_credly.issuing.bell.INTERVAL", 3600)
    monkeypatch.setattr(threading.Timer, "start", start)

    for number in range(3):
        connected.host.complete(str(number))

    assert (len(connected.host.rows()), len(rung)) == (3, 3)
    assert "A completion was not recorded" not in caplog.text


@pytest.mark.parametrize("writes", [True, False])
def test_a_recorded_completion_is_not_said_to_be_lost_where_the_queue_fails(
    enrolled: tuple[Host, t.Any], caplog: pytest.LogCaptureFixture, writes: bool
) -> None:
    """As by a function in CREDLY_QUEUE that raises."""
    host, enrolment = enrolled

    def fail(app: Flask) -> t.NoReturn:
        raise LookupError

    settings = dataclasses.replace(host.state.settings, queue=fail)
    host.app.extensions["credly"] = dataclasses.replace(
        host.state, settings=settings, web_queue=WebQueue()
    )

    if writes:
        enrolment.done = not enrolment.done

    host.complete()
    host.db.session.commit()
    host.wait_for_ring()

    assert host.row().state == "pending"
    assert caplog.messages[-1].startswith("The queue cannot be used.")
    assert not any("was not recorded" in each for each in caplog.messages)


def test_a_course_and_a_path_of_the_same_id_are_different(connected: Connected) -> None:
    connected.host.complete(kind="learning_path")

    assert connected.host.rows() == []


def test_nothing_is_recorded_before_the_connection(
    host: Host, in_context: None
) -> None:
    host.complete()

    assert host.rows() == []


def test_no_request_goes_out_at_the_completion(connected: Connected) -> None:
    before = len(connected.credly.received)
    connected.host.complete()

    assert len(connected.credly.received) == before


def test_a_signal_outside_of_a_context(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    host = make_host()

    with host.app.app_context():
        connect(host, credly)

    host.complete()

    with host.app.app_context():
        assert len(host.rows()) == 1


def test_a_proxy_of_the_app_is_as_good_as_the_app(connected: Connected) -> None:
    course_completed.send(current_app, member=a_member(), course_id="py-101")

    assert len(connected.host.rows()) == 1


def test_another_sender_means_the_current_app(connected: Connected) -> None:
    course_completed.send("a view", member=a_member(), course_id="py-101")

    assert len(connected.host.rows()) == 1


def test_an_app_without_the_integration_is_left_alone(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    course_completed.send(Flask("other"), member=a_member(), course_id="py-101")

    assert connected.host.rows() == []
    assert caplog.text == ""

    caplog.set_level(logging.DEBUG, "flask_credly")
    course_completed.send(Flask("other"), member=a_member(), course_id="py-101")
    assert caplog.messages == ["The app other has no Flask-Credly: nothing is kept."]


def test_two_apps_in_one_process_keep_to_themselves(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    one, two = make_host(), make_host()

    with one.app.app_context():
        connect(one, credly)

    with two.app.app_context():
        connection.remove(two.state)
        calls: list[str] = []
        event.listen(
            two.state.engine, "before_cursor_execute", lambda *a: calls.append(a[2])
        )

    one.complete()

    assert calls == []


UUID: t.Any = uuid.UUID(int=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"member": None}, "must be a flask_credly.Member"),
        ({"member": {"id": "42"}}, "must be a flask_credly.Member"),
        ({"member": Member("", "a@example.org", "A", "B")}, "member.id must be"),
        ({"member": Member("x" * 192, "a@example.org", "A", "B")}, "member.id must be"),
        ({"member": Member("None", "a@example.org", "A", "B")}, "Flush the session"),
        ({"member": Member(UUID, "a@example.org", "A", "B")}, "write str(…)"),
        ({"course_id": UUID}, "course_id must be a string, not a UUID: write str(…)"),
        ({"course_id": ""}, "course_id must be"),
        ({"course_id": None}, "course_id must be"),
        ({"course_id": "py\x00101"}, "course_id must be"),
        ({"kind": "webinar"}, "kind must be"),
        ({"kind": None}, "kind must be"),
        ({"completed_at": dt.datetime(2026, 11, 1)}, "must be an aware time"),
        ({"completed_at": "2026-11-01"}, "must be an aware time"),
        ({"completed_at": NOW + dt.timedelta(days=1)}, "is in the future"),
        ({"user": 42}, "does not take user"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_signal_is_logged_and_nothing_is_saved(
    connected: Connected,
    caplog: pytest.LogCaptureFixture,
    given: dict[str, t.Any],
    said: str,
) -> None:
    arguments = {"member": a_member(), "course_id": "py-101", **given}
    course_completed.send(connected.host.app, **arguments)

    assert said in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "example.org" not in caplog.text
    assert connected.host.rows() == []

    if isinstance(given.get("member"), dict):
        assert vars(caplog.records[0])["credly_member"] == "42"


def test_an_integer_id_is_taken_as_a_string(connected: Connected) -> None:
    member = Member(42, "a@example.org", "A", "B")  # type: ignore[arg-type]
    connected.host.complete(member=member)

    assert connected.host.row().member_id == "42"


def test_a_slightly_fast_clock_is_no_error(connected: Connected) -> None:
    connected.host.complete(completed_at=NOW + dt.timedelta(minutes=2))
    connected.host.drain()
    (badge,) = connected.credly.badges

    assert badge["issued_at"] <= dt.datetime.now(dt.UTC).isoformat()
