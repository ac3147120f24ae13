"""All that failed is tried again: a few badges in the request, many by a worker."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import jobs
from flask_credly.issuing import stopping
from flask_credly.ledger import retrying
from flask_credly.ledger import runs
from flask_credly.ledger.transaction import in_session
from flask_credly.models import AuditEntry
from flask_credly.models import Batch
from flask_credly.models import Issuance
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


def noted(host: Host) -> list[tuple[str, str, str]]:
    query = sa.select(AuditEntry).order_by(AuditEntry.id)
    entries = host.db.session.scalars(query).all()
    return [(e.actor, e.action, e.target) for e in entries if "retry" in e.action]


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
    assert (
        "Retrying stopped. Badges already queued stay queued." in client.get(PAGE).text
    )
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
