"""What became of the badges, asked of a Credly that is served over HTTP."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import connect_and_map
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import in_threads
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
from flask_credly.ledger import issuances
from flask_credly.ledger import polls
from flask_credly.ledger.transitions import lifecycle
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


def poll_twice_at_once(host: Host) -> None:
    def run() -> None:
        with host.app.app_context():
            polling.poll(host.state)

    in_threads(run, run)


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
        assert wait(host) > polls.UNSORTED - dt.timedelta(minutes=1)
        watermark = account(host).poll_watermark
        credly.accept(badge_id)
        before = credly.count("look-up")
        poll(host)
        assert credly.count("look-up") == before + 1
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

    def test_an_admin_connects_once_more_between_two_pages(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The list is left, and read with the new credentials by the same job."""
        host, credly, _ = connected
        badge_id = issue(connected)
        credly.accept(badge_id)
        crowd(credly, 120)
        advance = polls.advance

        def change(engine: sa.Engine, /, taken: polls.Poll) -> None:
            advance(engine, taken)
            patch.setattr(polls, "advance", advance)
            accounts.connect(
                host.state,
                organization_id=credly.organization_id,
                client_id=credly.client_id,
                client_secret=credly.client_secret,
            )
            polls.at_once(engine, "default")

        with monkeypatch.context() as patch:
            patch.setattr(polls, "advance", change)
            poll(host)

        assert now(host) == ("issued", "accepted")
        assert account(host).poll_page is None

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
        assert "did not end" in caplog.text
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


