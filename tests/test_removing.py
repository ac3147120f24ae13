"""Removing an integration with many badges: the credentials go at once, and a worker
deletes or redacts the rest, portion by portion.
"""

from __future__ import annotations

import collections.abc as cabc
import re
import threading
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import connect_and_map
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import doctor
from flask_credly import jobs
from flask_credly.catalog import Withdrawal
from flask_credly.credly import Client
from flask_credly.issuing import stopping
from flask_credly.issuing import undo
from flask_credly.issuing import workers
from flask_credly.ledger import actions
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import clock
from flask_credly.ledger import comparisons
from flask_credly.ledger import gates
from flask_credly.ledger import log
from flask_credly.ledger import member
from flask_credly.ledger import removing
from flask_credly.ledger import retrying
from flask_credly.ledger import runs
from flask_credly.ledger import withdrawals
from flask_credly.ledger.transaction import in_session
from flask_credly.ledger.transaction import in_transaction
from flask_credly.models import Account
from flask_credly.models import AuditEntry
from flask_credly.models import Base
from flask_credly.models import Batch
from flask_credly.models import BatchRow
from flask_credly.models import DifferenceRow
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Mapping
from flask_credly.models import Template
from flask_credly.options import TELL
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import HX
from tests.support.pages import LIST
from tests.support.pages import text_of
from tests.support.pages import WINDOW

