"""From the signal to the row in the ledger."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import logging
import sys
import threading
import time
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
from conftest import MakeConnected
from conftest import MakeHost
from flask import current_app
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy import orm

from flask_credly import accounts
from flask_credly import course_completed
from flask_credly import Member
from flask_credly.models import Base
from flask_credly.state import WebQueue
from flask_credly.testing import CredlySimulator

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which nothing has been warned of."""
    monkeypatch.setattr("flask_credly.catalog._warned", set())


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
            issuance = Base.metadata.tables["credly_issuance"]
            tables = Base.metadata.sorted_tables

            # Those that refer to it first.
            for table in reversed(tables[tables.index(issuance) :]):
                other.execute(sa.schema.DropTable(table))

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
    make_connected: MakeConnected,
) -> None:
    """Own mode meets the host's own lock, taken in a way that was not seen."""
    host, _, _ = make_connected(
        setup=enrolments, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}}
    )
    raw = host.db.session.connection().connection
    raw.cursor().execute("INSERT INTO enrolment (id, done) VALUES (1, 1)")
    host.complete()
    host.db.session.commit()

    assert is_done(host)
    assert len(host.rows()) == 1


def test_a_database_locked_by_another_is_reported_and_harmless(
    make_connected: MakeConnected, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, _ = make_connected(
        SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}}
    )
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


@every_database
@pytest.mark.parametrize(
    ("member_id", "course_id"), [("42 ", "py-101"), ("42", "py-101 ")]
)
def test_ids_that_differ_in_a_blank_at_the_end_never_share_a_badge(
    connected: Connected,
    database: str,
    caplog: pytest.LogCaptureFixture,
    member_id: str,
    course_id: str,
) -> None:
    host = connected.host
    host.complete("42")
    host.complete(member_id, course_id)
    rows = [(row.member_id, row.course_id) for row in host.rows()]

    if "mysql" not in database:  # and MariaDB, which pad when they compare
        # The other course is not mapped.
        assert rows[1:] == ([] if course_id != "py-101" else [("42 ", "py-101")])
        return

    assert rows == [("42", "py-101")]
    assert "A completion was not recorded" in caplog.text
    assert "must not end with a space. MariaDB and MySQL" in caplog.text


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_no_other_member_is_erased_for_a_blank(connected: Connected) -> None:
    host = connected.host
    host.complete("42")

    for act in (host.credly.erase_member, host.credly.export_member):
        with pytest.raises(ValueError, match="^member_id must not end with a space"):
            act("42 ")

    for command in ("erase-member", "export-member"):
        done = host.app.test_cli_runner().invoke(args=["credly", command, "42 "])
        assert done.exit_code == 2 and "must not end with a space" in done.output

    assert host.row().member_id == "42"


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
    monkeypatch.setattr(
        "flask_credly.issuing.notifier.notify", lambda *_: rung.append(None)
    )
    monkeypatch.setattr("flask_credly.issuing.notifier.INTERVAL", 0)

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
    monkeypatch.setattr(
        "flask_credly.issuing.notifier.notify", lambda *_: rung.append(None)
    )
    monkeypatch.setattr("flask_credly.issuing.notifier.INTERVAL", 3600)

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
    assert host.row().state == "none"

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

    assert connected.host.row().state == "none"
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
    monkeypatch.setattr("flask_credly.issuing.notifier.INTERVAL", 0)

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
    monkeypatch.setattr(
        "flask_credly.issuing.notifier.notify", lambda *_: rung.append(None)
    )
    monkeypatch.setattr("flask_credly.issuing.notifier.INTERVAL", 3600)
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

    assert host.row().state == "none"
    assert caplog.messages[-1].startswith("Redis cannot be reached (LookupError).")
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
    assert caplog.messages == [
        "The app other does not use Flask-Credly. The signal was ignored."
    ]


