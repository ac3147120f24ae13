"""Clocks, stops, lags and outages: what an admin or a member stops is not sent, what
may have been sent is looked up before it is sent again, and not too early.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import socket
import threading
import time
import typing as t

import hypothesis
import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import connect_and_map
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from hypothesis import strategies as st

from flask_credly import accounts
from flask_credly import jobs
from flask_credly.credly import Client
from flask_credly.credly import Deadline
from flask_credly.credly import leaving_before
from flask_credly.credly import transport
from flask_credly.errors import TooLate
from flask_credly.issuing import dispatcher
from flask_credly.issuing import stopping
from flask_credly.issuing import throttle
from flask_credly.issuing import verdict
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import clock
from flask_credly.ledger import gates
from flask_credly.ledger import issuances
from flask_credly.ledger import removing
from flask_credly.ledger import retrying
from flask_credly.ledger import settle
from flask_credly.models import Account
from flask_credly.models import Base
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator

pytestmark = pytest.mark.slow

HOUR = 3600.0


class Died(BaseException):
    """A worker's end, which no code of ours may catch."""


@pytest.fixture
def served(make_host: MakeHost) -> cabc.Iterator[cabc.Callable[..., Connected]]:
    """Make hosts that talk to a simulator over the network."""
    credly = CredlySimulator()

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(credly.serve())

        def make(*, allow_duplicate_badges: bool = False, **config: t.Any) -> Connected:
            host = make_host(
                member=a_member,
                **{
                    "CREDLY_API_URL": server.api_url,
                    "CREDLY_TOKEN_URL": server.token_url,
                    "CREDLY_BATCH_SIZE": 1,
                    **config,
                },
            )
            stack.enter_context(host.app.app_context())
            return connect(host, credly, allow_duplicate_badges=allow_duplicate_badges)

        yield make

    assert credly.problems == []


class Elsewhere:
    """A drain in another thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._host.app.app_context():
            self._host.drain()

    def __enter__(self) -> t.Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def wait_until(seen: cabc.Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 30

    while not seen():
        assert time.monotonic() < until, what
        time.sleep(0.01)


def posted(credly: CredlySimulator) -> list[float]:
    return [each.at for each in credly.received if each.kind == "issue"]


# What is stopped.


def erase(host: Host) -> None:
    for number in range(20):
        host.credly.erase_member(str(number))


def remove(host: Host) -> None:
    accounts.remove(host.state)


def remove_much(host: Host) -> None:
    """With so many badges that a worker has to end them, and none that does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removing, "PORTION", 0)
        accounts.remove(host.state)


def pause(host: Host) -> None:
    gates.switch(host.state.engine, "default", on=False)


def unmap(host: Host) -> None:
    for mapping in accounts.list_mappings(host.db.session, "default"):
        accounts.remove_mapping(host.state, mapping.id)


stops = pytest.mark.parametrize("stop", [erase, remove, remove_much, pause, unmap])


@every_database
@stops
def test_what_waits_for_its_turn_can_be_stopped(
    served: cabc.Callable[..., Connected], stop: cabc.Callable[[Host], None]
) -> None:
    host, credly, _ = served(CREDLY_MAX_PER_SECOND=0.5)

    for number in range(3):
        host.complete(str(number))

    with Elsewhere(host):
        wait_until(lambda: credly.count("issue") == 1, "nothing was sent")
        stop(host)

    assert credly.count("issue") == 1


@stops
@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_waits_for_a_thread_can_be_stopped(
    served: cabc.Callable[..., Connected],
    monkeypatch: pytest.MonkeyPatch,
    stop: cabc.Callable[[Host], None],
    concurrency: int,
) -> None:
    host, credly, _ = served(CREDLY_CONCURRENCY=concurrency)
    begun: list[float] = []
    sent: list[float] = []
    real = Client.issue

    def issue(*given: t.Any) -> t.Any:
        begun.append(at := time.monotonic())

        try:
            answer = real(*given)
            # One that came too late was not sent.
            sent.append(at)
            return answer
        finally:
            # Slow only later on, so that the pace is misjudged.
            time.sleep(0.02 if len(begun) < 8 else 0.7)

    monkeypatch.setattr(Client, "issue", issue)

    for number in range(20):
        host.complete(str(number))

    with Elsewhere(host):
        wait_until(lambda: len(begun) > 9, "nothing was sent")
        stop(host)
        stopped = time.monotonic()

    # A tenth for a busy machine.
    assert max(sent) < stopped + throttle.LOOKAHEAD + 0.1


