"""All that failed is tried again: a few badges in the request, many by a worker."""

from __future__ import annotations

import datetime as dt
import threading
import types
import typing as t

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import jobs
from flask_credly.issuing import stopping
from flask_credly.ledger import clock
from flask_credly.ledger import retrying
from flask_credly.ledger import runs
from flask_credly.ledger import settle
from flask_credly.ledger.transaction import in_session
from flask_credly.models import AuditEntry
from flask_credly.models import Batch
from flask_credly.models import Issuance
from flask_credly.models import RemovedMapping
from flask_credly.testing import CredlySimulator

NUMBER = 7
PAGE = "/integrations/credly/badges"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few badges take several portions."""
    monkeypatch.setattr(retrying, "PORTION", 3)


@pytest.fixture
def failed(make_host: MakeHost, credly: CredlySimulator) -> t.Iterator[Connected]:
    """Badges that Credly has refused twice."""
    host = make_host(WTF_CSRF_ENABLED=False, CREDLY_BATCH_SIZE=1)
    credly.posts_allowed = 6  # An admin has each retried.

    with host.app.app_context():
        connected = connect(host, credly)
        credly.fail("issue", status=422, times=2 * NUMBER)

        for number in range(NUMBER):
            host.complete(str(number))

        host.drain(2)
        assert states(host) == ["failed"] * NUMBER
        yield connected


def states(host: Host) -> list[str]:
    return [row.state for row in host.rows()]


def due(host: Host) -> list[int]:
    return [row.id for row in host.rows() if row.due_at is not None]


def start(host: Host) -> int:
    number, run_id = retrying.retry_all(host.state.engine, "default", by="An admin")
    assert (number, due(host)) == (0, [])
    assert run_id is not None
    return run_id


def run_of(host: Host, run_id: int) -> Batch:
    found = in_session(host.state.engine, runs.get, "default", run_id, "retry")
    assert found is not None
    return found


def noted(host: Host, word: str = "retry") -> list[tuple[str, str, str]]:
    query = sa.select(AuditEntry).order_by(AuditEntry.id)
    entries = host.db.session.scalars(query).all()
    return [(e.actor, e.action, e.target) for e in entries if word in e.action]


@every_database
def test_many_are_queued_by_a_worker_and_issued_once(failed: Connected) -> None:
    host, credly, _ = failed
    run_id = start(host)

    jobs.undo()
    run = run_of(host, run_id)
    assert (run.state, run.completed, run.number) == ("retried", NUMBER, NUMBER)
    assert noted(host) == [("An admin", "retry all", str(NUMBER))]

    host.drain(2)
    assert states(host) == ["issued"] * NUMBER
    assert len(credly.badges) == NUMBER
    assert credly.problems == []


def test_a_few_are_queued_at_once(failed: Connected) -> None:
    host, *_ = failed
    first, second, *rest = [row.id for row in host.rows()]
    host.db.session.execute(sa.delete(Issuance).where(Issuance.id.in_(rest)))
    host.db.session.commit()

    assert retrying.retry_all(host.state.engine, "default") == (2, None)
    assert due(host) == [first, second]


def test_what_a_worker_left_is_gone_on_with_where_it_stopped(
    failed: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after one that died: its lease ends."""
    host, *_ = failed
    run_id = start(host)
    taken = runs.take(host.state.engine, "retry")
    assert taken is not None
    assert retrying.step(host.state.engine, taken) == "more"
    before = due(host)
    assert len(before) == 3

    assert runs.take(host.state.engine, "retry") is None  # It is that worker's.
    past = sa.update(Batch).values(due_at=Batch.started_at)
    host.db.session.execute(past)
    host.db.session.commit()
    jobs.undo()

    assert run_of(host, run_id).completed == NUMBER
    assert retrying.step(host.state.engine, taken) == "over"  # It wakes up too late.
    assert due(host)[:3] == before and len(due(host)) == NUMBER


