"""A process dies at each point of a badge's way, under each way in which Credly can
answer. Then another goes on, and the invariants hold.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import multiprocessing
import os
import signal
import sys
import time
import typing as t

import psutil
import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import orm

from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import jobs
from flask_credly.credly import Client
from flask_credly.issuing import lane
from flask_credly.issuing import notifier
from flask_credly.issuing import verdict
from flask_credly.ledger import actions
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import settle
from flask_credly.models import Account
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator
from tests.support import invariants
from tests.support.databases import open_again
from tests.support.databases import servers

pytestmark = pytest.mark.slow

DIED = 137

# Where the process dies: what is replaced, and whether the true one is called first.
POINTS: dict[str, tuple[object, str, bool]] = {
    "before the commit": (orm.Session, "commit", False),
    "after the commit": (notifier, "notify", False),
    "after the bell": (notifier, "notify", True),
    "after the claim": (claim, "claim", True),
    "after the look-up": (Client, "find", True),
    "before the request": (Client, "issue", False),
    "after the request": (Client, "issue", True),
    "before it is saved": (settle, "settle", False),
    "after it was saved": (settle, "settle", True),
}
# The same for what is done about a badge that was issued.
OF_ACTIONS: dict[str, tuple[object, str, bool]] = {
    "after the claim": (claim, "claim", True),
    "after the badge was read": (Client, "badge", True),
    "before the intent": (claim, "begin", False),
    "after the intent": (claim, "begin", True),
    "before the request": (Client, "{}", False),
    "after the request": (Client, "{}", True),
    "before it is saved": (settle, "settle", False),
    "after it was saved": (settle, "settle", True),
}
# The same where several are asked for with one request.
OF_BATCHES: dict[str, tuple[object, str, bool]] = {
    "after the claim": (claim, "claim", True),
    "before the intent": (claim, "begin", False),
    "after the intent": (claim, "begin", True),
    "before the request": (Client, "issue_many", False),
    "after the request": (Client, "issue_many", True),
    "before it is saved": (settle, "settle", False),
    "after it was saved": (settle, "settle", True),
    "before it is remembered": (gates, "refuse_batches", False),
}
AT_COMPLETION = list(POINTS)[:3]

MODES: dict[str, dict[str, t.Any] | None] = {
    "issues": None,
    "refuses a second": None,
    "fails": {"status": 500},
    "fails but books": {"status": 500, "after": True},
    "hangs and books": {"how": "hang", "delay": 0.05, "after": True},
    "books late": {"how": "late", "delay": 5},
    "answers in pieces": {"how": "truncate"},
    "asks to wait": {"status": 429, "headers": {"Retry-After": "1"}},
}


def make_app(config: dict[str, t.Any]) -> Flask:
    app = Flask("host")
    app.config.update(config)
    db, credly = SQLAlchemy(), Credly()
    credly.courses(lambda: [Course(id="py-101", title="Python 101")])
    credly.is_admin(lambda: True)
    db.init_app(app)
    credly.init_app(app)
    return app


def child(config: dict[str, t.Any], point: str, action: str = "issue") -> None:
    """Set the trap, and go the way of a completion or a drain."""
    app = make_app(config)
    points = {"issue": POINTS, "batch": OF_BATCHES}.get(action, OF_ACTIONS)
    owner, name, after = points[point]
    name = name.format(action)
    true = getattr(owner, name)

    def die(*args: t.Any, **given: t.Any) -> t.NoReturn:
        if after:
            with contextlib.suppress(Exception):
                true(*args, **given)

        os._exit(DIED)

    setattr(owner, name, die)

    with app.app_context():
        if point in AT_COMPLETION:
            session = app.extensions["sqlalchemy"].session
            session.execute(sa.update(Account).values(client_id="changed"))
            course_completed.send(app, member=a_member(), course_id="py-101")
            session.commit()
        else:
            jobs.drain()


def start(
    host: Host, target: cabc.Callable[..., None], *args: t.Any
) -> multiprocessing.process.BaseProcess:
    config = {
        key: value
        for key, value in host.app.config.items()
        if key.startswith(("CREDLY_", "SECRET_KEY", "SQLALCHEMY_DATABASE"))
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=(config, *args))

    # Its server is started by the first, and does not find our modules by itself: each
    # process would import them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        process.start()

    return process


def die_at(host: Host, point: str, action: str = "issue") -> None:
    process = start(host, child, point, action)
    process.join(60)
    assert process.exitcode == DIED, f"it did not get to the point {point!r}"


def child_that_stands_still(config: dict[str, t.Any]) -> None:
    """Drain, and stop right after the intent was written down."""
    app = make_app({**config, "CREDLY_TIMEOUT": 0.3})
    lane.SEND_WITHIN = 0.5
    verdict.DUPLICATES_WAIT = 0.5
    begin = claim.begin

    def begin_and_stand_still(*args: t.Any, **given: t.Any) -> list[claim.Row]:
        begun = begin(*args, **given)
        os.kill(os.getpid(), signal.SIGSTOP)
        return begun

    claim.begin = begin_and_stand_still

    with app.app_context():
        jobs.drain()


@every_database
@pytest.mark.parametrize("allowed", [False, True])
def test_a_process_that_stood_still_beyond_its_lease_sends_nothing(
    make_host: MakeHost, allowed: bool
) -> None:
    """As a virtual machine does that is moved, or a worker under SIGSTOP."""
    credly = CredlySimulator()

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(credly.serve())
        host = make_host(
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
        )
        stack.enter_context(host.app.app_context())
        connect(host, credly, allow_duplicate_badges=allowed)
        host.complete()
        process = start(host, child_that_stands_still)
        assert process.pid is not None
        sleeper = psutil.Process(process.pid)
        until = time.monotonic() + 60

        while sleeper.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < until, "it never got there"
            time.sleep(0.05)

        time.sleep(1.7)  # longer than its lease
        host.make_due()
        host.drain(2)
        sleeper.send_signal(signal.SIGCONT)
        process.join(60)

        assert process.exitcode == 0
        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    assert credly.problems == []


@pytest.fixture
def served(
    make_host: MakeHost,
) -> cabc.Iterator[tuple[Host, CredlySimulator, str]]:
    credly = CredlySimulator()

    with credly.serve() as server:
        host = make_host(
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
        )

        with host.app.app_context():
            yield host, credly, connect(host, credly).template_id

    assert credly.problems == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", POINTS)
def test_death(
    served: tuple[Host, CredlySimulator, str], point: str, mode: str
) -> None:
    die_and_go_on(served, point, mode)


@servers
@pytest.mark.parametrize("point", POINTS)
def test_death_with_a_database_server(
    served: tuple[Host, CredlySimulator, str], point: str
) -> None:
    die_and_go_on(served, point, "hangs and books")


def die_and_go_on(
    served: tuple[Host, CredlySimulator, str], point: str, mode: str
) -> None:
    host, credly, template_id = served
    badge = ("42", template_id)
    acknowledged = [badge] if point != "before the commit" else []

    if point not in AT_COMPLETION:
        host.complete()

    if point == "after the look-up":
        die_at(host, "before the request")
        host.make_due()

    if mode == "refuses a second":
        credly.award(template_id, "member-42@example.org")

    if fault := MODES[mode]:
        credly.fail("issue", **fault)

    die_at(host, point)
    credly.advance(10)

    for _ in range(8):
        open_again(host)
        host.drain()

    rows, attempts = host.rows(), host.attempts()
    book = invariants.read_book(credly.badges, lambda address: "42")
    posts = {badge: credly.count("issue")} if rows else {}
    by_hand = {badge} if mode == "refuses a second" else set()

    assert [row.state for row in rows] in (
        [["issued"], ["held"]] if acknowledged else [[]]
    )
    assert not [
        *invariants.lost(rows, book, acknowledged),
        *invariants.duplicated(book),
        *invariants.false_issued(rows, book),
        *invariants.false_failed(rows, book),
        *invariants.unexpected(book, {*acknowledged, *by_hand}),
        *invariants.too_many_posts(rows, attempts, posts),
        *invariants.unsettled(rows, attempts),
    ]
    assert host.log() == [] or mode == "asks to wait"


@pytest.mark.parametrize(
    "mode", ["fails", "fails but books", "books late", "asks to wait"]
)
@pytest.mark.parametrize("point", OF_ACTIONS)
@pytest.mark.parametrize("action", ["revoke", "replace"])
def test_death_over_an_action(
    served: tuple[Host, CredlySimulator, str], action: str, point: str, mode: str
) -> None:
    die_over(served, action, point, mode)


@servers
@pytest.mark.parametrize("point", OF_ACTIONS)
@pytest.mark.parametrize("action", ["revoke", "replace"])
def test_death_over_an_action_with_a_database_server(
    served: tuple[Host, CredlySimulator, str], action: str, point: str
) -> None:
    die_over(served, action, point, "hangs and books")


def die_over(
    served: tuple[Host, CredlySimulator, str], action: str, point: str, mode: str
) -> None:
    host, credly, _ = served
    host.complete()
    host.drain()
    row = host.row()
    engine = host.state.engine

    if action == "revoke":
        actions.revoke(engine, "default", row.id, reason="By mistake.", tell=False)
    else:
        actions.correct(
            engine,
            "default",
            row.id,
            first_name="Grace",
            last_name=row.last_name,
            completed_at=row.completed_at,
            template_id=row.template_id,
        )

    if fault := MODES[mode]:
        credly.fail(t.cast(t.Any, action), **fault)

    die_at(host, point, action)

    for _ in range(8):
        # What was sent is there by now, if it will be.
        credly.advance(10)
        host.let_lists_catch_up()
        open_again(host)
        host.drain()

    rows, badges = host.rows(), credly.badges

    if action == "revoke":
        assert [(each.state, each.action) for each in rows] == [("revoked", None)]
        assert [badge["state"] for badge in badges] == ["revoked"]
        changes = [each.state for each in credly.history(badges[0]["id"])]
        assert changes == ["pending", "revoked"]
    else:
        assert [(each.state, each.action) for each in rows] == [
            *(("replaced", None), ("issued", None)),
        ]
        assert [badge["id"] for badge in badges] == [each.badge_id for each in rows]
        assert badges[0]["replacement_badge_id"] == badges[1]["id"]

    assert invariants.unsettled(rows, host.attempts()) == []
    assert host.log() == [] or mode == "asks to wait"


OF_SEVERAL: dict[str, dict[str, t.Any] | None] = {
    **{mode: fault for mode, fault in MODES.items() if mode != "refuses a second"},
    "refuses one": None,
    "refuses one and books": None,
    "books some": {"how": "reset", "after": True, "only": 3},
    "has no such request": {"status": 404},
}


@pytest.mark.parametrize("mode", OF_SEVERAL)
@pytest.mark.parametrize("point", OF_BATCHES)
def test_death_over_several(
    served: tuple[Host, CredlySimulator, str], point: str, mode: str
) -> None:
    if point == "before it is remembered" and mode != "has no such request":
        pytest.skip("nothing is remembered")

    die_over_several(served, point, mode)


@servers
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("point", list(OF_BATCHES)[:-1])
def test_death_over_several_with_a_database_server(
    served: tuple[Host, CredlySimulator, str], point: str, allowed: bool
) -> None:
    host, credly, template_id = served
    credly.change_template(template_id, allow_duplicate_badges=allowed)
    host.db.session.execute(sa.update(Template).values(allows_duplicates=allowed))
    host.db.session.commit()
    die_over_several(served, point, "books some")


def die_over_several(
    served: tuple[Host, CredlySimulator, str], point: str, mode: str
) -> None:
    host, credly, template_id = served
    members = [str(number) for number in range(12)]

    for member_id in members:
        host.complete(member_id)

    if mode.startswith("refuses one"):
        credly.award(template_id, "member-7@example.org")
        credly.batch_keeps_first = mode == "refuses one and books"

    if fault := OF_SEVERAL[mode]:
        credly.fail("batch", **fault)

    die_at(host, point, "batch")
    credly.advance(10)

    for _ in range(8):
        open_again(host)
        host.let_lists_catch_up()
        host.drain()

    rows, attempts = host.rows(), host.attempts()
    held = {"7"} if mode.startswith("refuses one") else set()
    book = invariants.read_book(
        credly.badges, lambda address: address[7:].split("@")[0]
    )

    assert {row.member_id for row in rows if row.state == "held"} == held
    assert {row.member_id for row in rows if row.state == "issued"} == (
        set(members) - held
    )
    assert not [
        *invariants.duplicated(book),
        *invariants.false_issued(rows, book),
        *invariants.false_failed(rows, book),
        *invariants.unsettled(rows, attempts),
    ]
    ours = {row.badge_id for row in rows if row.state == "issued"}
    assert len(credly.badges) == len(members)
    assert ours <= {badge["id"] for badge in credly.badges}
    assert host.log() == [] or mode == "asks to wait"