def test_two_apps_in_one_process_keep_to_themselves(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    one, two = make_host(), make_host()

    with one.app.app_context():
        connect(one, credly)

    with two.app.app_context():
        accounts.remove(two.state)
        calls: list[str] = []
        event.listen(
            two.state.engine, "before_cursor_execute", lambda *a: calls.append(a[2])
        )

    one.complete()

    assert calls == []


NOTHING: t.Any = None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"member": None}, "must be a flask_credly.Member"),
        ({"member": 42}, "must be a flask_credly.Member"),
        ({"member": {"email": "a@example.org"}}, "must be a flask_credly.Member"),
        ({"member": Member("", "a@example.org", "A", "B")}, "member.id must be"),
        ({"member": Member("x" * 192, "a@example.org", "A", "B")}, "member.id must be"),
        ({"member": Member("None", "a@example.org", "A", "B")}, "flush the session"),
        ({"member": Member(NOTHING, "a@example.org", "A", "B")}, "flush the session"),
        ({"course_id": ""}, "course_id must be"),
        ({"course_id": None}, "course_id must be"),
        ({"course_id": True}, "course_id must be"),
        ({"course_id": 1.5}, "course_id must be"),
        ({"course_id": 10**4000}, "course_id must be"),
        ({"course_id": "py\x00101"}, "course_id must be"),
        ({"course_id": "py\ud800101"}, "course_id must be"),
        ({"kind": "webinar"}, "kind must be"),
        ({"kind": None}, "kind must be"),
        ({"session": "db"}, "session must be a SQLAlchemy Session"),
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


class Id(enum.StrEnum):
    FIRST = "first"


class Text(str):
    def __str__(self) -> str:
        return "another"


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (42, "42"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Id.FIRST, "first"),
        (Text("text"), "text"),
    ],
    ids=["integer", "uuid", "enumeration", "subclass"],
)
def test_an_id_is_taken_as_a_string(
    connected: Connected, given: t.Any, taken: str
) -> None:
    connected.host.complete(member=Member(given, "a@example.org", "A", "B"))

    assert connected.host.row().member_id == taken
    assert connected.host.credly.export_member(given)["badges"]


@pytest.mark.parametrize(
    "member",
    [
        {"id": "42", "email": "a@example.org", "first_name": "A", "last_name": "B"},
        types.SimpleNamespace(
            id=42, email="a@example.org", first_name="A", last_name="B"
        ),
    ],
    ids=["mapping", "object"],
)
def test_a_member_is_what_has_its_fields(connected: Connected, member: t.Any) -> None:
    connected.host.complete(member=member)
    row = connected.host.row()

    assert ("42", "a@example.org", "A", "B") == (
        row.member_id,
        row.email,
        row.first_name,
        row.last_name,
    )


def test_a_kind_may_come_from_an_enumeration(connected: Connected) -> None:
    class KindOfCourse(enum.Enum):
        COURSE = "course"

    connected.host.complete(kind=KindOfCourse.COURSE)

    assert connected.host.row().kind == "course"


def test_what_the_signal_does_not_take_is_left_out(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    connected.host.complete("1", score=97, app="x", ended=True)
    connected.host.complete("2", score=98)

    assert len(connected.host.rows()) == 2
    assert caplog.text.count("course_completed does not accept app, ended, score") == 1


NAIVE = dt.datetime(2026, 3, 1, 9, 30)
PRESENT = object()


@pytest.mark.parametrize(
    ("given", "taken", "said"),
    [
        (NAIVE, NAIVE.replace(tzinfo=dt.UTC), "has no time zone"),
        ("2026-03-01T09:30:00Z", NAIVE.replace(tzinfo=dt.UTC), None),
        ("2026-03-01 09:30", NAIVE.replace(tzinfo=dt.UTC), "has no time zone"),
        (dt.date(2026, 3, 1), dt.datetime(2026, 3, 1, tzinfo=dt.UTC), None),
        (None, PRESENT, None),
        (NOW + dt.timedelta(hours=2), PRESENT, "is in the future"),
        (dt.date.max, PRESENT, "is in the future"),
        (dt.datetime.max.replace(tzinfo=dt.UTC), PRESENT, "is in the future"),
        (dt.datetime.min.replace(tzinfo=dt.UTC), PRESENT, "is not valid"),
        (
            dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=5))),
            PRESENT,
            "is not valid",
        ),
        ("yesterday", PRESENT, "is not valid"),
        (1_790_000_000, PRESENT, "is not valid"),
        (object(), PRESENT, "is not valid"),
    ],
    ids=[
        "naive",
        "text",
        "naive text",
        "date",
        "none",
        "ahead",
        "last date",
        "last",
        "first",
        "before the first",
        "words",
        "number",
        "object",
    ],
)
def test_no_time_keeps_a_completion_from_being_recorded(
    connected: Connected,
    caplog: pytest.LogCaptureFixture,
    given: t.Any,
    taken: t.Any,
    said: str | None,
) -> None:
    for number in range(3):
        connected.host.complete(str(number), completed_at=given)

    for row in connected.host.rows():
        if taken is PRESENT:
            age = dt.datetime.now(dt.UTC) - row.completed_at
            assert dt.timedelta(0) <= age < dt.timedelta(minutes=1)
        else:
            assert row.completed_at == taken

    assert len(connected.host.rows()) == 3

    warnings = [each for each in caplog.messages if "completed_at" in each]
    assert [said in each for each in warnings] == ([True] if said else [])  # type: ignore[operator]