def test_what_fails_again_meanwhile_is_tried_once(failed: Connected) -> None:
    host, credly, _ = failed
    start(host)
    taken = runs.take(host.state.engine, "retry")
    assert taken is not None
    retrying.step(host.state.engine, taken)
    credly.fail("issue", status=422, times=6)
    host.drain(2)
    received = credly.count("issue")

    while retrying.step(host.state.engine, taken) == "more":
        pass

    host.drain(2)
    assert sorted(states(host)) == ["failed"] * 3 + ["issued"] * (NUMBER - 3)
    assert credly.count("issue") == received + NUMBER - 3


def test_it_gives_way_to_a_completion_that_comes_in(failed: Connected) -> None:
    host, credly, _ = failed
    start(host)
    jobs.undo()
    host.complete("fresh")
    before = len(credly.received)
    host.drain(2)

    first = next(
        each for each in credly.received[before:] if each.kind in ("issue", "look-up")
    )
    assert first.kind == "issue"
    assert credly.badges[0]["recipient_email"] == host.rows()[-1].email


def test_an_admin_sees_how_far_it_is_and_stops_it(
    failed: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, *_ = failed
    client = host.app.test_client()
    shown = client.get(f"{PAGE}/retry").text
    assert f'name="number" value="{NUMBER}"' in shown

    client.post(f"{PAGE}/retry", data={"number": str(NUMBER)})
    taken = runs.take(host.state.engine, "retry")
    assert taken is not None
    retrying.step(host.state.engine, taken)
    page = client.get(PAGE).text
    assert f"Retrying failed badges: 3 of {NUMBER} queued again." in page
    assert "Retry all failed" not in page
    window = client.get(PAGE.rpartition("/")[0]).text
    assert f"Retrying {NUMBER} failed badges" in window
    assert "Retry all failed" not in window
    assert client.get(f"{PAGE}/retry").location == PAGE

    again = client.post(f"{PAGE}/retry", data={"number": str(NUMBER)})
    assert again.status_code == 303
    assert len(host.db.session.scalars(sa.select(Batch)).all()) == 1

    client.post(f"{PAGE}/retry/{taken.id}/stop")
    assert "Stopped. Badges already queued stay queued." in client.get(PAGE).text
    assert retrying.step(host.state.engine, taken) == "over"
    assert len(due(host)) == 3
    assert [action for _, action, _ in noted(host)] == ["retry all", "stop retry"]


def test_the_command_leaves_many_to_a_worker(failed: Connected) -> None:
    host, *_ = failed
    said = host.app.test_cli_runner().invoke(args=["credly", "retry", "--all"])

    assert said.exit_code == 0, said.output
    assert "A worker queues them again" in said.output
    assert due(host) == []


def test_remove_ends_it(failed: Connected) -> None:
    host, *_ = failed
    start(host)
    taken = runs.take(host.state.engine, "retry")
    assert taken is not None
    accounts.remove(host.state)

    assert retrying.step(host.state.engine, taken) == "over"
    assert due(host) == []


def test_a_worker_that_is_told_to_stop_leaves_the_rest(
    failed: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, *_ = failed
    run_id = start(host)
    step = retrying.step

    def once(engine: t.Any, run: t.Any) -> str:
        stopping.set()
        return step(engine, run)

    from flask_credly.issuing import undo

    monkeypatch.setitem(undo.STEPS, "retry", once)

    try:
        jobs.undo()
    finally:
        stopping.clear()

    assert len(due(host)) == 3
    assert run_of(host, run_id).lease is None


COURSE = COURSES[0]
LATER = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)


@pytest.fixture
def cancelled(make_host: MakeHost, credly: CredlySimulator) -> t.Iterator[Connected]:
    """Badges that waited, and whose mapping was removed."""
    host = make_host(WTF_CSRF_ENABLED=False)

    with host.app.app_context():
        connected = connect(host, credly)

        for number in range(NUMBER):
            host.complete(str(number))

        remove_mapping(host)
        assert states(host) == ["cancelled"] * NUMBER
        yield connected


def remove_mapping(host: Host) -> None:
    host.db.session.rollback()  # It may still see what there was before.
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    accounts.remove_mapping(host.state, mapping.id)
    host.drain(2)


def undo(connected: Connected) -> None:
    host, _, template_id = connected
    accounts.add_mapping(host.state, COURSE, template_id, undo=True)


def one_step(host: Host) -> runs.Run:
    """Begin the run as a worker, and do one portion of it."""
    taken = runs.take(host.state.engine, "retry")
    assert taken is not None
    assert retrying.step(host.state.engine, taken) == "more"
    return taken


class TestUndoneRemovalOfAMapping:
    @every_database
    def test_many_are_brought_back_by_a_worker_and_issued_once(
        self, cancelled: Connected
    ) -> None:
        host, credly, _ = cancelled
        undo(cancelled)
        assert due(host) == []

        jobs.undo()
        assert len(due(host)) == NUMBER
        host.drain(2)
        assert states(host) == ["issued"] * NUMBER
        assert len(credly.badges) == NUMBER
        assert credly.problems == []

    def test_a_few_are_at_once(
        self, cancelled: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retrying, "PORTION", NUMBER)
        undo(cancelled)

        assert len(due(cancelled.host)) == NUMBER
        assert cancelled.host.db.session.scalars(sa.select(Batch)).all() == []

    @every_database
    def test_removed_and_undone_once_more_meanwhile(self, cancelled: Connected) -> None:
        host, credly, _ = cancelled
        undo(cancelled)
        taken = one_step(host)
        remove_mapping(host)
        assert retrying.step(host.state.engine, taken) == "over"
        assert states(host) == ["cancelled"] * NUMBER

        undo(cancelled)
        jobs.undo()
        host.drain(2)
        assert states(host) == ["issued"] * NUMBER
        assert len(credly.badges) == NUMBER

    def test_removed_meanwhile_and_mapped_to_another_badge(
        self, cancelled: Connected
    ) -> None:
        """What was not brought back stays as the second removal has left it."""
        host, credly, _ = cancelled
        undo(cancelled)
        one_step(host)
        remove_mapping(host)
        other = credly.add_template("Other Badge")
        accounts.sync_templates(host.state)
        accounts.add_mapping(host.state, COURSE, other)
        jobs.undo()
        host.drain(2)

        assert states(host) == ["cancelled"] * NUMBER

    def test_mapped_to_another_badge_meanwhile(self, cancelled: Connected) -> None:
        host, credly, _ = cancelled
        undo(cancelled)
        runs.leave(host.state.engine, one_step(host))
        other = credly.add_template("Other Badge")
        accounts.sync_templates(host.state)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.change_mapping(host.state, mapping.id, COURSE, other)
        jobs.undo()
        host.drain(2)

        assert states(host) == ["issued"] * NUMBER
        assert {each["badge_template"]["id"] for each in credly.badges} == {other}

    def test_the_mapping_is_given_to_another_course_meanwhile(
        self, cancelled: Connected
    ) -> None:
        host, _, template_id = cancelled
        undo(cancelled)
        taken = one_step(host)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.change_mapping(host.state, mapping.id, COURSES[1], template_id)

        assert retrying.step(host.state.engine, taken) == "over"
        assert len(due(host)) == 3

    def test_the_integration_is_removed_meanwhile(self, cancelled: Connected) -> None:
        host = cancelled.host
        undo(cancelled)
        taken = one_step(host)
        accounts.remove(host.state)

        assert retrying.step(host.state.engine, taken) == "over"
        assert due(host) == []

    @every_database
    def test_a_member_completes_the_course_meanwhile(
        self, cancelled: Connected
    ) -> None:
        host, credly, _ = cancelled
        undo(cancelled)
        host.complete(str(NUMBER - 1))
        host.drain(2)
        jobs.undo()
        host.drain(2)

        assert states(host) == ["issued"] * NUMBER
        assert len(credly.badges) == NUMBER

    def test_what_an_earlier_removal_has_cancelled_stays_so(
        self, cancelled: Connected
    ) -> None:
        host, _, template_id = cancelled
        accounts.add_mapping(host.state, COURSE, template_id)
        host.complete("later")
        remove_mapping(host)
        undo(cancelled)
        jobs.undo()
        host.drain(2)

        assert states(host) == ["cancelled"] * NUMBER + ["issued"]

    def test_an_admin_sees_how_far_it_is_and_stops_it(
        self, cancelled: Connected
    ) -> None:
        host = cancelled.host
        removed = host.db.session.scalars(sa.select(RemovedMapping.id)).one()
        client = host.app.test_client()
        window = PAGE.rpartition("/")[0]
        client.post(f"{window}/mappings", data={"undo": str(removed)})
        page = client.get(window).text
        assert "Its badges are queued again in the background." in page
        assert "Restoring badges of" in page

        assert "Restoring badges of" in client.get(PAGE).text
        taken = one_step(host)
        page = client.get(PAGE).text
        assert f"{COURSE.title}</bdi>: 3 of {NUMBER} done" in page
        client.post(f"{PAGE}/retry/{taken.id}/stop")
        page = client.get(PAGE).text
        assert "Stopped. Badges already queued stay queued." in page
        assert "Restoring badges" not in page
        assert retrying.step(host.state.engine, taken) == "over"
        assert len(due(host)) == 3

        # The others are still among those that can be retried.
        number, run_id = retrying.retry_all(host.state.engine, "default")
        assert run_id is not None
        said = [(action, target) for _, action, target in noted(host, "stop")]
        assert said == [("stop restoring", COURSE.title)]

    def test_what_a_later_completion_has_renewed_stays_as_it_is(
        self, cancelled: Connected
    ) -> None:
        """Or both would be in force: the later one could not replace it any more."""
        host, credly, _ = cancelled
        host.db.session.execute(sa.update(Issuance).values(renewal=True))
        host.db.session.execute(
            sa.update(RemovedMapping).values(options={"again": "renew"})
        )
        host.db.session.commit()
        undo(cancelled)
        host.complete("0", completed_at=LATER)
        host.drain(2)
        jobs.undo()
        host.drain(2)

        first, *others = host.rows()
        assert (first.member_id, first.state) == ("0", "cancelled")
        assert [row.state for row in others] == ["issued"] * NUMBER
        assert len(credly.badges) == NUMBER

    @every_database
    def test_what_a_worker_has_in_hand_meanwhile_is_not_cancelled_any_more(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        host.complete()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.remove_mapping(host.state, mapping.id)
        cancel = settle.cancel_unmapped

        def late(*args: t.Any) -> bool:
            undo(connected)
            return cancel(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(settle, "cancel_unmapped", late)
            host.drain()

        host.drain()
        assert states(host) == ["issued"]

    @every_database
    def test_removed_once_more_at_the_moment_in_which_a_worker_cancels(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is cancelled is so after the removal: the undo looks for that."""
        host, credly, template_id = connected
        host.complete()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        host.db.session.rollback()
        accounts.remove_mapping(host.state, mapping.id)
        cancel, now = settle.cancel_unmapped, clock.now
        others: list[threading.Thread] = []

        def remove(mapping_id: int) -> None:
            with host.app.app_context():
                accounts.remove_mapping(host.state, mapping_id)

        def late(*args: t.Any) -> bool:
            if not others:
                again = accounts.add_mapping(host.state, COURSE, template_id, undo=True)
                others.append(threading.Thread(target=remove, args=[again.id]))

            return cancel(*args)

        def remove_after(connection: sa.Connection) -> dt.datetime:
            at = now(connection)

            if others and not others[0].ident:
                others[0].start()
                others[0].join(0.5)

            return at

        with monkeypatch.context() as patch:
            patch.setattr(settle, "cancel_unmapped", late)
            patch.setattr(settle, "clock", types.SimpleNamespace(now=remove_after))
            host.drain()

        others[0].join()
        host.drain()
        undo(connected)
        host.drain()
        assert states(host) == ["issued"]
