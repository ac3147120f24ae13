"""From the row in the ledger to the badge."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import logging
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from conftest import MakeHost
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm

from flask_credly import accounts
from flask_credly import badge_failed
from flask_credly import badge_issued
from flask_credly import issuance_paused
from flask_credly import Member
from flask_credly.credly import Client
from flask_credly.credly import fetch_token
from flask_credly.issuing import stopping
from flask_credly.issuing import throttle
from flask_credly.issuing.dispatcher import drain
from flask_credly.issuing.token import get_token
from flask_credly.issuing.token import SharedToken
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import overview
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator


def resume(host: Host) -> None:
    """Let the time of a pause pass."""
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    host.db.session.execute(sa.update(Account).values(paused_until=before))
    host.db.session.commit()


def let_leases_end(host: Host) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    host.db.session.execute(
        sa.update(Issuance).where(Issuance.lease.is_not(None)).values(due_at=before)
    )
    host.db.session.commit()


class Clock:
    """The time of a module, with a sleep of ours."""

    def __init__(self, sleep: t.Callable[[float], None]) -> None:
        self.sleep = sleep
        self.monotonic = time.monotonic


def the_gate(host: Host) -> gates.Gate:
    gate = gates.read(host.state.engine, "default")
    assert gate is not None
    return gate


@every_database
def test_a_completion_becomes_a_badge(host: Host, credly: CredlySimulator) -> None:
    completed_at = dt.datetime(2026, 11, 1, 9, 30, tzinfo=dt.UTC)

    with host.app.app_context():
        template_id = connect(host, credly).template_id
        host.complete(completed_at=completed_at)
        host.drain()
        row = host.row()

    (badge,) = credly.badges
    assert badge["badge_template"]["id"] == template_id
    assert badge["recipient_email"] == "member-42@example.org"
    assert badge["issued_to_first_name"] == "Ada"
    assert badge["issued_to_last_name"] == "Example"
    assert badge["issued_at"] == "2026-11-01T09:30:00.000Z"
    assert (row.state, row.badge_id, row.due_at, row.lease) == (
        "issued",
        badge["id"],
        None,
        None,
    )


def test_many_badges_with_one_token(connected: Connected) -> None:
    for number in range(60):
        connected.host.complete(str(number))

    tokens = connected.credly.count("token")
    connected.host.drain()

    assert len(connected.credly.badges) == 60
    assert connected.credly.count("token") == tokens
    assert {row.state for row in connected.host.rows()} == {"issued"}


def test_a_drain_without_a_connection_does_nothing(
    host: Host, credly: CredlySimulator, in_context: None
) -> None:
    host.drain()

    assert credly.received == []


def test_the_member_is_named_the_same_towards_credly_for_life(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    host.complete()
    host.drain()
    accounts.remove(host.state)
    template_id = connect(host, credly).template_id
    accounts.add_mapping(host.state, COURSES[1], template_id)
    host.complete(course_id="sql")
    host.drain()
    one, two = (badge["issuer_earner_id"] for badge in credly.badges)

    assert one == two
    assert "42" != one
    assert len(one) <= 64


def issue_after_a_refusal(
    make_host: MakeHost, credly: CredlySimulator, hook: t.Callable[[str], t.Any]
) -> tuple[str, str]:
    """Let a request be refused once, where the host has this hook for profiles.

    :return: The badge's state and the address that it was sent to.
    """
    host = make_host(member=hook)

    with host.app.app_context():
        connect(host, credly)
        credly.fail("issue", status=422)
        host.complete()
        host.drain()
        row = host.row()
        return row.state, row.email


class TestTheOneRetry:
    @pytest.mark.parametrize("status", [500, 502, 504, 408, 302])
    def test_a_request_that_failed_once_is_repeated_once(
        self, connected: Connected, status: int
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=status)
        host.complete()
        host.drain()

        assert host.row().state == "issued"
        assert (credly.count("issue"), len(credly.badges)) == (2, 1)
        assert host.log() == []

    @pytest.mark.parametrize("status", [500, 400, 403, 404, 422])
    def test_two_failures_are_final_and_logged_once(
        self, connected: Connected, status: int
    ) -> None:
        host, credly, _ = connected
        body = {"data": {"message": "Something is not right."}, "metadata": None}
        credly.fail("issue", times=None, status=status, body=body)
        host.complete()
        host.drain(times=5)

        assert host.row().state == "failed"
        assert credly.count("issue") == 2
        assert host.log() == [
            (
                "Badge issuance failed",
                "Failed to issue badge “Python Badge” to “member-42@example.org”."
                f" Something is not right. (HTTP {status})",
            )
        ]
        assert [attempt.status for attempt in host.attempts()] == [status, status]

    def test_it_waits_for_its_time(self, make_connected: MakeConnected) -> None:
        host, credly, _ = make_connected(CREDLY_RETRY_DELAY=60)
        credly.fail("issue", status=500)
        host.complete()
        host.drain(times=3)
        row = host.row()

        assert (row.state, row.attempts) == ("none", 1)
        assert row.due_at is not None
        assert row.due_at > dt.datetime.now(dt.UTC) + dt.timedelta(seconds=50)

        host.make_due()
        host.drain()

        assert host.row().state == "issued"

    def test_a_lost_answer_is_looked_up_and_not_sent_again(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", how="reset", after=True)
        host.complete()
        host.drain()
        (badge,) = credly.badges

        assert (host.row().state, host.row().badge_id) == ("issued", badge["id"])
        assert credly.count("issue") == 1

    @pytest.mark.parametrize("how", ["hang", "reset", "truncate"])
    def test_no_second_badge_where_credly_would_issue_one(
        self, host: Host, credly: CredlySimulator, in_context: None, how: str
    ) -> None:
        connect(host, credly, allow_duplicate_badges=True)
        credly.fail("issue", how=how, after=True)
        host.complete()
        host.drain()
        # The longer wait: Credly's list may lag.
        assert host.row().state == "none"

        host.make_due()
        host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    def test_it_loads_the_profile_afresh(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        fresh = Member("42", "new@example.org", "Adah", "Example")
        found = issue_after_a_refusal(make_host, credly, lambda member_id: fresh)
        (badge,) = credly.badges
        assert found == ("issued", "new@example.org")
        assert badge["recipient_email"] == "new@example.org"
        assert badge["issued_to_first_name"] == "Adah"

    def test_a_failing_profile_hook_does_not_stop_it(
        self,
        make_host: MakeHost,
        credly: CredlySimulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def member(member_id: str) -> Member:
            raise RuntimeError("directory is down")

        state, _ = issue_after_a_refusal(make_host, credly, member)

        assert state == "issued"
        assert "directory is down" in caplog.text

    def test_a_profile_hook_that_returns_no_member_is_logged(
        self,
        make_host: MakeHost,
        credly: CredlySimulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def member(member_id: str) -> t.Any:
            return {"id": member_id, "email": "new@example.org"}

        state, _ = issue_after_a_refusal(make_host, credly, member)

        assert state == "issued"
        (record,) = [
            vars(each) for each in caplog.records if "credly_hook" in vars(each)
        ]
        assert record["credly_event"] == "hook_failed"
        assert (record["credly_hook"], record["credly_issuance"]) == ("member", 1)
        assert "must return a Member or None, not dict" in caplog.text
        assert "new@example.org" not in caplog.text

    def test_a_failed_look_up_is_no_attempt(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=500)
        credly.fail("look-up", status=502, times=3)
        host.complete()

        for _ in range(4):
            host.drain()
            host.make_due()

        assert host.row().state == "issued"
        assert (credly.count("issue"), host.row().attempts) == (2, 2)

    def test_settle_before_failed(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=500)
        credly.fail("issue", how="reset", after=True)
        host.complete()
        host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), host.log()) == (1, [])

    def test_a_refused_look_up_still_leaves_the_retry(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=500)
        credly.fail("look-up", status=403, times=None)
        host.complete()
        host.drain()

        assert host.row().state == "issued"


class TestDuplicates:
    def test_a_badge_that_the_member_has_is_success(self, connected: Connected) -> None:
        """A badge belongs to one row: the other course's is held."""
        host, credly, template_id = connected
        accounts.add_mapping(host.state, COURSES[1], template_id)
        host.complete()
        host.drain()
        host.complete(course_id="sql")
        host.drain()
        first, second = host.rows()

        assert (first.state, first.badge_id) == ("issued", credly.badges[0]["id"])
        assert (second.state, second.badge_id) == ("held", None)
        assert second.error == "The member already has this badge from another course."
        assert (len(credly.badges), host.log()) == (1, [])

    def test_it_is_held_where_credly_does_not_tell_which(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        body = {"data": {"message": "User already has this badge"}, "metadata": None}
        credly.fail("issue", status=422, body=body)
        host.complete()
        host.drain()

        assert (host.row().state, host.row().badge_id) == ("held", None)
        assert (credly.count("issue"), host.log()) == (1, [])

    def test_completing_twice_asks_once(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        host.drain()
        host.complete()
        host.drain()

        assert credly.count("issue") == 1


class TestPauses:
    @pytest.fixture
    def host(self, make_host: MakeHost) -> Host:
        return make_host(CREDLY_BATCH_SIZE=1)

    def test_a_rate_limit_pauses_everything_and_is_no_attempt(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        body = {"data": {"message": "Too many requests"}, "metadata": None}
        credly.fail("issue", status=429, headers={"Retry-After": "120"}, body=body)

        for number in range(30):
            host.complete(str(number))

        host.drain(times=3)
        issued = len(credly.badges)
        found = overview.read(host.db.session, "default")

        assert found.connection == "paused"
        assert found.pending == 30 - issued
        assert credly.count("issue") == issued + 1
        assert host.log() == [
            (
                "API Rate Limit",
                "Hit Credly API rate limit; badge issuance paused."
                " Too many requests (HTTP 429)",
            )
        ]

        resume(host)
        host.drain()

        assert len(credly.badges) == 30
        assert {row.attempts for row in host.rows()} == {1}
        assert overview.read(host.db.session, "default").connection == "connected"

    def test_several_refusals_at_once_are_one_pause(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", times=4, status=429)

        for number in range(8):
            host.complete(str(number))

        host.drain()

        assert [error for error, _ in host.log()] == ["API Rate Limit"]

    def test_after_a_pause_one_request_probes(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", times=None, status=429)

        for number in range(8):
            host.complete(str(number))

        host.drain()
        asked = credly.count("issue")
        resume(host)
        host.drain()

        assert credly.count("issue") == asked + 1

    @pytest.mark.parametrize(
        ("retry_after", "seconds"),
        [
            ("7", 7),
            ("999999", 3600),
            ("soon", 60),
            (None, 60),
        ],
    )
    def test_it_lasts_as_long_as_credly_says(
        self, connected: Connected, retry_after: str | None, seconds: int
    ) -> None:
        host, credly, _ = connected
        headers = {"Retry-After": retry_after} if retry_after else {}
        credly.fail("issue", status=429, headers=headers)
        host.complete()
        before = dt.datetime.now(dt.UTC)
        host.drain()
        after = dt.datetime.now(dt.UTC)
        until = host.db.session.scalars(sa.select(Account.paused_until)).one()

        assert until is not None
        assert before <= until - dt.timedelta(seconds=seconds) <= after

    @pytest.mark.parametrize(
        "retry_after", ["0", "1", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"]
    )
    def test_a_drain_waits_for_the_end_of_a_short_one(
        self, connected: Connected, retry_after: str
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=429, headers={"Retry-After": retry_after})
        host.complete()
        started = time.monotonic()
        host.drain()

        assert time.monotonic() - started >= 1
        assert host.row().state == "issued"
        assert credly.count("issue") == 2
        assert [error for error, _ in host.log()] == ["API Rate Limit"]

    def test_few_requests_are_in_flight_afterwards(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(CREDLY_CONCURRENCY=8, CREDLY_BATCH_SIZE=1)
        for number in range(30):
            host.complete(str(number))

        credly.fail("issue", status=429, headers={"Retry-After": "600"})
        host.drain()
        resume(host)
        credly.advance(700)
        credly.clear_faults()
        in_flight: list[int] = []
        now: list[None] = []
        real = Client.issue

        def issue(*given: t.Any) -> t.Any:
            now.append(None)
            in_flight.append(len(now))
            time.sleep(0.005)

            try:
                return real(*given)
            finally:
                now.pop()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Client, "issue", issue)
            host.drain()

        assert {row.state for row in host.rows()} == {"issued"}
        assert max(in_flight) <= 2

    @pytest.mark.slow
    @pytest.mark.parametrize("status", [401, 403, 404])
    @pytest.mark.usefixtures("no_short_pauses")
    def test_an_hour_behind_a_firewall_fails_no_badge(
        self, connected: Connected, status: int
    ) -> None:
        host, credly, _ = connected
        for number in range(5):
            host.complete(str(number))

        page = "<html><h1>Blocked</h1></html>"
        credly.fail("*", times=None, status=status, body=page)

        for _ in range(6):
            host.make_due()
            resume(host)
            host.drain()

        assert {row.state for row in host.rows()} == {"none"}
        assert {error for error, _ in host.log()} == {"Credly unreachable"}
        assert "Check for a proxy or firewall." in host.log()[0][1]

        credly.clear_faults()

        for _ in range(3):
            host.make_due()
            resume(host)
            host.drain()

        assert {row.state for row in host.rows()} == {"issued"}
        assert len(credly.badges) == 5

    @pytest.mark.usefixtures("no_short_pauses")
    def test_a_request_that_a_firewall_never_lets_through_stops_no_other(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(CREDLY_CONCURRENCY=1)
        host.complete("1")
        # Both requests of the first.
        credly.fail("issue", times=2, status=403, body="<html>Blocked</html>")

        for _ in range(4):
            host.make_due()
            resume(host)
            host.drain()

        host.complete("2")
        resume(host)
        host.drain()

        assert [row.state for row in host.rows()] == ["failed", "issued"]
        assert "HTTP 403. The response did not come from Credly" in host.log()[-1][1]

    @pytest.mark.usefixtures("no_short_pauses")
    def test_an_unreachable_credly_uses_no_attempt(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        host = make_host()

        with host.app.app_context():
            connect(host, credly)
            import responses

            url = f"https://api.credly.com/v1/organizations/{credly.organization_id}/badges"
            refused = responses.ConnectionError("refused")
            refused.__cause__ = ConnectionRefusedError()

            with responses.RequestsMock() as dead:
                dead.post(url, body=refused)
                host.complete()
                host.drain(times=3)

            assert (host.row().state, host.row().attempts) == ("none", 0)
            assert host.log() == [
                (
                    "Credly unreachable",
                    "Badges stay queued. Issuing resumes automatically."
                    " Credly could not be reached.",
                )
            ]

            resume(host)
            host.drain()

            assert host.row().state == "issued"


class TestTheSwitch:
    @pytest.fixture
    def host(self, make_host: MakeHost) -> Host:
        return make_host(CREDLY_BATCH_SIZE=1)

    def test_nothing_is_issued_and_nothing_is_lost(self, connected: Connected) -> None:
        host, credly, _ = connected
        gates.switch(host.state.engine, "default", on=False)
        host.complete()
        host.drain()

        assert host.row().state == "none"
        assert credly.count("issue") == 0
        assert not claim.any_due(host.state.engine, the_gate(host))

        gates.switch(host.state.engine, "default", on=True)
        host.drain()

        assert host.row().state == "issued"
        assert host.log() == []

    def test_it_is_thrown_while_badges_are_issued(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected

        for number in range(40):
            host.complete(str(number))

        issue, engine = Client.issue, host.state.engine

        def issue_and_switch(*args: t.Any) -> t.Any:
            gates.switch(engine, "default", on=False)
            return issue(*args)

        monkeypatch.setattr(Client, "issue", issue_and_switch)
        host.drain()
        states = collections.Counter(row.state for row in host.rows())

        assert 0 < states["issued"] == len(credly.badges) < 40
        assert states["issued"] + states["none"] == 40

    def test_new_credentials_leave_it_off(self, connected: Connected) -> None:
        host, credly, _ = connected
        gates.switch(host.state.engine, "default", on=False)
        accounts.connect(
            host.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.client_secret,
        )
        host.complete()
        host.drain()

        assert host.row().state == "none"


class TestExpiry:
    def test_a_revoked_token_is_replaced_once_for_all(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        tokens = credly.count("token")
        credly.revoke_tokens()

        for number in range(20):
            host.complete(str(number))

        host.drain()

        assert len(credly.badges) == 20
        assert credly.count("token") == tokens + 1
        assert {row.attempts for row in host.rows()} == {1}
        assert host.log() == []

    @every_database
    def test_of_several_workers_one_fetches_a_token(
        self,
        host: Host,
        credly: CredlySimulator,
        in_context: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        connect(host, credly)
        gate, tokens, fetch = the_gate(host), credly.count("token"), fetch_token
        found: list[SharedToken] = []
        waits = threading.Event()

        def get() -> None:
            with host.app.app_context():
                found.append(get_token(host.state, gate.generation, rejected=1))

        other = threading.Thread(target=get)

        def slowly(*given: t.Any, **more: t.Any) -> t.Any:
            if not other.is_alive():
                other.start()
                assert waits.wait(20), "the other worker does not wait"

            return fetch(*given, **more)

        def sleep(_: float) -> None:
            waits.set()
            threading.Event().wait(0.01)

        monkeypatch.setattr("flask_credly.credly.fetch_token", slowly)
        monkeypatch.setattr("flask_credly.issuing.token.time", Clock(sleep))
        get()
        other.join()

        assert credly.count("token") == tokens + 1
        assert found[0] == found[1]

    def test_a_token_is_renewed_before_it_ends(self, connected: Connected) -> None:
        host, credly, _ = connected
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)
        host.db.session.execute(sa.update(Account).values(token_expires_at=soon))
        host.db.session.commit()
        tokens = credly.count("token")
        host.complete()
        host.drain()

        assert credly.count("token") == tokens + 1

    def test_revoked_credentials_park_everything(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.revoke_client()

        for number in range(5):
            host.complete(str(number))

        host.drain(times=3)

        assert overview.read(host.db.session, "default").connection == "expired"
        assert {(row.state, row.attempts) for row in host.rows()} == {("none", 0)}
        assert host.log() == [
            (
                "Connection expired",
                "Your Credly OAuth credentials have expired or were revoked."
                " Please reconnect.",
            )
        ]

        credly.restore_client()
        accounts.connect(
            host.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.new_secret(),
        )
        host.drain()

        assert len(credly.badges) == 5

    def test_a_fresh_token_that_is_refused_means_expired(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", times=None, status=401)
        host.complete()
        host.drain(times=3)

        assert overview.read(host.db.session, "default").connection == "expired"
        assert (host.row().state, host.row().attempts) == ("none", 0)
        assert credly.count("issue") == 2

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_a_token_endpoint_in_trouble_is_neither(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        host, credly, _ = connected
        monkeypatch.setattr("flask_credly.issuing.dispatcher.SHORT_PAUSE", 1.0)
        credly.revoke_tokens()
        credly.fail("token", status=status)
        host.complete()
        host.drain()

        assert overview.read(host.db.session, "default").connection == "paused"
        assert (host.row().state, host.row().attempts) == ("none", 0)

        resume(host)
        host.drain()

        assert host.row().state == "issued"

    def test_a_lost_key_is_expired_credentials(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.app.config["SECRET_KEY"] = "another"
        asked = len(credly.received)
        host.complete()
        host.drain()

        seen = overview.read(host.db.session, "default", config=host.app.config)
        assert (seen.connection, seen.unreadable) == ("expired", True)
        assert len(credly.received) == asked


class TestLeases:
    def test_two_workers_never_hold_one_row(self, connected: Connected) -> None:
        host = connected.host

        for number in range(10):
            host.complete(str(number))

        take: t.Any = {"limit": 6, "lease_seconds": 60}
        one = claim.claim(host.state.engine, the_gate(host), **take)
        two = claim.claim(host.state.engine, the_gate(host), **take)

        assert (len(one), len(two)) == (6, 4)
        assert not {row.id for row in one} & {row.id for row in two}

    def test_two_workers_that_found_the_same_row_do_not_both_hold_it(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = connected.host
        host.complete()
        take: t.Any = {"limit": 1, "lease_seconds": 60}
        find, first = claim._find, []

        def found_by_both(*given: t.Any) -> list[int]:
            ids = find(*given)
            monkeypatch.setattr(claim, "_find", find)
            first.extend(claim.claim(host.state.engine, the_gate(host), **take))
            return ids

        monkeypatch.setattr(claim, "_find", found_by_both)
        second = claim.claim(host.state.engine, the_gate(host), **take)

        assert (len(first), len(second)) == (1, 0)

    def test_a_dead_workers_rows_come_back(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        claim.claim(host.state.engine, the_gate(host), limit=1, lease_seconds=60)
        host.drain()
        assert host.row().state == "none"

        let_leases_end(host)
        host.drain()

        assert host.row().state == "issued"

    def test_a_worker_that_died_after_the_request_leads_to_a_look_up(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        host.complete()

        def die(*_: object) -> None:
            raise SystemExit

        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr("flask_credly.ledger.settle.settle", die)
            host.drain()

        assert (host.row().state, host.row().attempts) == ("none", 1)

        let_leases_end(host)
        host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    def test_deaths_before_the_request_do_not_use_up_the_retry(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        host.complete()

        for _ in range(3):
            self.die_in(host, monkeypatch, "flask_credly.credly.client.Client.issue")
            let_leases_end(host)

        credly.fail("issue", status=500)
        host.drain(2)

        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (1, 2)
        assert [each.answer for each in host.attempts()] == [
            "died",
            "died",
            "died",
            "unknown",
            "issued",
        ]

    def test_a_row_that_kills_every_worker_ends_as_a_failure(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        host.complete()

        for _ in range(10):
            self.die_in(host, monkeypatch, "flask_credly.credly.client.Client.issue")
            let_leases_end(host)

        host.drain(2)

        assert host.row().state == "failed"
        assert credly.count("issue") == 0
        assert len(host.log()) == 1

    def die_in(self, host: Host, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        def die(*_: object) -> None:
            raise SystemExit

        with monkeypatch.context() as patched:
            patched.setattr(where, die)

            with contextlib.suppress(SystemExit):
                host.drain()

    def test_a_lost_lease_changes_nothing(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        (row,) = claim.claim(
            host.state.engine, the_gate(host), limit=1, lease_seconds=60
        )
        let_leases_end(host)
        claim.claim(host.state.engine, the_gate(host), limit=1, lease_seconds=60)
        gate = the_gate(host)

        begun = claim.begin(host.state.engine, [row], gate, lease_seconds=60)

        assert begun == []
        assert host.attempts() == []


class TestMappingsAndRemoval:
    def test_a_removed_mapping_stops_what_waits(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.remove_mapping(host.state, mapping.id)
        host.drain()

        assert (host.row().state, credly.count("issue")) == ("cancelled", 0)

    def test_undoing_the_removal_issues_it(self, connected: Connected) -> None:
        host, credly, template_id = connected
        host.complete()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.remove_mapping(host.state, mapping.id)
        host.drain()
        accounts.add_mapping(host.state, COURSES[0], template_id, undo=True)
        host.drain()

        assert host.row().state == "issued"

    def test_what_waits_becomes_the_changed_mappings_badge(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        other = credly.add_template("Other Badge")
        accounts.sync_templates(host.state)
        host.complete()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
        host.drain()
        (badge,) = credly.badges

        assert badge["badge_template"]["id"] == other

    @every_database
    def test_what_a_worker_has_not_begun_becomes_it_too(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        other = credly.add_template("Other Badge")
        accounts.sync_templates(host.state)
        host.complete()
        held = claim.claim(host.state.engine, the_gate(host), limit=1, lease_seconds=60)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.change_mapping(host.state, mapping.id, COURSES[0], other)

        assert not claim.begin(
            host.state.engine, held, the_gate(host), lease_seconds=60
        )

        claim.release(host.state.engine, held)
        host.drain()
        (badge,) = credly.badges

        assert badge["badge_template"]["id"] == other

    def test_re_mapping_gives_no_second_badge(self, connected: Connected) -> None:
        host, credly, _ = connected
        other = credly.add_template("Other Badge")
        accounts.sync_templates(host.state)
        host.complete()
        host.drain()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
        host.complete()
        host.drain()

        assert len(credly.badges) == 1

    def test_removing_the_integration_drops_what_waits(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        host.complete("1")
        host.drain()
        host.complete("2")
        accounts.remove(host.state)
        host.drain()
        row = host.row()

        assert (row.member_id, row.state, row.email, row.last_name) == (
            "1",
            "issued",
            "",
            "",
        )
        assert credly.count("issue") == 1

    def test_a_reconnect_does_not_issue_again(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        host.drain()
        accounts.remove(host.state)
        connect(host, credly)
        host.complete()
        host.drain()

        assert len(credly.badges) == 1


class TestProfiles:
    @pytest.mark.parametrize(
        ("member", "said"),
        [
            (Member("42", "", "Ada", "Example"), "no e-mail address."),
            (Member("42", "a@example.org", " ", "Example"), "no first name."),
            (Member("42", "a@example.org", "Ada", ""), "no last name."),
            (
                Member("42", None, None, None),  # type: ignore[arg-type]
                "no e-mail address and no first name and no last name.",
            ),
        ],
    )
    def test_what_is_missing_is_said_in_the_error_log(
        self, connected: Connected, member: Member, said: str
    ) -> None:
        host, credly, _ = connected
        host.complete(member=member)
        host.drain()
        ((error, details),) = host.log()

        assert (host.row().state, credly.count("issue")) == ("failed", 0)
        assert error == "Badge issuance failed"
        assert details.endswith(f"The member's profile has {said}")

    def test_the_hook_may_know_what_is_missing(
        self, make_connected: MakeConnected
    ) -> None:
        host, _, _ = make_connected(member=a_member)
        host.complete(member=Member("42", "", "", ""))
        host.drain()

        assert host.row().state == "issued"

    def test_markup_and_control_characters_are_only_text(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        host.complete(
            member=Member("42", "a@example.org", "<b>A\r\nda\x07</b>", "x" * 400)
        )
        host.drain()
        (badge,) = credly.badges

        assert badge["issued_to_first_name"] == "<b>A da</b>"
        assert badge["issued_to_last_name"] == "x" * 255


def test_signals_tell_the_host(connected: Connected) -> None:
    host, credly, template_id = connected
    heard: list[tuple[str, dict[str, t.Any]]] = []

    def note(name: str) -> t.Callable[..., None]:
        return lambda sender, **given: heard.append((name, given))

    issued, failed, paused = note("issued"), note("failed"), note("paused")
    badge_issued.connect(issued, host.app)
    badge_failed.connect(failed, host.app)
    issuance_paused.connect(paused, host.app)
    host.complete("1")
    host.drain()
    credly.fail("issue", times=2, status=422)
    host.complete("2")
    host.drain()
    credly.fail("issue", status=429)
    host.complete("3")
    host.drain()

    assert [name for name, _ in heard] == ["issued", "failed", "paused"]
    assert heard[0][1]["badge_id"] == credly.badges[0]["id"]
    assert heard[1][1]["member_id"] == "2"
    assert heard[2][1]["reason"] == "rate limit"


def test_a_failing_receiver_does_not_stop_the_drain(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    def receiver(sender: object, **given: object) -> None:
        raise RuntimeError("the host's mistake")

    badge_issued.connect(receiver, connected.host.app)
    connected.host.complete("1")
    connected.host.complete("2")
    connected.host.drain()

    assert {row.state for row in connected.host.rows()} == {"issued"}
    assert "the host's mistake" in caplog.text


def notices(app: Flask, db: SQLAlchemy) -> None:
    """A table of the host, with one notice for each member."""
    columns = (sa.Column("member_id", sa.String(9), primary_key=True),)
    sa.Table("notice", db.metadata, *columns)


@every_database
def test_what_one_receiver_fails_to_write_is_not_in_the_way_of_the_next(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    host = make_host(setup=notices)
    notice = host.db.metadata.tables["notice"]

    def note(app: Flask, member_id: str, **given: object) -> None:
        host.db.session.execute(sa.insert(notice).values(member_id=member_id))
        host.db.session.commit()

    with host.app.app_context(), badge_issued.connected_to(note, host.app):
        connect(host, credly)
        host.db.session.execute(sa.insert(notice).values(member_id="0"))
        host.db.session.commit()

        for number in range(5):
            host.complete(str(number))

        host.drain()
        found = host.db.session.scalars(sa.select(notice.c.member_id)).all()

    assert sorted(found) == ["0", "1", "2", "3", "4"]


def test_no_request_goes_out_in_a_transaction_that_a_receiver_has_opened(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(CREDLY_CONCURRENCY=1, CREDLY_BATCH_SIZE=1)
    sessions: list[orm.Session] = []
    seen: list[bool] = []
    issue = Client.issue

    def read(app: Flask, **given: object) -> None:
        host.db.session.execute(sa.text("SELECT 1"))
        sessions.append(host.db.session())

    def look(*given: t.Any) -> t.Any:
        seen.append(any(session.in_transaction() for session in sessions))
        return issue(*given)

    monkeypatch.setattr(Client, "issue", look)

    with host.app.app_context(), badge_issued.connected_to(read, host.app):
        connect(host, credly)

        for number in range(6):
            host.complete(str(number))

        host.drain()

    assert len(sessions) == 6
    assert seen == [False] * 6


def test_the_host_is_told_though_the_gate_could_not_be_closed(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> t.NoReturn:
        raise sa.exc.OperationalError("UPDATE", {}, Exception("away"))

    heard: list[str] = []
    host = make_host(CREDLY_CONCURRENCY=1)

    def note(app: Flask, member_id: str, **given: object) -> None:
        heard.append(member_id)

    monkeypatch.setattr("flask_credly.ledger.gates.resume", fail)

    with host.app.app_context(), badge_issued.connected_to(note, host.app):
        connect(host, credly)
        host.complete("1")
        gates.pause(
            host.state.engine,
            "default",
            the_gate(host).generation,
            "unavailable",
            0,
            "",
        )

        with pytest.raises(sa.exc.OperationalError):
            host.drain()

        assert host.row().state == "issued"

    assert heard == ["1"]


def test_a_failed_look_into_the_ledger_names_no_member(connected: Connected) -> None:
    host = connected.host
    host.complete("grace-hopper")
    (row,) = claim.claim(host.state.engine, the_gate(host), limit=1, lease_seconds=60)

    # As where the database goes away.
    @sa.event.listens_for(host.state.engine, "before_cursor_execute")
    def fail(connected: object, cursor: t.Any, *_: object) -> None:
        cursor.close()

    with pytest.raises(sa.exc.StatementError) as caught:
        claim.badges_of_others(host.state.engine, row, [row.member_id])

    sa.event.remove(host.state.engine, "before_cursor_execute", fail)
    assert "grace-hopper" not in str(caught.value)


def test_the_log_names_no_address(
    connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    host, credly, _ = connected
    caplog.set_level(logging.DEBUG)
    credly.fail("issue", times=2, status=422)
    host.complete()
    host.drain()

    assert host.row().state == "failed"
    assert "example.org" not in caplog.text
    assert credly.client_secret not in caplog.text


# Pace


@every_database
def test_all_workers_share_one_pace(
    host: Host, credly: CredlySimulator, in_context: None
) -> None:
    connect(host, credly)
    engine = host.state.engine
    first = gates.reserve(engine, "default", 10, 0.1, at_most=1000)
    second = gates.reserve(engine, "default", 5, 0.1, at_most=1000)
    third = gates.reserve(engine, "default", 1, 0.1, at_most=1000)

    assert first == 0
    assert second == pytest.approx(100, abs=20)
    assert third is not None and second is not None
    assert third - second == pytest.approx(50, abs=20)
    assert gates.reserve(engine, "default", 1, 0.1, at_most=100) is None


def be_careful(host: Host) -> None:
    """Let Credly have asked for a pause, which is over."""
    host.db.session.execute(
        sa.update(Account).values(limited_at=dt.datetime.now(dt.UTC))
    )
    host.db.session.commit()


@every_database
def test_after_a_rate_limit_one_worker_alone_sends(
    host: Host, credly: CredlySimulator, in_context: None
) -> None:
    sent_by_another: list[int] = []

    def another_worker(*_: object, **__: object) -> None:
        if not sent_by_another:
            host.complete("late")
            before = len(credly.badges)
            drain(host.state)
            sent_by_another.append(len(credly.badges) - before)

    connect(host, credly)
    be_careful(host)
    host.complete()

    with badge_issued.connected_to(another_worker):
        host.drain()

    assert sent_by_another == [0]
    assert {row.state for row in host.rows()} == {"issued"}

    # The next one has the right at once.
    host.complete("next")
    host.drain()
    assert len(credly.badges) == 3


@every_database
def test_another_worker_sends_when_the_one_that_did_has_died(
    host: Host, credly: CredlySimulator, in_context: None
) -> None:
    connect(host, credly)
    be_careful(host)
    gate = the_gate(host)
    first = gates.hold_pace(host.state.engine, gate, None)
    assert first is not None
    held = gates.hold_pace(host.state.engine, gate, first)
    assert held is not None
    assert gates.hold_pace(host.state.engine, gate, first) is None
    assert gates.hold_pace(host.state.engine, gate, None) is None
    host.complete()
    host.drain()
    assert credly.badges == []

    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    host.db.session.execute(sa.update(Account).values(pace_held_until=before))
    host.db.session.commit()
    host.drain()
    assert len(credly.badges) == 1


def test_the_one_that_has_lost_the_right_to_send_gives_its_rows_back(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "HOLD_EVERY", 0)
    host = make_host(CREDLY_MAX_PER_SECOND=2, CREDLY_BATCH_SIZE=1)

    def let_another_send(*_: object, **__: object) -> None:
        until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=3)
        host.db.session.execute(sa.update(Account).values(pace_held_until=until))
        host.db.session.commit()

    with host.app.app_context(), badge_issued.connected_to(let_another_send):
        connect(host, credly)
        be_careful(host)

        for number in range(3):
            host.complete(str(number))

        host.drain()
        assert len(credly.badges) == 1
        assert {row.lease for row in host.rows()} == {None}


def test_a_pace_is_not_exceeded(make_host: MakeHost, credly: CredlySimulator) -> None:
    sent: list[float] = []
    host = make_host(
        CREDLY_MAX_PER_SECOND=20, CREDLY_CONCURRENCY=8, CREDLY_BATCH_SIZE=1
    )

    def note(*_: object, **__: object) -> None:
        sent.append(time.monotonic())

    with host.app.app_context(), badge_issued.connected_to(note):
        connect(host, credly)

        for number in range(9):
            host.complete(str(number))

        started = time.monotonic()
        host.drain()

    assert len(credly.badges) == 9
    # The ninth may go out after eight twentieths of a second.
    assert max(sent) - started >= 0.4


def test_a_worker_told_to_stop_does_not_wait_for_its_turn(
    make_connected: MakeConnected,
) -> None:
    host, credly, _ = make_connected(CREDLY_MAX_PER_SECOND=2, CREDLY_BATCH_SIZE=1)
    for number in range(30):
        host.complete(str(number))

    timer = threading.Timer(0.5, stopping.set)
    timer.start()

    try:
        host.drain()
    finally:
        timer.join()
        stopping.clear()

    states = collections.Counter(row.state for row in host.rows())
    assert states["issued"] == len(credly.badges) < 10
    assert states["issued"] + states["none"] == 30
    assert {row.attempts for row in host.rows() if row.state == "none"} == {0}


def test_a_drain_is_bounded_also_where_pauses_are_short(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, credly, _ = connected
    monkeypatch.setattr("flask_credly.issuing.dispatcher.BUDGET", 0.5)
    headers = {"Retry-After": "1"}
    credly.fail("issue", times=50, status=429, headers=headers)
    host.complete()

    assert drain(host.state)
    assert host.row().state == "none"
    assert credly.count("issue") < 5


@pytest.mark.slow
def test_a_worker_whose_turn_is_far_off_gives_its_rows_back(
    make_connected: MakeConnected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_credly.issuing.dispatcher.BUDGET", 2.0)
    host, credly, _ = make_connected(CREDLY_MAX_PER_SECOND=0.01)
    gates.reserve(host.state.engine, "default", 1, 0.01, at_most=0)
    host.complete()
    host.drain()

    assert host.row().state == "none"
    assert host.row().attempts == 0
    assert credly.badges == []


@pytest.mark.parametrize(("waiting", "calls"), [(3, 0), (300, 1)])
def test_a_worker_that_finds_much_calls_another(
    connected: Connected, monkeypatch: pytest.MonkeyPatch, waiting: int, calls: int
) -> None:
    for number in range(waiting):
        connected.host.complete(str(number))

    if (ringer := connected.host.state.web_queue.ringer) is not None:
        ringer.cancel()

    rung: list[None] = []
    monkeypatch.setattr(
        "flask_credly.issuing.notifier.notify", lambda *_: rung.append(None)
    )
    connected.host.drain()

    assert len(rung) == calls
    assert {row.state for row in connected.host.rows()} == {"issued"}