class Evil:
    """Whatever is asked of it raises."""

    def __getattribute__(self, name: str) -> t.Any:
        if name == "__class__":
            return Evil

        raise LookupError("ada@example.org")

    def __str__(self) -> t.NoReturn:
        raise LookupError("ada@example.org")

    __repr__ = __eq__ = __bool__ = __hash__ = __len__ = __str__  # type: ignore[assignment]


LONG = "ada@example.org " * 700_000


@pytest.mark.parametrize("make", [Evil, lambda: LONG], ids=["raises", "long"])
@pytest.mark.parametrize(
    "name", ["member", "course_id", "kind", "completed_at", "session", "id", "email"]
)
def test_no_value_raises_or_takes_long(
    connected: Connected, caplog: pytest.LogCaptureFixture, name: str, make: t.Any
) -> None:
    value = make()
    given: dict[str, t.Any] = {"member": a_member(), "course_id": "py-101"}

    if name in ("id", "email"):
        given["member"] = dataclasses.replace(a_member(), **{name: value})
    else:
        given[name] = value

    begun = time.perf_counter()
    course_completed.send(connected.host.app, **given)
    assert time.perf_counter() - begun < 0.5

    recorded = name in ("completed_at", "email")
    assert len(connected.host.rows()) == recorded
    assert len(caplog.text) < 20_000
    # What a signal's own text brings is shown cut; what an object says is not.
    assert make is not Evil or "ada@" not in caplog.text


def test_a_sender_that_raises_is_logged(connected: Connected) -> None:
    course_completed.send(Evil(), member=a_member(), course_id="py-101")

    assert connected.host.rows() == []


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("Ada\u00a0Maria", "Ada Maria"),
        ("山田\u3000太郎", "山田 太郎"),
        ("Ada\tMaria\r\nLovelace", "Ada Maria Lovelace"),
        ("Ada\u2028Maria\u2009\u205fL", "Ada Maria L"),
        ("\u3000 Ada \x85", "Ada"),
        ("علی\u200cرضا", "علی\u200cرضا"),
        ("ක්\u200dෂ", "ක්\u200dෂ"),
        ("José", "José"),
        ("Jose\u0301", "Jose\u0301"),
        ("葛\U000e0100城", "葛\U000e0100城"),
        ("\ue000\U000323b0", "\ue000\U000323b0"),
        ("A\u202eda\u2066\x1b[31m\x00\ufeff\ud800\uffff", "Ada[31m"),
        ("\u200d\u200c", ""),
    ],
    ids=ascii,
)
def test_a_name_is_spelt_as_its_script_needs(
    connected: Connected, given: str, taken: str
) -> None:
    member = Member("42", "ada\u200d@example.org", given, given)
    connected.host.complete(member=member)
    row = connected.host.row()

    assert (row.first_name, row.last_name) == (taken, taken)
    assert row.email == "ada@example.org"


def test_a_slightly_fast_clock_is_no_error(connected: Connected) -> None:
    connected.host.complete(completed_at=NOW + dt.timedelta(minutes=2))
    connected.host.drain()
    (badge,) = connected.credly.badges

    assert badge["issued_at"] <= dt.datetime.now(dt.UTC).isoformat()
