"""Several badges that wait are asked for with one request: each is issued once, and
gets its own answer, whatever Credly makes of the request.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
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
from test_faults import open_again

from flask_credly import accounts
from flask_credly import doctor
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator

Complete = cabc.Callable[..., list[str]]


def complete(host: Host, number: int, *, first: int = 0) -> None:
    for each in range(first, first + number):
        host.complete(str(each))


def takes_batches(host: Host) -> bool:
    gate = gates.read(host.state.engine, "default")
    assert gate is not None
    return gate.batches


def sizes(credly: CredlySimulator) -> list[int]:
    """How many badges each batch had, the largest first."""
    asked = [each.json for each in credly.received if each.kind == "batch"]
    return sorted((len(t.cast(t.Any, each)["badges"]) for each in asked), reverse=True)


def assert_each_has_its_own(host: Host, credly: CredlySimulator) -> None:
    """Each row has the badge of its own member, and nobody has two."""
    badges = {badge["id"]: badge for badge in credly.badges}
    rows = host.rows()

    assert {row.state for row in rows} == {"issued"}
    assert len({row.badge_id for row in rows}) == len(rows) == len(badges)

    for row in rows:
        assert badges[str(row.badge_id)]["recipient_email"] == row.email

    assert credly.problems == []


def finish(host: Host, credly: CredlySimulator) -> None:
    """Let the time pass until nothing is due."""
    for _ in range(6):
        open_again(host)
        host.let_lists_catch_up()
        host.drain()


@every_database
def test_many_are_asked_for_with_few_requests(connected: Connected) -> None:
    host, credly, _ = connected
    complete(host, 70)
    host.drain()

    assert_each_has_its_own(host, credly)
    assert sizes(credly) == [30, 30, 10]
    assert credly.count("issue") == 0
    assert {row.attempts for row in host.rows()} == {1}
    answers = {(each.answer, each.status) for each in host.attempts()}
    assert answers == {("issued", None)}


def test_a_few_are_asked_for_alone(connected: Connected) -> None:
    host, credly, _ = connected
    complete(host, 4)
    host.drain()

    assert (credly.count("issue"), credly.count("batch")) == (4, 0)


@pytest.mark.parametrize(("size", "batches"), [(1, []), (2, [2, 2]), (50, [7])])
def test_the_setting(
    make_connected: MakeConnected, size: int, batches: list[int]
) -> None:
    host, credly, _ = make_connected(CREDLY_BATCH_SIZE=size)
    complete(host, 7)
    host.drain()

    assert_each_has_its_own(host, credly)
    assert sizes(credly)[:2] == batches[:2]


def test_one_that_is_refused_gets_its_own_answer(connected: Connected) -> None:
    host, credly, template_id = connected
    credly.award(template_id, "member-3@example.org")
    complete(host, 5)
    wrong = dataclasses.replace(a_member("wrong"), email="no-address@localhost")
    host.complete(member=wrong)
    complete(host, 5, first=5)
    host.drain(3)
    rows = {row.member_id: row for row in host.rows()}
    states = collections.Counter(row.state for row in rows.values())

    assert states == {"issued": 9, "held": 1, "failed": 1}
    assert (rows["3"].state, rows["wrong"].state) == ("held", "failed")
    assert "invalid" in (rows["wrong"].error or "")
    assert (rows["wrong"].attempts, rows["0"].attempts) == (2, 1)
    ((_, details),) = host.log()
    assert "no-address@localhost" in details
    of_first = [each for each in host.attempts() if each.issuance_id == rows["0"].id]
    assert [(each.answer, each.status) for each in of_first] == [
        *(("sent back", 422), ("sent back", 422), ("issued", None)),
    ]
    assert takes_batches(host)
    assert credly.problems == []


ALLOWED = pytest.mark.parametrize("allowed", [False, True], ids=["refused", "allowed"])


@pytest.mark.slow
@ALLOWED
@pytest.mark.parametrize("names_error", [True, False])
@pytest.mark.parametrize("keeps_first", [False, True])
@pytest.mark.parametrize("lag", [0, 30])
def test_a_refusal_doubles_none(
    host: Host,
    credly: CredlySimulator,
    allowed: bool,
    names_error: bool,
    keeps_first: bool,
    lag: int,
) -> None:
    """Also where Credly has issued some of them, which it is not known to do."""
    credly.batch_names_error = names_error
    credly.batch_keeps_first = keeps_first
    credly.look_up_lag = lag

    with host.app.app_context():
        connect(host, credly, allow_duplicate_badges=allowed)
        complete(host, 7)
        wrong = dataclasses.replace(a_member("wrong"), email="no-address@localhost")
        host.complete(member=wrong)
        complete(host, 5, first=7)
        host.drain()
        credly.advance(60)
        finish(host, credly)
        rows = {row.member_id: row for row in host.rows()}

        assert rows.pop("wrong").state == "failed"
        assert {row.state for row in rows.values()} == {"issued"}
        assert len(credly.badges) == len(rows)
        assert {badge["id"] for badge in credly.badges} == {
            row.badge_id for row in rows.values()
        }
        # What was issued although it was refused is noticed at once.
        noticed = not names_error or (keeps_first and not allowed and not lag)
        assert takes_batches(host) or noticed

    assert credly.problems == []


@ALLOWED
def test_a_refusal_of_what_was_issued_doubles_none(
    make_connected: MakeConnected, allowed: bool
) -> None:
    """Also the badge that it names."""
    data = {"message": "Example refusal", "error_index": 3}
    host, credly, _ = make_connected(allow_duplicate_badges=allowed)
    complete(host, 12)
    credly.fail("batch", status=422, body={"data": data}, after=True)
    host.drain()
    finish(host, credly)
    assert_each_has_its_own(host, credly)


@pytest.mark.slow
@ALLOWED
@pytest.mark.parametrize(
    "answer", ["as asked", "other order", "fewer", "more", "no names", "no list"]
)
def test_the_shape_of_the_answer(
    make_connected: MakeConnected, credly: CredlySimulator, answer: t.Any, allowed: bool
) -> None:
    credly.batch_answer = answer
    host, _, _ = make_connected(allow_duplicate_badges=allowed)
    complete(host, 12)
    host.drain()
    finish(host, credly)

    assert_each_has_its_own(host, credly)
    assert credly.count("issue") == 0
    assert takes_batches(host) is (answer in ("as asked", "other order"))


@pytest.mark.parametrize("status", [404, 405])
def test_where_credly_has_no_such_request(
    connected: Connected, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    host, credly, template_id = connected
    credly.batch_status = status
    complete(host, 12)
    host.drain()

    assert_each_has_its_own(host, credly)
    assert {row.attempts for row in host.rows()} == {1}
    asked = credly.count("batch")
    assert asked
    events = [getattr(each, "credly_event", None) for each in caplog.records]
    assert events.count("batch_refused") == 1

    # It is remembered, and said.
    complete(host, 12, first=12)
    host.drain()
    assert_each_has_its_own(host, credly)
    assert credly.count("batch") == asked
    said = doctor.examine(host.state)["connection"]
    assert said.status == "ok"
    assert "one at a time" in said.detail

    # It is tried again at a reconnect.
    credly.batch_status = 201
    connect_again(host, credly)
    assert takes_batches(host)
    complete(host, 12, first=24)
    host.drain()
    assert_each_has_its_own(host, credly)
    assert credly.count("batch") == asked + 1


def connect_again(host: Host, credly: CredlySimulator) -> None:
    accounts.connect(
        host.state,
        organization_id=credly.organization_id,
        client_id=credly.client_id,
        client_secret=credly.client_secret,
    )


def test_it_is_tried_again_after_a_day(connected: Connected) -> None:
    host, _, _ = connected
    now = dt.datetime.now(dt.UTC)

    for hours, again in ((23, False), (25, True)):
        at = now - dt.timedelta(hours=hours)
        host.db.session.execute(sa.update(Account).values(batch_refused_at=at))
        host.db.session.commit()
        assert takes_batches(host) is again


_HTML = "<html><body><h1>Blocked</h1></body></html>"

UNCLEAR: dict[str, dict[str, t.Any]] = {
    "fails": {"status": 500},
    "fails but books": {"status": 500, "after": True},
    "fails but books some": {"status": 500, "after": True, "only": 3},
    "hangs": {"how": "hang"},
    "hangs and books": {"how": "hang", "after": True},
    "hangs and books some": {"how": "hang", "after": True, "only": 3},
    "is cut": {"how": "truncate"},
    "is reset": {"how": "reset", "after": True},
    "books late": {"how": "late", "delay": 5},
    "books some late": {"how": "late", "delay": 5, "only": 3},
    "is in trouble": {"status": 503, "after": True, "only": 3},
    "is a firewall": {"status": 403, "body": _HTML},
    "is a page": {"status": 200, "body": _HTML, "after": True},
    "is nothing": {"status": 201, "body": "{}", "after": True},
    "is null": {"status": 201, "body": {"data": [None, 1, {}]}, "after": True},
}


@pytest.mark.slow
@ALLOWED
@pytest.mark.parametrize("how", UNCLEAR)
def test_an_unclear_answer_is_looked_up_and_not_sent_again(
    make_connected: MakeConnected, how: str, allowed: bool
) -> None:
    host, credly, _ = make_connected(allow_duplicate_badges=allowed)
    complete(host, 12)
    credly.fail("batch", **UNCLEAR[how])
    host.drain()
    credly.advance(10)
    finish(host, credly)

    assert_each_has_its_own(host, credly)
    assert credly.count("batch") == 1
    assert host.log() == [] or how == "is in trouble"
    assert credly.count("look-up") >= 12


def test_after_unclear_answers_fewer_are_asked_for_together(
    make_connected: MakeConnected,
) -> None:
    """It may be too much for the time that there is."""
    host, credly, _ = make_connected(CREDLY_CONCURRENCY=1)
    credly.fail("batch", times=None, status=500, after=True)
    complete(host, 60)
    host.drain()

    # The next lane would begin with 30 again.
    assert sizes(credly)[:2] == [30, 15]
    assert sum(sizes(credly)) <= 60

    finish(host, credly)
    assert_each_has_its_own(host, credly)


@pytest.mark.parametrize("status", [401, 429])
def test_what_concerns_all_requests_is_no_attempt(
    connected: Connected, status: int
) -> None:
    host, credly, _ = connected
    credly.fail("batch", status=status, headers={"Retry-After": "600"})
    complete(host, 12)
    host.drain()

    paused = status == 429
    assert [error for error, _ in host.log()] == ["API Rate Limit"] * paused
    assert {row.state for row in host.rows()} == {"none" if paused else "issued"}
    open_again(host)
    host.drain()
    assert_each_has_its_own(host, credly)
    assert {row.attempts for row in host.rows()} == {1}
    assert sizes(credly) == [12, 12]


def test_a_scope_that_is_lacking_is_told_by_single_requests(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    credly.fail("batch", status=403)
    complete(host, 12)
    host.drain()

    assert_each_has_its_own(host, credly)
    assert (credly.count("batch"), credly.count("issue")) == (1, 12)
    assert not takes_batches(host)


def test_no_two_of_one_member_and_template_are_in_one_request(
    make_connected: MakeConnected, credly: CredlySimulator
) -> None:
    credly.badges_allowed, credly.posts_allowed = 2, 4
    host, _, template_id = make_connected(allow_duplicate_badges=True)
    accounts.add_mapping(host.state, COURSES[1], template_id)

    for number in range(8):
        host.complete(str(number))
        host.complete(str(number), COURSES[1].id)

    host.drain()
    rows = host.rows()

    assert {row.state for row in rows} == {"issued"}
    assert len({row.badge_id for row in rows}) == len(credly.badges) == 16
    assert sizes(credly) == [8, 8]


def test_two_members_at_one_address(connected: Connected) -> None:
    """Credly refuses the second, and the others for its sake."""
    host, credly, _ = connected
    complete(host, 5)
    twin = dataclasses.replace(a_member("twin"), email="Member-2@example.org")
    host.complete(member=twin)
    complete(host, 5, first=5)
    host.drain()
    rows = {row.member_id: row.state for row in host.rows()}

    # Whoever goes first has it.
    assert {rows.pop("twin"), rows.pop("2")} == {"held", "issued"}
    assert set(rows.values()) == {"issued"}
    assert len(credly.badges) == 10
    assert credly.problems == []


def test_what_is_in_doubt_goes_alone(connected: Connected) -> None:
    """A retry, what was looked up, and what a worker has died over."""
    host, credly, _ = connected
    complete(host, 12)
    session = host.db.session
    ids = [row.id for row in host.rows()]

    for these, values in (
        (ids[:3], {"attempts": 1}),
        (ids[3:6], {"outcome_unknown": True}),
        (ids[6:9], {"crashes": 1}),
    ):
        session.execute(
            sa.update(Issuance).where(Issuance.id.in_(these)).values(**values)
        )

    session.commit()
    host.drain()

    assert_each_has_its_own(host, credly)
    assert (credly.count("issue"), credly.count("batch")) == (12, 0)


@pytest.mark.usefixtures("no_short_pauses")
def test_one_badge_probes_after_an_outage(connected: Connected) -> None:
    host, credly, _ = connected
    credly.fail("*", times=None, status=503)
    complete(host, 300)
    host.drain()
    batches = credly.count("batch")
    open_again(host)
    host.drain()
    assert credly.count("batch") == batches
    credly.clear_faults()
    open_again(host)
    host.drain()

    assert credly.count("batch") > batches
    finish(host, credly)
    assert_each_has_its_own(host, credly)


def test_a_batch_is_one_request_to_the_pace(make_connected: MakeConnected) -> None:
    host, credly, _ = make_connected(CREDLY_MAX_PER_SECOND=10, CREDLY_CONCURRENCY=8)
    complete(host, 150)
    begun = time.time()
    host.drain()

    assert_each_has_its_own(host, credly)
    asked = [each for each in credly.received if each.kind == "batch"]
    assert len(asked) == 5
    # Not from the first one's arrival, which may be late.
    assert asked[-1].at - begun > 0.39


def test_an_answer_that_another_row_has_taken_is_looked_up(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be saved takes no other along."""
    host, credly, _ = connected
    complete(host, 12)
    from flask_credly.ledger import settle

    real = settle.settle

    def fail(engine: sa.Engine, settlements: t.Sequence[settle.Settlement]) -> None:
        if any(each.row.member_id == "3" for each in settlements):
            raise sa.exc.InternalError("", {}, Exception("disk full"))

        real(engine, settlements)

    with monkeypatch.context() as patched:
        patched.setattr(settle, "settle", fail)
        host.drain()

    states = collections.Counter(row.state for row in host.rows())
    assert states == {"issued": 11, "none": 1}
    host.let_lists_catch_up()
    host.drain()
    assert_each_has_its_own(host, credly)


def test_a_mapping_that_was_removed_meanwhile_sends_nothing(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, credly, _ = connected
    complete(host, 12)
    begin = claim.begin

    def remove_and_begin(*given: t.Any, **named: t.Any) -> t.Any:
        with host.state.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM credly_mapping"))

        return begin(*given, **named)

    monkeypatch.setattr(claim, "begin", remove_and_begin)
    host.drain()

    assert credly.badges == []
    assert {row.state for row in host.rows()} == {"cancelled"}
