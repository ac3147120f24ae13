"""What became of the badges, asked of a Credly that is served over HTTP."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import threading
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import badge_accepted
from flask_credly import badge_rejected
from flask_credly import badge_revoked
from flask_credly import jobs
from flask_credly.issuing import periodic
from flask_credly.issuing import poll as polling
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import polls
from flask_credly.models import Account
from flask_credly.models import ToCheck
from flask_credly.testing import CredlySimulator


@pytest.fixture
def connected(make_host: MakeHost) -> cabc.Iterator[Connected]:
    simulator = CredlySimulator()

    with simulator.serve() as server:
        host = make_host(
            CREDLY_API_URL=server.api_url, CREDLY_TOKEN_URL=server.token_url
        )

        with host.app.app_context():
            yield connect(host, simulator)

    assert simulator.problems == []


def issue(connected: Connected, member_id: str = "42") -> str:
    """Issue a badge. Get its id."""
    connected.host.complete(member_id)
    connected.host.drain()
    return t.cast(str, connected.credly.badges[-1]["id"])


def account(host: Host) -> Account:
    host.db.session.rollback()
    return host.db.session.scalars(
        sa.select(Account).execution_options(populate_existing=True)
    ).one()


def poll(host: Host) -> None:
    """Let the time pass until a poll is due, and run the job."""
    host.db.session.execute(
        sa.update(Account).values(poll_due_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    )
    host.db.session.commit()
    jobs.poll()


def wait_of(host: Host) -> dt.timedelta:
    found = account(host)
    assert found.poll_due_at is not None and found.polled_at is not None
    return found.poll_due_at - found.polled_at


def now(host: Host) -> tuple[str, str | None]:
    row = host.row()
    return row.state, row.badge_state


@contextlib.contextmanager
def told(host: Host) -> cabc.Iterator[list[tuple[str, int]]]:
    """Gather what the host is told, by the signal and the number of the badge."""
    found: list[tuple[str, int]] = []
    signals = {
        "accepted": badge_accepted,
        "rejected": badge_rejected,
        "revoked": badge_revoked,
    }

    with contextlib.ExitStack() as stack:
        for name, signal in signals.items():

            def hear(sender: object, name: str = name, **given: t.Any) -> None:
                assert {"member_id", "course_id", "kind", "badge_id", "at"} < set(given)
                # It is committed by then, for whoever looks.
                found.append((name, given["issuance_id"]))

            stack.enter_context(signal.connected_to(hear, host.app))

        yield found


def crowd(credly: CredlySimulator, number: int) -> list[str]:
    """Let others accept badges of the organization that this site knows nothing of."""
    template_id = credly.add_template("Another Badge", allow_duplicate_badges=True)
    ids = [
        credly.award(template_id, f"other-{each}@example.org") for each in range(number)
    ]

    for each in ids:
        credly.advance(1)
        credly.accept(each)

    return ids


def test_a_life_is_told(connected: Connected) -> None:
    host, credly, _ = connected
    badge_id = issue(connected)
    (number,) = (row.id for row in host.rows())

    with told(host) as found:
        poll(host)
        assert (now(host), found) == (("issued", "pending"), [])

        for act, state, row in (
            (credly.accept, "accepted", "issued"),
            (credly.reject, "rejected", "issued"),
            (credly.revoke_badge, "revoked", "revoked"),
        ):
            before = credly.count("look-up")
            act(badge_id)
            poll(host)
            assert now(host) == (row, state)
            assert found.pop() == (state, number)
            # Each costs one request.
            assert credly.count("look-up") == before + 1
            poll(host)
            assert found == []

    stamp = credly.badges[0]["state_updated_at"]
    assert host.row().badge_state_at == dt.datetime.fromisoformat(stamp)
    assert host.row().checked_at is not None


def test_what_happens_between_two_looks_is_told_as_what_came_of_it(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    badge_id = issue(connected)
    credly.accept(badge_id)
    credly.reject(badge_id)

    with told(host) as found:
        poll(host)

    assert found == [("rejected", host.row().id)]


def test_how_often(connected: Connected) -> None:
    host, credly, _ = connected
    poll(host)
    # Nothing was issued yet.
    assert account(host).poll_due_at is None and credly.count("look-up") == 0
    badge_id = issue(connected)
    due_at = account(host).poll_due_at
    assert due_at is not None
    assert due_at - dt.datetime.now(dt.UTC) < dt.timedelta(minutes=5)
    poll(host)
    assert wait_of(host) == polls.WHILE_FRESH
    row = host.row()
    assert row.settled_at is not None
    row.settled_at -= polls.FRESH
    host.db.session.commit()
    poll(host)
    assert wait_of(host) == polls.EVERY
    credly.accept(badge_id)
    poll(host)
    assert wait_of(host) == polls.AT_REST


def test_it_is_asked_for_by_the_sweep(connected: Connected) -> None:
    host = connected.host
    issue(connected)
    poll(host)
    assert not periodic.POLL.is_due(host.state)
    polls.at_once(host.state.engine, "default")
    assert periodic.POLL.is_due(host.state)


def test_a_test_badge_tells_nothing(connected: Connected) -> None:
    host, credly, _ = connected
    badge_id = issue(connected)
    row = host.row()
    row.test = True
    host.db.session.commit()
    credly.accept(badge_id)

    with told(host) as found:
        poll(host)

    assert (now(host), found) == (("issued", "accepted"), [])


def test_others_badges_are_nobodys_here(connected: Connected) -> None:
    host, credly, template_id = connected
    issue(connected)
    # Whoever has the member's address, it is not this badge.
    template_id = credly.add_template("Another Badge")
    credly.accept(credly.award(template_id, "member-42@example.org"))
    poll(host)
    assert now(host) == ("issued", "pending")


class TestLongLists:
    def test_it_is_read_until_it_is_known(self, connected: Connected) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        credly.accept(badge_id)
        crowd(credly, 120)
        poll(host)
        assert now(host) == ("issued", "accepted")
        assert credly.count("look-up") == 3
        # What follows is long after that.
        credly.advance(3600)
        crowd(credly, 1)
        move_watermark(host, dt.timedelta(hours=1))
        poll(host)
        assert credly.count("look-up") == 4

    def test_one_that_is_not_in_order_is_read_to_its_end(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        # As if that had long been so.
        monkeypatch.setattr(polls, "OVERLAP", dt.timedelta(0))
        badge_id = issue(connected)
        credly.ignored_sorts = {"state_updated_at"}
        crowd(credly, 120)
        poll(host)
        assert account(host).poll_unsorted
        assert wait_of(host) == polls.UNSORTED
        watermark = account(host).poll_watermark
        credly.accept(badge_id)
        before = credly.count("look-up")
        poll(host)
        assert credly.count("look-up") == before + 3
        assert now(host) == ("issued", "accepted")
        assert account(host).poll_watermark == watermark
        credly.ignored_sorts = set()
        poll(host)
        assert not account(host).poll_unsorted

    def test_where_the_filter_is_not_honoured(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.ignored_filters = {"state"}
        template_id = credly.add_template("Another Badge", allow_duplicate_badges=True)

        for each in range(60):
            credly.award(template_id, f"other-{each}@example.org")

        badge_id = issue(connected)
        credly.accept(badge_id)
        poll(host)
        assert now(host) == ("issued", "accepted")

    def test_it_goes_on_where_it_was_interrupted(self, connected: Connected) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        credly.accept(badge_id)
        crowd(credly, 120)

        def end(number: int) -> None:
            credly.fail("look-up", status=500)

        with pytest.MonkeyPatch.context() as patch:
            advance = polls.advance

            def advance_and_end(engine: sa.Engine, /, poll: polls.Poll) -> None:
                advance(engine, poll)

                if poll.page == 2:
                    end(poll.page)

            patch.setattr(polls, "advance", advance_and_end)
            poll(host)

        assert now(host) == ("issued", "pending")
        assert account(host).poll_page == 2
        before = credly.count("look-up")
        poll(host)
        assert now(host) == ("issued", "accepted")
        assert credly.count("look-up") == before + 1
        assert account(host).poll_page is None

    def test_others_have_their_turn(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        monkeypatch.setattr(polling, "PAGES_A_TURN", 1)
        badge_id = issue(connected)
        credly.accept(badge_id)
        crowd(credly, 120)
        poll(host)
        assert now(host) == ("issued", "accepted")

    def test_badges_that_wait_go_first(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        credly.accept(badge_id)
        crowd(credly, 120)
        monkeypatch.setattr(claim, "any_due", lambda *_: True)
        before = credly.count("look-up")
        poll(host)
        assert credly.count("look-up") == before + 1
        assert account(host).poll_page == 1

    def test_one_without_an_end(
        self, connected: Connected, caplog: pytest.LogCaptureFixture
    ) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        credly.accept(badge_id)
        page = {
            "data": credly.badges,
            "metadata": {"total_pages": 10**9},
        }
        credly.fail("look-up", status=200, body=page, times=None)
        poll(host)
        assert now(host) == ("issued", "accepted")
        assert "has no end" in caplog.text
        assert credly.count("look-up") == 2
        assert wait(host) > dt.timedelta(minutes=50)


def wait(host: Host) -> dt.timedelta:
    due_at = account(host).poll_due_at
    assert due_at is not None
    return due_at - dt.datetime.now(dt.UTC)


def move_watermark(host: Host, by: dt.timedelta) -> None:
    found = account(host)
    assert found.poll_watermark is not None
    found.poll_watermark += by
    host.db.session.commit()


class TestTrouble:
    def test_a_worker_that_dies_before_it_has_told(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))

        class Died(BaseException):
            pass

        def die(*_: object) -> t.NoReturn:
            raise Died

        with told(host) as found:
            with monkeypatch.context() as patch:
                patch.setattr(polls, "note_told", die)

                with pytest.raises(Died):
                    poll(host)

            poll(host)
            poll(host)

        assert found == [("accepted", host.row().id)] * 2

    def test_a_receiver_that_fails_stops_nothing(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))

        def fail(sender: object, **_: object) -> None:
            raise RuntimeError

        with badge_accepted.connected_to(fail, host.app):
            poll(host)

        assert now(host) == ("issued", "accepted")
        assert account(host).polled_at is not None

    def test_a_closed_gate_is_asked_nothing(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        gates.switch(host.state.engine, "default", on=False)
        poll(host)
        assert credly.count("look-up") == 0
        assert not periodic.POLL.is_due(host.state)

    def test_a_limit_closes_the_gate(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        credly.fail("look-up", status=429, headers={"Retry-After": "120"})
        poll(host)
        gate = gates.read(host.state.engine, "default")
        assert gate is not None and not gate.is_open and gate.opens_in is not None
        assert account(host).pause_reason == "rate limit"
        assert now(host) == ("issued", "pending")

    def test_credentials_that_have_expired(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        credly.revoke_client()
        poll(host)
        assert account(host).expired

    @pytest.mark.parametrize("status", [403, 404, 500])
    def test_what_is_refused_is_asked_for_later(
        self, connected: Connected, status: int
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        body = {"data": {"message": "No"}}
        credly.fail("look-up", status=status, body=body)
        poll(host)
        assert now(host) == ("issued", "pending")
        assert wait(host) > dt.timedelta(minutes=14)
        poll(host)
        assert now(host) == ("issued", "accepted")

    def test_the_pace_is_kept(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        object.__setattr__(host.state.settings, "max_per_second", 0.01)
        gates.reserve(host.state.engine, "default", 1, 0.01, at_most=1)
        poll(host)
        assert credly.count("look-up") == 0
        assert now(host) == ("issued", "pending")


def test_another_communitys_trouble(make_host: MakeHost) -> None:
    simulator = CredlySimulator()
    other = simulator.add_organization()

    with simulator.serve() as server:
        host = make_host(
            tenant=lambda: "a",
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
        )

        with host.app.app_context():
            for tenant, each in (("a", simulator), ("b", other)):
                state = host.state.of(tenant)
                template_id = each.add_template("Python Badge")
                accounts.connect(
                    state,
                    organization_id=each.organization_id,
                    client_id=each.client_id,
                    client_secret=each.client_secret,
                )
                course = next(iter(host.state.list_courses()))
                accounts.add_mapping(state, course, template_id)
                host.complete(tenant=tenant)

            host.drain(2)

            for each in (simulator, other):
                each.accept(each.badges[0]["id"])

            simulator.fail("look-up", status=500, times=None)
            poll(host)
            states = {row.tenant: row.badge_state for row in host.rows()}
            assert states == {"a": "pending", "b": "accepted"}


@every_database
def test_two_polls_at_once(connected: Connected) -> None:
    host, credly, _ = connected
    credly.accept(issue(connected))
    crowd(credly, 60)
    polls.at_once(host.state.engine, "default")
    both = threading.Barrier(2)

    def run() -> None:
        with host.app.app_context():
            both.wait()
            polling.poll(host.state)

    with told(host) as found:
        threads = [threading.Thread(target=run) for _ in range(2)]

        for each in threads:
            each.start()

        for each in threads:
            each.join()

    assert found == [("accepted", host.row().id)]
    assert credly.count("look-up") == 2


def test_remove_and_connect_again_between(connected: Connected) -> None:
    host, credly, _ = connected
    credly.accept(issue(connected))
    accounts.remove(host.state)
    poll(host)
    assert (now(host), credly.count("look-up")) == (("issued", "pending"), 0)
    connect(host, credly)
    jobs.poll()
    assert now(host) == ("issued", "accepted")


def test_removed_while_it_is_read(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, credly, _ = connected
    credly.accept(issue(connected))
    crowd(credly, 60)
    advance = polls.advance

    def remove_before(engine: sa.Engine, /, poll: polls.Poll) -> None:
        accounts.remove(host.state)
        connect(host, credly)
        advance(engine, poll)

    monkeypatch.setattr(polls, "advance", remove_before)

    with contextlib.suppress(RecursionError):
        polling.poll_one(host.state)

    # The new connection reads it from the beginning.
    assert account(host).poll_page is None


class TestOneBadge:
    def test_is_read_though_no_poll_is_due(self, connected: Connected) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        poll(host)
        credly.accept(badge_id)
        engine, number = host.state.engine, host.row().id
        assert polls.ask_for(engine, "default", number)
        assert polls.ask_for(engine, "default", number)
        assert polls.asked_for(engine, "default", [number]) == {number}

        with told(host) as found:
            jobs.poll()

        assert (now(host), found) == (("issued", "accepted"), [("accepted", number)])
        assert (credly.count("look-up"), credly.count("badge")) == (1, 1)
        assert host.db.session.scalars(sa.select(ToCheck)).all() == []

    def test_one_that_is_gone(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.delete_badge(issue(connected))
        polls.ask_for(host.state.engine, "default", host.row().id)
        jobs.poll()
        assert now(host) == ("issued", "pending")
        assert host.db.session.scalars(sa.select(ToCheck)).all() == []

    def test_none_to_read(self, connected: Connected) -> None:
        host = connected.host
        engine = host.state.engine
        host.complete()
        number = host.row().id
        assert not polls.ask_for(engine, "default", number)
        assert not polls.ask_for(engine, "other", number)
        assert not polls.ask_for(engine, "default", number + 1)

    def test_is_forgotten_with_the_connection(self, connected: Connected) -> None:
        host = connected.host
        issue(connected)
        polls.ask_for(host.state.engine, "default", host.row().id)
        accounts.remove(host.state)
        assert host.db.session.scalars(sa.select(ToCheck)).all() == []


def test_an_unknown_answer_for_one_badge(connected: Connected) -> None:
    host, credly, _ = connected
    issue(connected)
    other = {"data": {"id": str(uuid.uuid4()), "state": "revoked"}}
    credly.fail("badge", status=200, body=other)
    polls.ask_for(host.state.engine, "default", host.row().id)
    jobs.poll()
    assert now(host) == ("issued", "pending")