class TestOrder:
    def test_our_clock_is_ahead_of_credlys(self, connected: Connected) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        row = host.row()
        row.recorded_at += dt.timedelta(hours=3)
        host.db.session.commit()
        credly.accept(badge_id)
        crowd(credly, 60)
        poll(host)
        assert now(host) == ("issued", "accepted")
        # Nor is anything of the next hours taken for known.
        credly.reject(badge_id)
        credly.advance(polls.OVERLAP.total_seconds() + 1)
        crowd(credly, 60)
        poll(host)
        assert now(host) == ("issued", "rejected")

    def test_credlys_clock_is_ahead_of_ours(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.advance(3 * 3600)
        badge_id = issue(connected)

        for act, state in ((credly.accept, "accepted"), (credly.reject, "rejected")):
            act(badge_id)
            crowd(credly, 60)
            poll(host)
            assert now(host) == ("issued", state)

    def test_those_that_do_not_say_when_come_last(self, connected: Connected) -> None:
        host, credly, template_id = connected
        badge_id = issue(connected)

        for stamp in (dt.datetime.now(dt.UTC).isoformat(), None):
            rows = [badge_row(template_id, stamp) for _ in range(50)]
            body = {"data": rows, "metadata": {"total_pages": 2}}
            credly.fail("look-up", status=200, body=body)

        poll(host)
        assert not account(host).poll_unsorted
        assert account(host).polled_at is not None
        credly.accept(badge_id)
        poll(host)
        assert now(host) == ("issued", "accepted")

    def test_none_that_says_when_comes_after_one_that_does_not(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        issue(connected)
        stamp = dt.datetime.now(dt.UTC).isoformat()

        for stamps in ([stamp, None], [stamp, stamp]):
            rows = [badge_row(template_id, each) for each in stamps]
            body = {"data": rows, "metadata": {"total_pages": 3}}
            credly.fail("look-up", status=200, body=body)

        poll(host)
        assert account(host).poll_unsorted

    @pytest.mark.parametrize("times", ["none first", "none at all", "none between"])
    def test_other_orders_are_none(
        self, connected: Connected, times: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, template_id = connected
        issue(connected)
        stamps: list[str | None] = [
            f"2026-01-01T00:{59 - each:02}:00Z" for each in range(50)
        ]

        if times == "none at all":
            stamps = [None] * 50
        else:
            stamps[0 if times == "none first" else 20] = None

        rows = [badge_row(template_id, stamp) for stamp in stamps]
        body = {"data": rows, "metadata": {"total_pages": 3}}
        credly.fail("look-up", status=200, body=body, times=None)
        poll(host)
        assert account(host).poll_unsorted

    def test_nothing_is_asked_once_the_gate_is_closed(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        crowd(credly, 120)
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        advance = polls.advance

        def pause(engine: sa.Engine, /, poll: polls.Poll) -> None:
            advance(engine, poll)
            # A worker that issues is told so.
            gates.pause(engine, "default", gate.generation, "rate limit", 60, "slow")

        with monkeypatch.context() as patch:
            patch.setattr(polls, "advance", pause)
            poll(host)

        assert credly.count("look-up") == 1
        assert account(host).poll_page == 1

    def test_neither_is_one_badge_after_the_other(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected

        for member_id in ("42", "43"):
            issue(connected, member_id)

        for row in host.rows():
            polls.ask_for(host.state.engine, "default", row.id)

        checked = polls.checked

        def pause(engine: sa.Engine, /, *given: t.Any) -> None:
            checked(engine, *given)
            gates.switch(engine, "default", on=False)

        with monkeypatch.context() as patch:
            patch.setattr(polls, "checked", pause)
            jobs.poll()

        assert credly.count("badge") == 1
        waits = sa.select(ToCheck).where(ToCheck.due_at.is_not(None))
        assert len(host.db.session.scalars(waits).all()) == 1


def badge_row(template_id: str, stamp: str | None) -> dict[str, t.Any]:
    """Make a row of Credly's list of which nobody here knows."""
    return {
        "id": str(uuid.uuid4()),
        "state": "accepted",
        "state_updated_at": stamp,
        "badge_template": {"id": template_id},
    }


def survey(host: Host) -> None:
    """Let the time pass until all badges are read, and run the job."""
    host.db.session.rollback()
    past = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    host.db.session.execute(
        sa.update(Account).values(survey_due_at=past, poll_due_at=later)
    )
    host.db.session.commit()
    jobs.poll()


def survey_wait(host: Host) -> dt.timedelta:
    due_at = account(host).survey_due_at
    assert due_at is not None
    return due_at - dt.datetime.now(dt.UTC)


class TestAllBadges:
    def test_are_read_a_day_after_the_first(self, connected: Connected) -> None:
        host, credly, _ = connected
        poll(host)
        assert account(host).survey_due_at is None
        issue(connected)
        poll(host)
        due_at = account(host).survey_due_at
        assert survey_wait(host) > dt.timedelta(hours=23)
        poll(host)
        assert account(host).survey_due_at == due_at
        assert credly.count("search") == 0
        survey(host)
        assert credly.count("search") == 1
        assert account(host).surveyed_at is not None
        assert survey_wait(host) > dt.timedelta(hours=23)

    @every_database
    def test_say_what_has_slipped_through(self, connected: Connected) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        crowd(credly, 120)
        poll(host)
        credly.search_page_size = 50
        credly.accept(badge_id)

        with told(host) as found:
            survey(host)
            survey(host)

        assert (now(host), found) == (
            ("issued", "accepted"),
            [("accepted", host.row().id)],
        )
        assert credly.count("search") == 2 * 3
        assert account(host).survey_next is None

    def test_clear_nothing_that_they_do_not_say(self, connected: Connected) -> None:
        host, credly, _ = connected
        issue(connected)
        row = host.row()
        row.accept_url = "https://www.credly.com/go/abc"
        row.expires_at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
        row.revocation_reason = "A mistake."
        host.db.session.commit()
        before = (row.accept_url, row.expires_at, row.checked_at)
        survey(host)
        row = host.row()
        assert (row.accept_url, row.expires_at) == before[:2]
        assert row.revocation_reason == "A mistake."
        assert row.checked_at is not None and row.checked_at > before[2]
        assert now(host) == ("issued", "pending")

    def test_are_nobodys_who_is_not_known_here(self, connected: Connected) -> None:
        host, credly, template_id = connected
        issue(connected)
        credly.accept(
            credly.award(credly.add_template("Other"), "member-42@example.org")
        )
        survey(host)
        assert now(host) == ("issued", "pending")

    @pytest.mark.parametrize(
        "address", ["https://evil.example.org/v1/x", "http://127.0.0.1:1/a"]
    )
    def test_are_asked_for_at_our_own_address(
        self, connected: Connected, address: str
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        crowd(credly, 20)
        credly.search_page_size = 5
        credly.search_next_address = address
        survey(host)
        assert credly.count("search") == 5
        assert account(host).surveyed_at is not None

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "following",
        [
            "",
            "search_after=x",
            "/v1/x?search_after=x",
            "javascript:x",
            5,
            [],
            "https://[",
        ]
        + ["https://a.example.org/b", "https://a.example.org/?a=" + 5000 * "x"],
    )
    def test_go_on_by_the_list_where_what_is_next_is_no_address(
        self, connected: Connected, following: t.Any
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        crowd(credly, 60)
        body = {"data": [], "metadata": {"next_page_url": following}}
        credly.fail("search", status=200, body=body, times=None)
        survey(host)
        assert now(host) == ("issued", "accepted")
        assert (credly.count("search"), credly.count("look-up")) == (1, 2)

    @pytest.mark.parametrize("status", [403, 404, 410, 500])
    def test_go_on_by_the_list_where_there_is_no_search(
        self, connected: Connected, status: int
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        crowd(credly, 60)
        credly.fail("search", status=status, body={"data": {"message": "No"}})
        survey(host)
        assert now(host) == ("issued", "accepted")
        assert (credly.count("search"), credly.count("look-up")) == (1, 2)
        assert account(host).surveyed_at is not None
        survey(host)
        assert credly.count("search") == 2

    @pytest.mark.parametrize("body", [{}, {"data": []}, {"data": [], "metadata": {}}])
    def test_have_no_end_that_is_not_said(
        self, connected: Connected, body: t.Any
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        credly.fail("search", status=200, body=body)
        survey(host)
        assert now(host) == ("issued", "accepted")
        assert credly.count("look-up") == 1

    def test_whose_next_page_is_the_same(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        crowd(credly, 20)
        credly.search_page_size = 5
        credly.search_repeats_cursor = True
        survey(host)
        assert (credly.count("search"), credly.count("look-up")) == (2, 1)
        assert account(host).surveyed_at is not None

    def test_without_an_end(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        monkeypatch.setattr(polling, "MAX_SEARCH_PAGES", 3)
        credly.accept(issue(connected))
        crowd(credly, 20)
        credly.search_page_size = 2
        survey(host)
        assert (credly.count("search"), credly.count("look-up")) == (3, 1)

    def test_where_neither_can_be_read(
        self, connected: Connected, caplog: pytest.LogCaptureFixture
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        body = {"data": {"message": "No"}}
        credly.fail("search", status=403, body=body)
        credly.fail("look-up", status=403, body=body)
        survey(host)
        assert account(host).surveyed_at is None
        assert dt.timedelta(minutes=50) < survey_wait(host)
        assert account(host).survey_next is None
        assert now(host) == ("issued", "pending")
        survey(host)
        assert now(host) == ("issued", "accepted")

    @every_database
    @pytest.mark.parametrize("hours", [0, 2])
    def test_go_on_after_a_workers_death(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch, hours: int
    ) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        crowd(credly, 20)
        poll(host)
        credly.search_page_size = 5

        class Died(BaseException):
            pass

        advance = polls.advance_survey

        def die(engine: sa.Engine, /, survey: polls.Survey) -> None:
            advance(engine, survey)

            if survey.pages == 2:
                raise Died

        with monkeypatch.context() as patch, pytest.raises(Died):
            patch.setattr(polls, "advance_survey", die)
            survey(host)

        assert account(host).survey_pages == 2
        found = account(host)
        assert found.survey_next_at is not None
        found.survey_next_at -= dt.timedelta(hours=hours)
        host.db.session.commit()
        credly.accept(badge_id)
        before = credly.count("search")
        survey(host)
        # What Credly called next may be unknown to it by now: it is begun anew.
        assert credly.count("search") == before + (5 if hours else 3)
        assert now(host)[1] == ("accepted" if hours else "pending")
        assert account(host).surveyed_at is not None

    def test_whose_next_page_credly_has_forgotten(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        crowd(credly, 20)
        credly.search_page_size = 5
        credly.cursor_seconds = 0
        survey(host)
        assert now(host) == ("issued", "accepted")
        assert account(host).surveyed_at is not None

    def test_give_way(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        issue(connected)
        crowd(credly, 20)
        credly.search_page_size = 5
        monkeypatch.setattr(claim, "any_due", lambda *_: True)
        survey(host)
        assert credly.count("search") == 1
        assert dt.timedelta(0) < survey_wait(host) <= polling.GIVE_WAY
        monkeypatch.setattr(claim, "any_due", lambda *_: False)
        survey(host)
        assert credly.count("search") == 5

    def test_are_read_in_turns(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        monkeypatch.setattr(polling, "PAGES_A_TURN", 2)
        monkeypatch.setattr(polling, "AT_A_TIME", 2)
        badge_id = issue(connected)
        crowd(credly, 20)
        credly.accept(badge_id)
        credly.search_page_size = 5
        survey(host)
        assert credly.count("search") == 5
        assert now(host) == ("issued", "accepted")

    @every_database
    def test_are_read_by_one_worker(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        past = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        host.db.session.rollback()
        host.db.session.execute(
            sa.update(Account).values(survey_due_at=past, poll_due_at=None)
        )
        host.db.session.commit()

        with told(host) as found:
            poll_twice_at_once(host)

        assert found == [("accepted", host.row().id)]
        assert credly.count("search") == 1

    def test_of_another_organization_say_nothing(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        badge_id = issue(connected)
        other = credly.add_organization()
        template_id = other.add_template("Python Badge")
        crowd(credly, 20)
        credly.search_page_size = 5
        advance = polls.advance_survey

        def change(engine: sa.Engine, /, survey: polls.Survey) -> None:
            accounts.remove(host.state)
            connect_and_map(host, other, template_id)
            advance(engine, survey)

        with monkeypatch.context() as patch:
            patch.setattr(polls, "advance_survey", change)
            survey(host)

        credly.accept(badge_id)
        assert credly.count("search") == 1
        assert account(host).survey_next is None
        survey(host)
        assert now(host) == ("issued", "pending")

    def test_are_read_from_the_beginning_after_a_limit(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.accept(issue(connected))
        credly.fail("search", status=429, headers={"Retry-After": "120"})
        survey(host)
        assert account(host).pause_reason == "rate limit"
        assert credly.count("look-up") == 0
        assert now(host) == ("issued", "pending")
        assert account(host).survey_next is None


class TestTrouble:
    def test_an_outage_ends_where_nothing_is_to_be_issued(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        issue(connected)

        for _ in range(2):
            credly.fail("look-up", status=503)
            poll(host)
            host.db.session.execute(
                sa.update(Account).values(
                    paused_until=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
                )
            )
            host.db.session.commit()
            poll(host)
            assert account(host).failures == 0

        # Each of the two is one, and none goes on.
        assert [error for error, _ in host.log()] == ["Credly unreachable"] * 2

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

    with told(host) as found:
        poll_twice_at_once(host)

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


def pass_for_checks(host: Host, time: dt.timedelta) -> None:
    """Let the time pass for what an admin has asked for."""
    host.db.session.rollback()

    for each in host.db.session.scalars(sa.select(ToCheck)):
        each.asked_at -= time

        if each.due_at is not None:
            each.due_at -= time

    host.db.session.commit()


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
        assert polls.asked_for(engine, "default", [number]) == set()

    def test_is_asked_for_once_in_half_a_minute(self, connected: Connected) -> None:
        host, credly, _ = connected
        issue(connected)
        number = host.row().id

        def ask() -> str | None:
            return polls.ask_for(host.state.engine, "default", number)

        assert (ask(), ask()) == ("asked", "asked")
        credly.fail("badge", status=500)
        jobs.poll()
        assert ask() == "just asked"
        jobs.poll()
        assert credly.count("badge") == 1
        pass_for_checks(host, polls.CHECK_EVERY)
        assert ask() == "asked"
        jobs.poll()
        assert credly.count("badge") == 2

    @every_database
    @pytest.mark.parametrize("status", [404, 410])
    def test_one_that_is_gone(self, connected: Connected, status: int) -> None:
        host, credly, _ = connected
        issue(connected)
        polls.ask_for(host.state.engine, "default", host.row().id)
        body = {"data": {"message": "Not found"}}
        credly.fail("badge", status=status, body=body, times=3)
        jobs.poll()
        # Credly's lists lag, and so may this.
        assert issuances.became(host.row()) == "pending"
        assert host.row().missed_at is not None
        assert polls.asked_for(host.state.engine, "default", [host.row().id]) == set()
        jobs.poll()
        assert credly.count("badge") == 1
        # An admin who asks too early is told no more.
        pass_for_checks(host, polls.CHECK_EVERY)
        polls.ask_for(host.state.engine, "default", host.row().id)
        jobs.poll()
        assert host.row().missing_at is None
        row = host.row()
        assert row.missed_at is not None
        row.missed_at -= lifecycle.MISSES_APART
        host.db.session.commit()
        pass_for_checks(host, lifecycle.MISSES_APART)
        jobs.poll()
        assert issuances.became(host.row()) == "missing"
        assert now(host) == ("issued", "pending")
        assert credly.count("badge") == 3
        # It is there after all.
        pass_for_checks(host, polls.CHECK_EVERY)
        polls.ask_for(host.state.engine, "default", host.row().id)
        jobs.poll()
        assert issuances.became(host.row()) == "pending"
        assert host.row().missed_at is None

    @pytest.mark.parametrize("status", [401, 403, 500, 503])
    def test_one_that_cannot_be_read_is_not_gone(
        self, connected: Connected, status: int
    ) -> None:
        host, credly, _ = connected
        issue(connected)
        polls.ask_for(host.state.engine, "default", host.row().id)
        credly.fail("badge", status=status, body={"data": {"message": "No"}})
        jobs.poll()
        assert host.row().missed_at is None

    def test_no_list_says_that_one_is_gone(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.delete_badge(issue(connected))
        poll(host)
        survey(host)
        survey(host)
        assert host.row().missed_at is None

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