NUMBER = 8
FAILED = 3
REMOVAL = f"{WINDOW}/removal"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows take several portions."""
    monkeypatch.setattr(removing, "PORTION", 3)


@pytest.fixture
def many(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Connected]:
    """A community with issued, failed and waiting badges, and a log."""
    host = make_host(
        member=a_member,
        WTF_CSRF_ENABLED=False,
        CREDLY_BATCH_SIZE=1,
        CREDLY_CONCURRENCY=1,
    )

    with host.app.app_context():
        connected = connect(host, credly)
        credly.fail("issue", status=422, times=2 * FAILED)

        for some in (range(FAILED), range(FAILED, NUMBER)):
            for number in some:
                host.complete(str(number))

            host.drain(2)

        for number in range(NUMBER, NUMBER + 4):
            host.complete(str(number))

        assert states(host).count("failed") == FAILED
        yield connected


def states(host: Host) -> list[str]:
    return [row.state for row in host.rows()]


def all_of(host: Host, model: t.Any) -> list[t.Any]:
    host.db.session.rollback()
    return list(host.db.session.scalars(sa.select(model)))


def counts(host: Host) -> dict[str, int]:
    """Count the rows of each of our tables that has some."""
    host.db.session.rollback()
    found = {
        table.name.removeprefix("credly_"): host.db.session.scalar(
            sa.select(sa.func.count()).select_from(table)
        )
        for table in Base.metadata.sorted_tables
    }
    return {name: number for name, number in found.items() if number}


def going_on(host: Host) -> removing.Removal | None:
    return in_session(host.state.engine, removing.going_on, "default")


def let_its_lease_end(host: Host) -> None:
    removal = sa.update(Batch).where(Batch.verb == "remove")
    host.db.session.execute(removal.values(due_at=Batch.started_at))
    host.db.session.commit()


def check_removed(host: Host) -> None:
    """Nothing that names a member, or that anybody waits for, is left."""
    assert set(counts(host)) <= {"installation", "audit", "issuance", "attempt"}
    rows = host.rows()
    assert {(row.email, row.first_name, row.last_name) for row in rows} <= {
        ("", "", "")
    }
    assert {row.extras for row in rows} <= {None}
    assert {row.action for row in rows} <= {None}
    assert "none" not in {row.state for row in rows}
    assert all(each.finished_at for each in host.attempts())


def fill_all_tables(connected: Connected) -> None:
    """Let there be rows in every table that Remove empties."""
    host = connected.host
    ids = [row.id for row in host.rows()]

    with host.state.engine.begin() as connection:
        now = clock.now(connection)
        common = {"tenant": "default", "kind": "", "course_id": "", "course_title": ""}
        run_id, other = (
            runs.begin(
                connection, now, **common, verb="undo", state="choosing", reason="Ada"
            )
            for _ in range(2)
        )
        rows = [
            {"batch_id": batch, "issuance_id": id_, "tenant": "default", "outcome": "x"}
            for id_ in ids
            for batch in (run_id, other)
        ]
        connection.execute(sa.insert(BatchRow), rows)
        connection.execute(
            sa.insert(DifferenceRow),
            [
                {
                    "tenant": "default",
                    "batch_id": other,
                    "found_at": now,
                    "bucket": "twice",
                    "member_id": "42",
                }
                for _ in ids
            ],
        )


@every_database
def test_the_credentials_go_at_once_and_a_worker_does_the_rest(
    many: Connected,
) -> None:
    host, credly, _ = many
    fill_all_tables(many)
    before = host.rows()

    assert accounts.remove(host.state, by="An admin")

    assert (
        all_of(host, Account) == all_of(host, Mapping) == all_of(host, Template) == []
    )
    # Nothing was done about these yet, and nothing is done about them any more.
    assert len(host.rows()) == len(before)
    assert len(host.log()) == FAILED
    received = credly.count("issue")
    host.drain(2)
    host.complete("late")
    assert credly.count("issue") == received
    assert len(host.rows()) == len(before)

    jobs.undo()

    check_removed(host)
    assert states(host) == ["failed"] * FAILED + ["issued"] * (NUMBER - FAILED)
    last = all_of(host, AuditEntry)[-1]
    assert (last.actor, last.action, last.outcome) == ("An admin", "remove", "ok")


@every_database
def test_the_answer_takes_as_many_statements_whatever_the_number_of_rows(
    many: Connected,
) -> None:
    host, _, template_id = many
    told: list[str] = []

    def note(conn: t.Any, cursor: t.Any, statement: str, *rest: t.Any) -> None:
        told.append(statement)

    def remove() -> int:
        told.clear()
        accounts.remove(host.state)
        return len(told)

    sa.event.listen(host.state.engine, "before_cursor_execute", note)
    few = remove()
    jobs.undo()
    connect_and_map(host, many.credly, template_id)

    for number in range(30):
        host.complete(f"again-{number}")

    assert remove() == few
    assert few < 30
    sa.event.remove(host.state.engine, "before_cursor_execute", note)


@every_database
def test_a_worker_that_died_is_followed_by_another(many: Connected) -> None:
    host, *_ = many
    fill_all_tables(many)
    accounts.remove(host.state)
    engine = host.state.engine
    taken = runs.take(engine, "remove")
    assert taken is not None
    assert removing.step(engine, taken) == "more"
    removal = going_on(host)
    assert removal is not None
    assert (removal.done, 0 < removal.percent < 99) == (3, True)

    # In the midst of a portion: the database takes it back.
    class Died(BaseException):
        pass

    abandon = removing.removal.abandon

    def abandon_and_die(*given: t.Any, **named: t.Any) -> t.NoReturn:
        abandon(*given, **named)
        raise Died

    left = counts(host)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setattr(removing.removal, "abandon", abandon_and_die)
        removing.step(engine, taken)

    assert counts(host) == left
    jobs.undo()  # It is still the other's.
    assert counts(host) == left
    let_its_lease_end(host)
    jobs.undo()

    check_removed(host)
    assert removing.step(engine, taken) == "over"  # It wakes up too late.


@every_database
def test_whoever_removes_a_little_and_dies_is_followed_by_a_worker(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, *_ = connected
    host.complete()

    class Died(BaseException):
        pass

    def die(*_: t.Any) -> t.NoReturn:
        raise Died

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setattr(removing, "step", die)
        accounts.remove(host.state)

    assert len(host.rows()) == 1
    assert going_on(host) is not None
    let_its_lease_end(host)
    jobs.undo()
    check_removed(host)
    assert going_on(host) is None


def test_a_worker_that_is_told_to_stop_leaves_the_rest(
    many: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, *_ = many
    accounts.remove(host.state)
    step = removing.step

    def once(engine: t.Any, run: t.Any) -> str:
        stopping.set()
        return step(engine, run)

    monkeypatch.setitem(undo.STEPS, "remove", once)

    try:
        jobs.undo()
    finally:
        stopping.clear()

    (run,) = all_of(host, Batch)
    assert (run.lease, run.completed) == (None, 3)


@every_database
@pytest.mark.parametrize("had_its_turn", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_on_its_way_is_written_down(
    many: Connected,
    monkeypatch: pytest.MonkeyPatch,
    had_its_turn: bool,
    fails: bool,
) -> None:
    host, credly, _ = many
    issue = Client.issue
    calls = []

    def issue_then_remove(self: Client, token: str, badge: t.Any) -> t.Any:
        calls.append(badge)

        if fails:
            credly.fail("issue", status=500)

        try:
            return issue(self, token, badge)
        finally:
            with host.app.app_context():
                accounts.remove(host.state)

                if had_its_turn:
                    jobs.undo()

    with monkeypatch.context() as patch:
        patch.setattr(Client, "issue", issue_then_remove)
        host.drain()

    assert len(calls) == 1
    jobs.undo()
    check_removed(host)
    assert states(host).count("issued") == NUMBER - FAILED + (not fails)
    answers = [each.answer for each in host.attempts()]
    assert answers[-1] == ("issued" if not fails else answers[-1])


@every_database
def test_a_revocation_whose_worker_has_died_is_over(connected: Connected) -> None:
    """Nobody will ever say what came of its request. The badge is still issued."""
    host, *_ = connected
    host.complete()
    host.drain()
    engine, row = host.state.engine, host.row()
    assert actions.revoke(engine, "default", row.id, reason="A mistake.", tell=False)
    gate = gates.read(engine, "default")
    assert gate is not None
    rows = claim.claim(engine, gate, limit=1, lease_seconds=60)
    assert claim.begin(engine, rows, gate, lease_seconds=60)
    accounts.remove(host.state)

    check_removed(host)
    assert states(host) == ["issued"]
    assert [each.answer for each in host.attempts()] == ["issued", "unknown"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_completion_that_is_committed_late_is_found(many: Connected) -> None:
    # Elsewhere one of them waits for the other.
    host, *_ = many
    session = host.db.session()
    host.complete(member=a_member("late"), session=session)
    accounts.remove(host.state)
    engine = host.state.engine
    taken = runs.take(engine, "remove")
    assert taken is not None

    for _ in range(4):
        assert removing.step(engine, taken) == "more"

    session.commit()
    assert "late@" in "".join(row.email for row in host.rows())

    while removing.step(engine, taken) == "more":
        pass

    check_removed(host)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_withdrawal_that_is_committed_late_is_found(many: Connected) -> None:
    host, *_ = many
    session = host.db.session
    session.execute(sa.update(Mapping).values(options={"withdrawn": TELL}))
    session.commit()
    (member_id, *_) = (r.member_id for r in host.rows() if r.state == "issued")
    key = {"member_id": member_id, "kind": "course", "course_id": "py-101"}
    engine = host.state.engine
    removing_it = threading.Thread(target=lambda: in_context(host, jobs.undo))

    with engine.connect() as connection, connection.begin():
        at = clock.now(connection)
        withdrawal = Withdrawal(**key, tenant="default", withdrawn_at=at)
        assert withdrawals.withdraw(connection, withdrawal)
        accounts.remove(host.state)
        removing_it.start()
        removing_it.join(0.5)  # It has come to this row, and waits.
        assert removing_it.is_alive()

    removing_it.join(30)
    check_removed(host)


def in_context(host: Host, work: cabc.Callable[[], object]) -> None:
    with host.app.app_context():
        work()


def test_two_admins_at_once_begin_one(many: Connected) -> None:
    host, *_ = many
    assert accounts.remove(host.state, by="An admin")
    assert not accounts.remove(host.state, by="Another")
    assert len(all_of(host, Batch)) == 1
    noted = [each.actor for each in all_of(host, AuditEntry)]
    assert noted.count("An admin") == 1 and "Another" not in noted


class Paused:
    """A transaction in another thread that has done its work and is not committed."""

    def __init__(
        self, host: Host, work: cabc.Callable[[sa.Connection], object]
    ) -> None:
        self._host, self._work = host, work
        self._done, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._host.app.app_context(), self._host.state.engine.begin() as opened:
            self._work(opened)
            self._done.set()
            assert self._go_on.wait(30)

    def __enter__(self) -> t.Self:
        self._thread.start()
        assert self._done.wait(30)
        return self

    def __exit__(self, *args: object) -> None:
        self._go_on.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


servers = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)


@servers
@pytest.mark.parametrize("second", ["remove", "write"])
@pytest.mark.parametrize("kind", ["log", "retry", "compare", "backfill"])
def test_nothing_is_written_after_the_account_is_gone(
    many: Connected, kind: str, second: str
) -> None:
    """One of them waits for the other. With SQLite, they always do."""
    host, *_ = many
    mapping_id = accounts.list_mappings(host.db.session, "default")[0].id
    host.db.session.rollback()

    def write(connection: sa.Connection) -> None:
        now = clock.now(connection)

        if kind == "log":
            log.write(connection, "default", now, log.RATE_LIMIT, "Written late.")
        elif kind == "retry":
            inner(retrying.retry_all)(connection, "default")
        elif kind == "compare":
            inner(comparisons.start)(connection, "default")
        else:
            inner(backfills.start)(connection, "default", mapping_id, None)

    def remove(connection: sa.Connection) -> None:
        inner(accounts.connecting._remove)(connection, "default", None)

    first, then = (write, remove) if second == "remove" else (remove, write)
    waiting = threading.Thread(target=lambda: again(host, then))

    with Paused(host, first):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()

    waiting.join(30)
    assert not waiting.is_alive()
    jobs.undo()
    check_removed(host)


def inner(function: t.Any) -> t.Any:
    """Get what takes a connection, of a function that takes an engine."""
    return function.__wrapped__


def again(host: Host, work: cabc.Callable[[sa.Connection], object]) -> None:
    with host.app.app_context():
        in_transaction(work)(host.state.engine)


class TestConnect:
    @every_database
    def test_it_is_refused_meanwhile_and_possible_afterwards(
        self, many: Connected
    ) -> None:
        host, credly, template_id = many
        accounts.remove(host.state)
        asked = len(credly.received)

        with pytest.raises(accounts.StillRemoving):
            connect_and_map(host, credly, template_id)

        assert len(credly.received) == asked
        assert all_of(host, Account) == []
        jobs.undo()
        connect_and_map(host, credly, template_id)
        # Nobody gets a badge twice.
        host.complete(str(NUMBER - 1))
        host.drain()
        assert len(credly.badges) == NUMBER - FAILED

    @every_database
    def test_a_removal_that_begins_while_credly_answers_is_seen(
        self, many: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, template_id = many
        real = Client.templates

        def remove_then_list(self: Client, *given: t.Any) -> t.Any:
            with host.app.app_context():
                accounts.remove(host.state)

            return real(self, *given)

        monkeypatch.setattr(Client, "templates", remove_then_list)

        with pytest.raises(accounts.StillRemoving):
            connect_and_map(host, credly, template_id)

        assert all_of(host, Account) == []
        jobs.undo()
        check_removed(host)

    def test_the_form_says_so(self, many: Connected) -> None:
        host, credly, _ = many
        client = host.app.test_client()
        fields = {
            "organization_id": credly.organization_id,
            "client_id": credly.client_id,
            "client_secret": credly.client_secret,
        }
        accounts.remove(host.state)
        answer = client.post(WINDOW, data=fields)

        assert answer.status_code == 422
        assert "The previous connection is still being removed: 0 % done." in (
            text_of(answer)
        )
        assert credly.client_secret not in answer.text


class TestPages:
    def test_the_list_shows_how_far_it_is(
        self, many: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, *_ = many
        monkeypatch.setattr(workers, "count", lambda state: 1)
        client = host.app.test_client()
        said = client.post(f"{WINDOW}/remove", follow_redirects=True)
        assert "Credly was disconnected." in text_of(said)
        assert "Being removed" in text_of(said)
        assert "Set Up" not in said.text

        engine = host.state.engine
        taken = runs.take(engine, "remove")
        assert taken is not None
        removing.step(engine, taken)
        removal = going_on(host)
        assert removal is not None
        page = client.get(LIST).text
        assert f'value="{removal.percent}"' in page
        assert f'hx-get="{REMOVAL}?said={removal.percent // 25}"' in page
        assert "No worker is running" not in page
        assert client.get(WINDOW).location == LIST
        assert client.get(REMOVAL).location == LIST

        part = client.get(f"{REMOVAL}?said=3", headers=HX).text
        assert f"{removal.percent} % done" in part
        assert 'role="status"' in part
        part = client.get(f"{REMOVAL}?said={removal.percent // 25}", headers=HX).text
        assert 'role="status"' not in part

        runs.leave(engine, taken)
        jobs.undo()
        part = client.get(f"{REMOVAL}?said=3", headers=HX).text
        assert "Credly was removed." in part
        assert "Set Up" in part
        assert "hx-trigger" not in part

    def test_a_worker_that_is_missing_is_said(
        self, many: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, *_ = many
        accounts.remove(host.state)
        client = host.app.test_client()
        page = client.get(LIST)
        assert "Redis cannot be reached" in page.text
        assert "Nothing is deleted until Redis is back." in text_of(page)

        monkeypatch.setattr(workers, "count", lambda state: 0)
        assert "No worker is running" in client.get(LIST).text

    def test_a_member_is_not_told_that_a_badge_is_on_its_way(
        self, many: Connected
    ) -> None:
        host, *_ = many
        accounts.remove(host.state)
        assert "none" in states(host)
        found = {
            number: [each.status for each in member.badges_of(host.state, str(number))]
            for number in (0, NUMBER - 1, NUMBER)
        }
        assert found == {0: [], NUMBER - 1: ["waiting"], NUMBER: []}


class TestCommands:
    def run(self, host: Host, *args: str) -> str:
        said = host.app.test_cli_runner().invoke(args=["credly", *args])
        assert said.exception is None or isinstance(said.exception, SystemExit)
        return said.output

    def test_the_status_says_so(self, many: Connected) -> None:
        accounts.remove(many.host.state)
        assert re.search(r"connection +removing", self.run(many.host, "status"))

    def test_the_doctor_says_so(self, many: Connected) -> None:
        host, *_ = many
        assert doctor.examine(host.state)["removal"].status == "ok"
        accounts.remove(host.state)
        found = doctor.examine(host.state)["removal"]
        assert (found.status, found.detail) == (
            "ok",
            "An integration is being removed: 0 % done.",
        )
        assert "still being deleted" in doctor.examine(host.state)["connection"].detail

        host.db.session.execute(
            sa.update(Batch).values(due_at=sa.func.datetime("now", "-2 minutes"))
        )
        host.db.session.commit()
        found = doctor.examine(host.state)["removal"]
        assert (found.status, found.hint[:24]) == ("error", "Run flask credly worker.")

    def test_erase_export_prune_and_the_others_work_meanwhile(
        self, many: Connected
    ) -> None:
        host, *_ = many
        accounts.remove(host.state)

        for command in (
            ("export-member", str(NUMBER)),
            ("erase-member", str(NUMBER), "--yes"),
            ("prune",),
            ("rotate-keys",),
            ("restored", "--yes"),
            ("sweep",),
            ("poll",),
            ("sync",),
            ("retry", "--all"),
            ("reconcile",),
        ):
            assert "Traceback" not in self.run(host, *command), command

        jobs.undo()
        check_removed(host)


def test_nothing_of_another_community_is_touched(many: Connected) -> None:
    host, *_ = many
    engine = host.state.engine

    with engine.begin() as connection:
        for model in (Issuance, LogEntry):
            table = t.cast(sa.Table, model.__table__)
            row = connection.execute(sa.select(table)).first()
            assert row is not None
            values = {**row._mapping, "tenant": "other", "id": 1000}
            values |= {"badge_id": None} if model is Issuance else {}
            connection.execute(sa.insert(table).values(**values))

    accounts.remove(host.state)
    jobs.undo()
    left = [(row.tenant, row.email != "") for row in host.rows() if row.email]
    assert left == [("other", True)]
    assert len(host.log()) == 1


def test_the_page_of_all_communities_keeps_it(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    host = make_host(
        tenant=lambda: "north", is_operator=lambda: True, WTF_CSRF_ENABLED=False
    )

    with host.app.app_context():
        state = host.state
        north = host.app.extensions["credly"].of("north")
        credly.add_template("Badge")
        accounts.connect(
            north,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.client_secret,
        )

        with state.engine.begin() as connection:
            for _ in range(5):
                log.write(
                    connection, "north", clock.now(connection), log.RATE_LIMIT, "x"
                )

        accounts.remove(north)
        page = Browser(host.app).get(f"{WINDOW}/communities")
        assert re.search(r"north\s+Being removed", text_of(page))
        jobs.undo()
        page = Browser(host.app).get(f"{WINDOW}/communities")
        assert "No community is connected yet." in text_of(page)
