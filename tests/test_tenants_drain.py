"""Several communities of one site, and one worker: each has its turn, and the trouble
of one is nobody else's.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import signal
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import every_database
from conftest import in_threads
from conftest import MakeHost
from rq.timeouts import JobTimeoutException

from flask_credly import signals
from flask_credly.issuing import dispatcher
from flask_credly.issuing import stopping
from flask_credly.issuing.lane import ROWS_A_TURN
from flask_credly.testing import CredlySimulator
from flask_credly.testing import serving
from tests.support.sites import make_site
from tests.support.sites import Site

Served = tuple[CredlySimulator, serving.SimulatorServer]


@pytest.fixture
def served() -> cabc.Iterator[Served]:
    """A Credly over HTTP, which may hang."""
    simulator = CredlySimulator()

    with simulator.serve() as server:
        yield simulator, server

    assert simulator.problems == []


@contextlib.contextmanager
def over_http(
    make_host: MakeHost,
    served: Served,
    *tenants: str,
    **config: t.Any,
) -> cabc.Iterator[Site]:
    simulator, server = served
    site = make_site(
        *(make_host, simulator, *tenants),
        CREDLY_API_URL=server.api_url,
        CREDLY_TOKEN_URL=server.token_url,
        **{"CREDLY_BATCH_SIZE": 1, **config},
    )

    with site.host.app.app_context():
        yield site


def fill(site: Site, tenant: str, number: int) -> None:
    """Have so many completions wait."""
    for member in range(number):
        site.complete(tenant, str(member))


def order(site: Site) -> list[str]:
    """Get whose badges were asked for, one after the other."""
    names = {each.organization_id: name for name, each in site.at.items()}
    return [
        names[each.organization_id]
        for each in site.credly.traffic
        if each.kind in ("issue", "batch")
        for _ in t.cast(t.Any, each.json).get("badges", [None])
    ]


@pytest.mark.slow
@every_database
def test_small_communities_are_served_in_the_first_round(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    small = [f"small-{number:02}" for number in range(30)]
    site = make_site(make_host, credly, "large", *small)

    with site.host.app.app_context():
        fill(site, "large", 100)

        for each in small:
            site.complete(each)

        site.host.drain()
        asked = order(site)
        assert sorted(asked) == sorted([*small, *["large"] * 100])
        # One turn while others wait; more beside the last of them, then all of it.
        nearly_last = sorted(asked.index(each) for each in small)[-4]
        assert asked[:nearly_last].count("large") <= 2 * ROWS_A_TURN


def test_a_community_alone_has_all_requests(
    make_host: MakeHost, served: Served
) -> None:
    with over_http(make_host, served, "acme", "beta", CREDLY_CONCURRENCY=6) as site:
        fill(site, "acme", 40)
        site.at["acme"].latency = 0.05
        with most_at_once(site) as seen:
            site.host.drain()

        assert seen["acme"] > 3


@contextlib.contextmanager
def most_at_once(site: Site) -> cabc.Iterator[dict[str, int]]:
    """Count the requests that are in flight at the same time, by community."""
    from flask_credly.issuing.sender import Sender

    lock, now, most = threading.Lock(), dict[str, int](), dict[str, int]()
    send = Sender.send

    def watched(self: Sender, asked: list[t.Any]) -> t.Any:
        tenant = asked[0].row.tenant

        with lock:
            now[tenant] = now.get(tenant, 0) + 1
            most[tenant] = max(most.get(tenant, 0), now[tenant])

        try:
            return send(self, asked)
        finally:
            with lock:
                now[tenant] -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sender, "send", watched)
        yield most


def test_half_of_the_requests_at_most_while_others_wait(
    make_host: MakeHost, served: Served
) -> None:
    with over_http(make_host, served, "acme", "beta", CREDLY_CONCURRENCY=6) as site:
        for each in ("acme", "beta"):
            fill(site, each, 40)
            site.at[each].latency = 0.02

        with most_at_once(site) as seen:
            site.host.drain()

        assert site.states("acme") == site.states("beta") == ["issued"] * 40
        # The one that is left has all at the end.
        assert min(seen.values()) <= 3


TROUBLE: dict[str, t.Callable[[t.Any], None]] = {
    "refused": lambda organization: organization.revoke_client(),
    "limited": lambda organization: organization.fail(
        "issue", status=429, headers={"Retry-After": "3600"}, times=None
    ),
    "down": lambda organization: organization.fail("*", status=503, times=None),
    "hangs": lambda organization: organization.fail(
        "issue", how="hang", delay=8, times=None
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", TROUBLE)
def test_the_trouble_of_one_holds_nobody_up(
    make_host: MakeHost, served: Served, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "BUDGET", 10)

    with over_http(
        make_host, served, "acme", "beta", "gamma", CREDLY_TIMEOUT=4
    ) as site:
        fill(site, "acme", 30)
        TROUBLE[trouble](site.at["acme"])
        fill(site, "beta", 12)
        fill(site, "gamma", 12)
        issued: dict[str, float] = {}
        began = time.monotonic()

        def note(sender: t.Any, *, tenant: str, **payload: t.Any) -> None:
            issued[tenant] = time.monotonic() - began

        signals.badge_issued.connect(note, site.host.app)
        site.host.drain()
        assert site.states("beta") == site.states("gamma") == ["issued"] * 12
        assert "issued" not in site.states("acme")
        assert max(issued["beta"], issued["gamma"]) < 3.5


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_lane_that_fails_takes_no_other_along(
    make_host: MakeHost,
    credly: CredlySimulator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    concurrency: int,
) -> None:
    site = make_site(
        *(make_host, credly, "acme", "beta", "gamma"), CREDLY_CONCURRENCY=concurrency
    )
    serve = dispatcher.serve

    def fail(state: t.Any, gate: t.Any, share: t.Any) -> t.Any:
        if state.tenant == "acme":
            raise LookupError("broken")

        return serve(state, gate, share)

    monkeypatch.setattr(dispatcher, "serve", fail)

    with site.host.app.app_context():
        for each in ("acme", "beta", "gamma"):
            fill(site, each, 15)

        with pytest.raises(LookupError, match="broken"):
            site.host.drain()

        assert site.states("acme") == ["none"] * 15
        assert site.states("beta") == site.states("gamma") == ["issued"] * 15
        assert "'acme'" in caplog.text


POOLS: dict[str, dict[str, t.Any]] = {
    "memory": {"SQLALCHEMY_DATABASE_URI": "sqlite://"},
    "static": {"SQLALCHEMY_ENGINE_OPTIONS": {"poolclass": sa.StaticPool}},
    "none": {"SQLALCHEMY_ENGINE_OPTIONS": {"poolclass": sa.NullPool}},
    "one": {
        "SQLALCHEMY_ENGINE_OPTIONS": {
            "poolclass": sa.QueuePool,
            "pool_size": 1,
            "max_overflow": 0,
            "pool_timeout": 3,
        }
    },
    "two": {
        "SQLALCHEMY_ENGINE_OPTIONS": {
            "poolclass": sa.QueuePool,
            "pool_size": 2,
            "max_overflow": 0,
            "pool_timeout": 3,
        }
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_communities_share_whatever_connections_there_are(
    make_host: MakeHost, credly: CredlySimulator, pool: str
) -> None:
    site = make_site(
        *(make_host, credly, "acme", "beta", "gamma"),
        member=lambda member_id: a_member(member_id),
        **POOLS[pool],
    )

    with site.host.app.app_context():
        for each in ("acme", "beta", "gamma"):
            fill(site, each, 12)
            site.at[each].fail("issue", status=500, times=1)

        site.host.db.session.remove()
        site.host.drain()
        site.host.make_due()
        site.host.db.session.remove()
        time.sleep(2.5)  # a pause because of the 500
        site.host.drain()

        for each in ("acme", "beta", "gamma"):
            assert site.states(each) == ["issued"] * 12


@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_comes_in_while_others_are_served_is_served_too(
    make_host: MakeHost, credly: CredlySimulator, concurrency: int
) -> None:
    site = make_site(
        *(make_host, credly, "acme", "beta"), CREDLY_CONCURRENCY=concurrency
    )
    came: list[str] = []

    def note(sender: t.Any, *, tenant: str, **payload: t.Any) -> None:
        time.sleep(0.02)

        # Once "beta" was done, another of its members completes a course.
        if tenant == "beta" and not came:
            came.append("43")
            site.complete("beta", "43")

    signals.badge_issued.connect(note, site.host.app)

    with site.host.app.app_context():
        fill(site, "acme", 150)
        site.complete("beta")
        site.host.drain()
        asked = order(site)
        assert asked.count("beta") == 2
        last = len(asked) - asked[::-1].index("beta")
        assert last < 140


@every_database
def test_two_workers_at_once_issue_each_badge_once(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly, "acme", "beta", "gamma")

    def work() -> None:
        with site.host.app.app_context():
            dispatcher.drain(site.app_state)

    with site.host.app.app_context():
        for each in ("acme", "beta", "gamma"):
            fill(site, each, 40)

        in_threads(work, work)
        site.host.drain()

        for each in ("acme", "beta", "gamma"):
            assert site.states(each) == ["issued"] * 40
            assert len(site.at[each].badges) == 40


@every_database
def test_a_worker_told_to_stop_begins_nothing_more(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(make_host, credly, "acme", "beta")

    def note(sender: t.Any, **payload: t.Any) -> None:
        stopping.set()

    signals.badge_issued.connect(note, site.host.app)

    with site.host.app.app_context():
        fill(site, "acme", 60)
        fill(site, "beta", 60)

        try:
            assert dispatcher.drain(site.app_state) is True
        finally:
            stopping.clear()

        states = site.states("acme") + site.states("beta")
        assert 0 < states.count("issued") < 60
        assert all(row.lease is None for row in site.host.rows())


@pytest.mark.parametrize("tenants", [["acme"], ["acme", "beta"]])
def test_a_job_that_runs_out_of_time_ends_with_all_lanes(
    make_host: MakeHost, served: Served, tenants: list[str]
) -> None:
    def strike(signum: int, frame: t.Any) -> None:
        raise JobTimeoutException("out of time")

    with over_http(make_host, served, *tenants, CREDLY_TIMEOUT=2) as site:
        for each in tenants:
            fill(site, each, 60)
            site.at[each].latency = 0.2

        before = signal.signal(signal.SIGALRM, strike)

        try:
            signal.setitimer(signal.ITIMER_REAL, 1)

            with pytest.raises(JobTimeoutException):
                site.host.drain()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

        assert not [each for each in threading.enumerate() if "Pool" in each.name]
        assert all(row.lease is None for row in site.host.rows())


def test_an_account_of_which_nothing_can_be_taken_is_no_endless_loop(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_credly.ledger import claim

    site = make_site(make_host, credly, "acme", "beta")
    asked: list[int] = []

    def nothing(*args: t.Any, **more: t.Any) -> list[t.Any]:
        asked.append(1)
        return []

    monkeypatch.setattr(claim, "claim", nothing)

    with site.host.app.app_context():
        site.complete("acme")
        site.complete("beta")
        began = time.monotonic()
        site.host.drain()
        assert time.monotonic() - began < 5
        assert len(asked) < 10