def test_what_is_stopped_while_the_connection_is_made_is_not_sent(
    served: cabc.Callable[..., Connected], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, credly, _ = served()
    host.complete("1")
    resolving, erased = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def resolve(*given: t.Any) -> t.Any:
        resolving.set()
        assert erased.wait(30)
        time.sleep(throttle.LOOKAHEAD + 0.1)
        return real(*given)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    with Elsewhere(host):
        assert resolving.wait(30)
        host.credly.erase_member("1")
        erased.set()

    assert credly.count("issue") == 0


# A request leaves in time or not at all.


def test_a_slow_connection_sends_nothing_late_and_everything_in_the_end(
    served: cabc.Callable[..., Connected], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, credly, _ = served(CREDLY_CONCURRENCY=2)
    real = socket.getaddrinfo

    def resolve(*given: t.Any) -> t.Any:
        time.sleep(throttle.LOOKAHEAD + 0.1)
        return real(*given)

    # As where the connection that was opened ahead was closed again.
    monkeypatch.setattr(Client, "connect", lambda *_: None)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    for number in range(5):
        host.complete(str(number))

    host.drain()

    assert {row.state for row in host.rows()} == {"issued"}
    assert credly.count("issue") == len(host.attempts()) == 5


def test_a_resolver_that_hangs_is_an_outage_and_no_attempt(
    served: cabc.Callable[..., Connected], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, credly, _ = served()
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(dispatcher, "SHORT_PAUSE", 0.0)
    hangs = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: hangs.wait(30))
    host.complete()
    began = time.monotonic()
    host.drain()
    hangs.set()

    assert time.monotonic() - began < 5
    assert (host.row().state, host.row().attempts) == ("none", 0)
    assert host.attempts() == []
    assert [error for error, _ in host.log()] == ["Credly unreachable"]


def a_request(host: Host, credly: CredlySimulator, template_id: str) -> t.Any:
    from flask_credly.credly import BadgeRequest
    from flask_credly.credly import fetch_token

    url = host.state.settings.token_url
    token = fetch_token(url, credly.client_id, credly.client_secret, timeout=5)
    now = dt.datetime.now(dt.UTC)
    badge = BadgeRequest(template_id, "earner", "a@example.org", "A", "B", now)
    return token.value, badge


@pytest.mark.parametrize("reused", [False, True])
def test_a_connection_that_came_too_late_is_used_for_the_next_request(
    served: cabc.Callable[..., Connected],
    monkeypatch: pytest.MonkeyPatch,
    reused: bool,
) -> None:
    host, credly, template_id = served()
    request = a_request(host, credly, template_id)
    connected: list[object] = []
    real = transport._HTTPConnection._connect_to

    def note(*given: t.Any) -> t.Any:
        connected.append(None)
        return real(*given)

    monkeypatch.setattr(transport._HTTPConnection, "_connect_to", note)

    with Client(
        host.state.settings.api_url, credly.organization_id, timeout=5
    ) as client:
        if reused:
            client.templates(request[0], 1)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(TooLate):
            checks = iter([None])

            # The time is over only once the connection is there.
            def check() -> None:
                if next(checks, True):
                    raise TooLate

            patch.setattr(transport, "_check_deadline", check)
            client.issue(*request)

        assert credly.count("issue") == 0
        client.issue(*request)

    assert (credly.count("issue"), len(connected)) == (1, 1)


def test_a_connection_that_credly_has_closed_meanwhile_is_opened_again(
    served: cabc.Callable[..., Connected],
) -> None:
    host, credly, template_id = served()
    request = a_request(host, credly, template_id)

    with Client(
        host.state.settings.api_url, credly.organization_id, timeout=5
    ) as client:
        client.connect(1, map)
        (session,) = client._sessions
        adapter = t.cast(t.Any, session.get_adapter(client._url))
        adapter.spare.sock.shutdown(socket.SHUT_RDWR)
        client.issue(*request)

    assert credly.count("issue") == 1


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not on this system"
)
def test_the_kernel_does_not_go_on_to_send_what_nobody_waits_for(
    served: cabc.Callable[..., Connected],
) -> None:
    host, credly, _ = served()

    with Client(
        host.state.settings.api_url, credly.organization_id, timeout=5
    ) as client:
        client.connect(1, map)
        (session,) = client._sessions
        opened = t.cast(t.Any, session.get_adapter(client._url)).spare.sock
        option = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert option == 5000


def test_connecting_ahead_reaches_no_network_where_a_test_answers(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked"))
    asked = len(connected.credly.received)
    connected.host.complete()
    connected.host.drain()

    assert connected.host.row().state == "issued"
    assert len(connected.credly.received) == asked + 1


@pytest.mark.parametrize(
    "stands_still", ["monotonic", "wall", "both but the one that goes on in sleep"]
)
def test_a_deadline_believes_the_clock_that_went_furthest(
    monkeypatch: pytest.MonkeyPatch, stands_still: str
) -> None:
    times = {"monotonic": 0.0, "wall": 1e9, "in sleep": 50.0}
    clocks = tuple((lambda name=name: times[name]) for name in times)
    monkeypatch.setattr(transport, "_CLOCKS", clocks)
    deadline = Deadline(5)
    assert not deadline.has_passed

    for name in times:
        if name != stands_still and not (name != "in sleep" and "both" in stands_still):
            times[name] += 10

    assert deadline.has_passed
    assert Deadline(100).or_in(-1).has_passed


# The badge of the mapping as it is when it is sent.


def another_template(connected: Connected, name: str = "Other Badge") -> str:
    other = connected.credly.add_template(name)
    accounts.sync_templates(connected.host.state)
    return other


def map_to(host: Host, template_id: str) -> None:
    unmap(host)
    accounts.add_mapping(host.state, COURSES[0], template_id)


@pytest.fixture
def on_database(
    host: Host, credly: CredlySimulator, in_context: None
) -> cabc.Iterator[Connected]:
    yield connect(host, credly)


class TestTheMappingOfNow:
    @every_database
    def test_what_waits_becomes_what_the_course_is_mapped_to(
        self, on_database: Connected
    ) -> None:
        host, credly, _ = on_database
        host.complete()
        map_to(host, other := another_template(on_database))
        host.drain()
        (badge,) = credly.badges

        assert badge["badge_template"]["id"] == other
        assert (host.row().template_id, host.row().badge_name) == (other, "Other Badge")

    @every_database
    def test_a_worker_that_has_claimed_it_does_not_send_the_old_one(
        self, on_database: Connected
    ) -> None:
        host, credly, _ = on_database
        host.complete()
        engine = host.state.engine
        gate = gates.read(engine, "default")
        assert gate is not None
        rows = claim.claim(engine, gate, limit=1, lease_seconds=60)
        map_to(host, other := another_template(on_database))

        assert not claim.begin(engine, rows, gate, lease_seconds=60)

        claim.release(engine, rows)
        host.drain()
        assert [each["badge_template"]["id"] for each in credly.badges] == [other]

    def test_it_is_sent_once_where_the_mapping_changes_before_each_intent(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, template_id = connected
        templates = [another_template(connected, f"Badge {n}") for n in range(3)]
        real, left = claim.begin, list(templates)

        def begin(*given: t.Any, **named: t.Any) -> t.Any:
            if left:
                map_to(host, left.pop(0))

            return real(*given, **named)

        monkeypatch.setattr(claim, "begin", begin)
        host.complete()
        host.drain()

        (badge,) = credly.badges
        assert badge["badge_template"]["id"] == templates[-1]
        assert host.row().attempts == 1

    @pytest.mark.parametrize("booked", [False, True])
    def test_what_was_perhaps_issued_is_looked_up_as_what_it_was(
        self, connected: Connected, booked: bool
    ) -> None:
        host, credly, template_id = connected
        credly.fail("issue", how="reset", after=booked)
        host.app.config["CREDLY_RETRY_DELAY"] = 0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verdict.Judge, "_wait", lambda *_: 60)
            host.complete()
            host.drain()

        map_to(host, other := another_template(connected))
        host.let_lists_catch_up()
        host.drain()

        (badge,) = credly.badges
        assert host.row().state == "issued"
        assert badge["badge_template"]["id"] == (template_id if booked else other)
        assert host.row().template_id == badge["badge_template"]["id"]

    def test_a_look_up_that_is_refused_ends_where_the_mapping_is_another(
        self, connected: Connected
    ) -> None:
        """Neither is known: whether the old one is there, and whether the new one
        would be a second.
        """
        host, credly, _ = connected
        credly.fail("issue", how="reset", after=True)
        credly.fail("look-up", times=None, status=403)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(verdict.Judge, "_wait", lambda *_: 60)
            host.complete()
            host.drain()

        map_to(host, another_template(connected))
        host.let_lists_catch_up()
        host.drain()

        assert (host.row().state, len(credly.badges)) == ("failed", 1)
        assert "Check in Credly" in (host.row().error or "")

    @every_database
    def test_none_is_sent_where_it_is_not_mapped_any_more(
        self, on_database: Connected
    ) -> None:
        host, credly, _ = on_database
        host.complete()
        unmap(host)
        host.drain()

        assert (host.row().state, credly.badges) == ("cancelled", [])


class TestMappedAgain:
    """Cancelled because the course was not mapped when its turn came."""

    @pytest.fixture
    def again(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> cabc.Iterator[Connected]:
        past = [(a_member("42"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))]
        host = make_host(past_completions=lambda *_: past)

        with host.app.app_context():
            template_id = connect(host, credly).template_id
            host.complete()
            unmap(host)
            host.drain()
            long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
            host.db.session.execute(sa.update(Issuance).values(settled_at=long_ago))
            host.db.session.commit()
            accounts.add_mapping(host.state, COURSES[0], template_id)
            assert host.row().state == "cancelled"
            yield Connected(host, credly, template_id)
            host.drain()

            assert (host.row().state, len(credly.badges)) == ("issued", 1)

    @every_database
    def test_a_retry_of_all_takes_it_up(self, again: Connected) -> None:
        assert issuances.retriable(again.host.db.session, "default") == 1
        again.host.db.session.remove()
        assert retrying.retry_all(again.host.state.engine, "default").number == 1

    @every_database
    def test_a_backfill_takes_it_up(self, again: Connected) -> None:
        from flask_credly.issuing import backfill

        host = again.host
        found = backfill.preview(host.state, COURSES[0])
        assert (found.to_issue, found.there, found.failed) == (1, 0, 0)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        backfills.start(host.state.engine, "default", mapping.id)
        jobs.backfill()

    @every_database
    @pytest.mark.parametrize("writes", [False, True])
    def test_the_next_completion_takes_it_up(
        self, again: Connected, writes: bool
    ) -> None:
        host = again.host

        if writes:
            host.db.session.execute(sa.update(Account).values(client_id="other"))

        member = a_member("42")
        fresh = type(member)("42", "new@example.org", "Grace", "Example")
        host.complete(member=fresh)
        host.db.session.commit()
        row = host.row()

        assert (row.state, row.email, row.error) == ("none", "new@example.org", None)
        assert (row.settled_at, row.attempts) == (None, 0)

    @every_database
    def test_two_of_its_completions_are_one(self, again: Connected) -> None:
        again.host.complete()
        again.host.complete()


@every_database
def test_a_completion_joins_and_goes_with_the_hosts_rollback_also_where_it_comes_again(
    on_database: Connected,
) -> None:
    host, _, template_id = on_database
    host.complete()
    unmap(host)
    host.drain()
    accounts.add_mapping(host.state, COURSES[0], template_id)
    host.db.session.execute(sa.update(Account).values(client_id="other"))
    host.complete()
    host.db.session.rollback()

    assert host.row().state == "cancelled"


@every_database
@pytest.mark.parametrize("state", ["issued", "failed"])
def test_a_completion_takes_up_nothing_else(on_database: Connected, state: str) -> None:
    host, credly, _ = on_database

    if state == "failed":
        credly.fail("issue", status=422, times=2)

    host.complete()
    host.drain()
    host.complete()
    assert host.row().state == state


@every_database
def test_an_erased_row_never_comes_back(on_database: Connected) -> None:
    host, credly, template_id = on_database
    host.complete()
    unmap(host)
    host.drain()
    host.credly.erase_member("42")
    accounts.add_mapping(host.state, COURSES[0], template_id)
    host.complete()
    erased, fresh = host.rows()

    assert (erased.state, erased.email, fresh.state) == ("cancelled", "", "none")
    assert retrying.retry_all(host.state.engine, "default").number == 0


@every_database
def test_a_second_completion_keeps_no_worker_waiting(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """Where the row is there, the host's transaction holds no lock on it."""
    host = make_host()

    with host.app.app_context():
        if host.state.engine.dialect.name == "sqlite":
            pytest.skip("one writer at a time")

        connect(host, credly)
        host.complete()
        host.db.session.execute(sa.text("CREATE TABLE host_thing (id INT)"))
        host.db.session.commit()
        host.db.session.execute(sa.text("INSERT INTO host_thing VALUES (1)"))
        host.complete()

        try:
            with Elsewhere(host):
                wait_until(lambda: len(credly.badges) == 1, "it waits for the host")
        finally:
            host.db.session.rollback()
            host.db.session.execute(sa.text("DROP TABLE host_thing"))
            host.db.session.commit()


# Time, as a test has it.


class World:
    """The database's clock and Credly's, moved together."""

    def __init__(self, credly: CredlySimulator, patch: pytest.MonkeyPatch) -> None:
        self.passed = 0.0
        self.asleep = 0.0
        self.wall = 0.0
        self._credly = credly
        self.began = dt.datetime.now(dt.UTC)
        self._stands_at: dt.datetime | None = None
        patch.setattr(clock, "now", lambda _: self.now)
        patch.setattr(clock, "server_now", lambda _: None)
        # A drain waits for the end of a short pause.
        patch.setattr(stopping, "wait", self._wait)

    @property
    def now(self) -> dt.datetime:
        at = self._stands_at or dt.datetime.now(dt.UTC)
        return at + dt.timedelta(seconds=self.passed)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return (self.now - self.began).total_seconds()

    def stand_still(self) -> None:
        """From now on, time passes by :meth:`advance` alone: what a busy machine takes
        is in no measure.
        """
        self._stands_at = dt.datetime.now(dt.UTC)

    def advance(self, seconds: float) -> None:
        self.passed += seconds
        self._credly.advance(seconds)

    def _wait(self, seconds: float) -> bool:
        self.advance(seconds)
        return False


@pytest.fixture
def world(credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(credly, monkeypatch)


def paused_for(host: Host, world: World) -> float:
    until = host.db.session.scalars(sa.select(Account.paused_until)).one()
    host.db.session.remove()
    assert until is not None
    return (until - world.now).total_seconds()


def drain_for_an_hour(host: Host, world: World, every: float) -> None:
    """Drain, and leave out those drains that would find nothing due or the gate
    closed.
    """
    while world.passed < HOUR:
        host.drain()
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        due = min(row.due_at for row in host.rows() if row.due_at is not None)
        idle = max(gate.opens_in or 0, (due - world.now).total_seconds())
        world.advance(max(every, idle))


class TestOutages:
    def test_the_pauses_grow_from_two_seconds_to_five_minutes(
        self, connected: Connected, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected
        monkeypatch.setattr(dispatcher, "SHORT_PAUSE", 0.0)
        credly.revoke_tokens()
        credly.fail("token", times=None, status=503)
        host.complete()
        world.stand_still()
        pauses = []

        for _ in range(11):
            host.drain()
            pauses.append(paused_for(host, world))
            world.advance(pauses[-1])

        expected = [2, 4, 8, 16, 32, 64, 128, *[240] * 4]

        for pause, least in zip(pauses, expected, strict=True):
            assert least <= pause <= min(1.25 * least, 300)

        assert len({pause / round(pause) for pause in pauses}) > 1
        assert [error for error, _ in host.log()] == ["Credly unreachable"]

        # The next outage begins anew.
        credly.clear_faults()
        host.drain()
        assert host.row().state == "issued"
        credly.fail("issue", status=503)
        host.complete("43")
        host.drain()
        assert 2 <= paused_for(host, world) <= 2.5
        assert [error for error, _ in host.log()] == ["Credly unreachable"] * 2

    @every_database
    def test_all_workers_share_the_count(
        self, on_database: Connected, world: World
    ) -> None:
        host, _, _ = on_database
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        world.stand_still()
        engine, generation = host.state.engine, gate.generation
        assert gates.pause(engine, "default", generation, "unavailable", 0, "down")
        # Another, whose request was on its way.
        assert (
            gates.pause(engine, "default", generation, "unavailable", 0, "down") is None
        )
        assert 2 <= paused_for(host, world) <= 2.5
        world.advance(3)
        assert gates.pause(engine, "default", generation, "unavailable", 0, "down")
        assert 4 <= paused_for(host, world) <= 5
        world.advance(6)
        gates.resume(engine, "default", generation)
        assert gates.pause(engine, "default", generation, "unavailable", 0, "down")
        assert 2 <= paused_for(host, world) <= 2.5

    @pytest.mark.parametrize("kind", ["token", "issue", "look-up"])
    @pytest.mark.parametrize(
        ("said", "least", "most"),
        [("90", 90, 90), ("99999", 3600, 3600), ("x", 2, 2.5)],
    )
    def test_what_a_503_asks_for_is_kept(
        self,
        connected: Connected,
        world: World,
        monkeypatch: pytest.MonkeyPatch,
        kind: t.Any,
        said: str,
        least: float,
        most: float,
    ) -> None:
        host, credly, _ = connected
        monkeypatch.setattr(dispatcher, "SHORT_PAUSE", 0.0)
        host.complete()

        if kind == "token":
            credly.revoke_tokens()
        elif kind == "look-up":
            credly.fail("issue", how="reset")

        credly.fail(kind, status=503, headers={"Retry-After": said})
        world.stand_still()
        host.drain()

        assert least <= paused_for(host, world) <= most
        world.advance(most + 1)
        host.drain()
        host.drain()
        assert host.row().state == "issued"
        assert len(credly.badges) == 1

    @pytest.mark.parametrize("booked", [False, True])
    @pytest.mark.parametrize("kinds", [("issue",), ("issue", "look-up", "token")])
    @pytest.mark.parametrize("allowed", [False, True])
    def test_an_outage_of_an_hour_fails_no_badge_and_doubles_none(
        self,
        host: Host,
        credly: CredlySimulator,
        in_context: None,
        world: World,
        kinds: tuple[t.Any, ...],
        booked: bool,
        allowed: bool,
    ) -> None:
        connect(host, credly, allow_duplicate_badges=allowed)
        credly.posts_allowed = 99

        for kind in kinds:
            credly.fail(kind, times=None, status=503)

        if booked:
            credly.clear_faults()
            credly.fail("issue", status=503, after=True, times=1)

            for kind in kinds:
                credly.fail(kind, times=None, status=503)

        for number in range(3):
            host.complete(str(number))

        drain_for_an_hour(host, world, 5)

        assert {row.state for row in host.rows()} == {"none"} or booked
        credly.clear_faults()

        for _ in range(9):
            world.advance(301)
            host.drain()

        assert {row.state for row in host.rows()} <= {"issued", "held"}
        assert len(credly.badges) == 3
        assert not [error for error, _ in host.log() if "failed" in error]

    @pytest.mark.parametrize("how", ["hang", "reset"])
    def test_neither_does_an_hour_in_which_nothing_answers(
        self, connected: Connected, world: World, how: str
    ) -> None:
        host, credly, _ = connected
        credly.posts_allowed = 99

        for kind in ("issue", "look-up"):
            credly.fail(t.cast(t.Any, kind), times=None, how=how)

        for number in range(3):
            host.complete(str(number))

        drain_for_an_hour(host, world, 10)

        credly.clear_faults()

        for _ in range(9):
            world.advance(HOUR)
            host.drain()

        assert {row.state for row in host.rows()} == {"issued"}
        assert len(credly.badges) == 3


class TestTheWaitCountsFromTheRequest:
    @every_database
    def test_a_worker_dies_and_the_list_lags(
        self, host: Host, credly: CredlySimulator, in_context: None, world: World
    ) -> None:
        connect(host, credly, allow_duplicate_badges=True)
        credly.look_up_lag = verdict.DUPLICATES_WAIT - 1
        host.complete()
        real = Client.issue

        def die(*given: t.Any) -> t.NoReturn:
            real(*given)
            raise Died

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Died):
            patch.setattr(Client, "issue", die)
            host.drain()

        for _ in range(30):
            world.advance(5)
            host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    @every_database
    def test_it_is_removed_connected_and_tried_again_while_it_is_sent(
        self, served: cabc.Callable[..., Connected], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, template_id = served(allow_duplicate_badges=True)
        host.complete()
        under_way, go_on = threading.Event(), threading.Event()
        real = Client.issue

        def issue(*given: t.Any) -> t.Any:
            if under_way.is_set():
                return real(*given)

            under_way.set()
            found = None

            with leaving_before(Deadline(60)):
                go_on.wait(30)
                found = real(*given)

            return found

        monkeypatch.setattr(Client, "issue", issue)

        with Elsewhere(host):
            assert under_way.wait(30)
            accounts.remove(host.state)
            connect_and_map(host, credly, template_id)
            assert issuances.retry(host.state.engine, "default", host.row().id) == 1
            host.drain()
            assert credly.count("look-up") == credly.count("issue") == 0
            go_on.set()

        # What its worker learns is written down.
        assert host.row().state == "issued"
        host.drain()
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    @every_database
    def test_an_answer_was_lost_before_it_was_removed(
        self, host: Host, credly: CredlySimulator, in_context: None, world: World
    ) -> None:
        template_id = connect(host, credly, allow_duplicate_badges=True).template_id
        credly.look_up_lag = verdict.DUPLICATES_WAIT - 1
        credly.fail("issue", how="reset", after=True)
        host.complete()
        host.drain()
        accounts.remove(host.state)
        connect_and_map(host, credly, template_id)
        retrying.retry_all(host.state.engine, "default")

        for _ in range(30):
            host.drain()
            world.advance(5)

        assert len(credly.badges) == 1

    def test_what_was_refused_is_tried_again_at_once(
        self, connected: Connected, world: World
    ) -> None:
        host, credly, _ = connected
        credly.posts_allowed = 3
        credly.fail("issue", status=422, times=2)
        host.complete()
        host.drain()
        assert host.row().state == "failed"
        retrying.retry_all(host.state.engine, "default")
        host.drain()

        assert host.row().state == "issued"


# Any clock, any stop, any lag.

POINTS = ("begin", "begun", "resolve", "connect", "request", "headers", "body")


class Stage:
    """One worker's way with a badge: where it stands still, and where it dies."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch) -> None:
        self.stops: dict[str, tuple[float, bool]] = {}
        self.dies_at = ""
        self.left_at: list[float] = []
        self._world = world
        kind = transport._HTTPConnection
        base: t.Any = kind.__mro__[2]
        put, begin = kind.putrequest, claim.begin
        to, resolve, send = kind._connect_to, transport._resolve, base.send

        def begin_(*given: t.Any, **named: t.Any) -> t.Any:
            self.at("begin")
            begun = begin(*given, **named)
            self.at("begun")
            return begun

        def resolve_(*given: t.Any) -> t.Any:
            self.at("resolve")
            return resolve(*given)

        def connect_(*given: t.Any) -> t.Any:
            self.at("connect")
            return to(*given)

        def put_(connected: t.Any, *given: t.Any, **named: t.Any) -> t.Any:
            self.at("request")
            return put(connected, *given, **named)

        def send_(connected: t.Any, data: bytes) -> None:
            is_issue = data.startswith(b"POST /v1/organizations")
            is_body = data.startswith(b"{")

            if is_issue or is_body:
                self.left_at.append(self._world.seconds)

            send(connected, data)

        def check() -> None:
            self.at("headers" if self.checked else "body")
            self.checked = True
            real_check()

        self.checked = False
        real_check = transport._check_deadline
        patch.setattr(claim, "begin", begin_)
        patch.setattr(transport, "_resolve", resolve_)
        patch.setattr(transport, "_check_deadline", check)
        patch.setattr(kind, "_connect_to", connect_)
        patch.setattr(kind, "putrequest", put_)
        patch.setattr(base, "send", send_)
        patch.setattr(
            transport,
            "_CLOCKS",
            (
                lambda: world.seconds - world.asleep,
                lambda: world.seconds + world.wall,
                lambda: world.seconds,
            ),
        )

    def at(self, point: str) -> None:
        seconds, asleep = self.stops.pop(point, (0.0, False))
        self._world.advance(seconds)

        if asleep:
            self._world.asleep += seconds
            self._world.wall -= seconds

        if self.dies_at == point:
            self.dies_at = ""
            raise Died


@pytest.fixture
def stage(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> cabc.Iterator[tuple[Host, CredlySimulator, World, Stage]]:
    credly = CredlySimulator()

    with credly.serve() as server:
        host = make_host(
            member=a_member,
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
            CREDLY_CONCURRENCY=1,
        )

        with host.app.app_context():
            world = World(credly, monkeypatch)
            yield host, credly, world, Stage(world, monkeypatch)


stop = st.tuples(st.sampled_from([0.2, 0.3, 4.0, 6.0, 70.0, 500.0]), st.booleans())


@hypothesis.given(
    stopped=st.dictionaries(st.sampled_from(POINTS), stop, max_size=3),
    dies_at=st.sampled_from(["", "begun", "headers", "body", "answer"]),
    lost=st.booleans(),
    removed=st.booleans(),
    lag=st.sampled_from([0.0, 30.0, verdict.DUPLICATES_WAIT - 1]),
)
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_between_the_last_byte_and_the_next_worker_lies_the_settle_time(
    stage: tuple[Host, CredlySimulator, World, Stage],
    stopped: dict[str, tuple[float, bool]],
    dies_at: str,
    lost: bool,
    removed: bool,
    lag: float,
) -> None:
    host, credly, world, worker = stage
    host.db.session.remove()

    with host.state.engine.begin() as connected:
        for table in reversed(Base.metadata.sorted_tables):
            connected.execute(sa.delete(table))

    credly.clear_faults()
    worker.stops, worker.dies_at, worker.left_at = {}, "", []
    template_id = connect(host, credly, allow_duplicate_badges=True).template_id
    made = len(credly.badges)
    credly.look_up_lag = lag
    host.complete(str(made))

    if lost:
        credly.fail("issue", how="reset", after=True)

    worker.stops, worker.checked = dict(stopped), False
    worker.dies_at = "" if dies_at == "answer" else dies_at
    real = settle.settle

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Died):
        if dies_at == "answer":
            patch.setattr(settle, "settle", _die)

        host.drain()

    assert settle.settle is real
    worker.stops, worker.dies_at = {}, ""

    if removed:
        accounts.remove(host.state)
        connect_and_map(host, credly, template_id)
        retrying.retry_all(host.state.engine, "default")

    for row in host.rows():
        if row.due_at is not None and worker.left_at:
            free = (row.due_at - world.began).total_seconds()
            assert free - worker.left_at[-1] >= verdict.DUPLICATES_WAIT

    for _ in range(30):
        if all(row.due_at is None for row in host.rows()):
            break

        host.drain()
        world.advance(20)

    assert len(credly.badges) - made == (0 if host.rows() == [] else 1)
    credly.problems.clear()


def _die(*_: object) -> t.NoReturn:
    raise Died
