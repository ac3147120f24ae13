"""A member completes a course once more: what the mapping says of that."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import in_threads
from conftest import MakeConnected
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import course_completed
from flask_credly import PastCompletion
from flask_credly.issuing import backfill
from flask_credly.issuing import heal
from flask_credly.issuing.verdict import BLOCKED
from flask_credly.ledger import actions
from flask_credly.ledger import backfills
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.options import GAPS
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator

START = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)

Completion = tuple[dt.datetime, str | None]

both_ways = pytest.mark.parametrize("again", ["renew", "each"])


def set_again(host: Host, again: str, **options: t.Any) -> None:
    host.db.session.rollback()
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    options = Options(again=again, **options)  # type: ignore[assignment]
    accounts.change_options(host.state, mapping.id, t.cast(t.Any, options))


def rows_of(host: Host, member_id: str) -> list[Issuance]:
    return [row for row in host.rows() if row.member_id == member_id]


def recorded(host: Host, member_id: str = "42") -> list[Completion]:
    """What is in the ledger of a member, by cycle."""
    rows = rows_of(host, member_id)
    assert [row.cycle for row in rows] == list(range(1, len(rows) + 1))
    return [(row.completed_at, row.completion_id) for row in rows]


def model(again: str, sent: t.Iterable[Completion]) -> list[Completion]:
    """What is to be in the ledger: of the first completion, and of each that is no
    older than the last one and is not known.
    """
    found: list[Completion] = []

    for at, id_ in sent:
        last_at, last_id = found[-1] if found else (None, None)

        if last_at is None:
            found.append((at, id_))
        elif id_ is None:
            found += [(at, id_)] if at - last_at >= GAPS[again] else []
        elif id_ not in [known for _, known in found]:
            is_another = at > last_at or at == last_at and last_id is not None
            found += [(at, id_)] if is_another else []

    return found


def make_up(seed: int, number: int = 8) -> list[Completion]:
    """Make completions up, with doubles, in any order."""
    made = random.Random(seed)
    found: list[Completion] = []

    for _ in range(number):
        day = made.choice([0, 1, 2, 29, 30, 31, 60, 400])
        # Of two at the same time, too; and ids that differ by case alone.
        ids = [f"c{day}", f"C{day}"] if seed % 2 else []
        found.append((START + day * DAY, made.choice([None, *ids])))

    found += made.choices(found, k=3)
    made.shuffle(found)
    return found


@every_database
@both_ways
def test_whatever_comes_in_whichever_order(
    make_connected: MakeConnected, again: str
) -> None:
    host, _, _ = make_connected(allow_duplicate_badges=True)
    set_again(host, again)
    everything = {str(seed): make_up(seed) for seed in range(12)}

    for member_id, sent in everything.items():
        for at, id_ in sent:
            host.complete(member_id, completed_at=at, completion_id=id_)

    for member_id, sent in everything.items():
        found = recorded(host, member_id)
        assert found == model(again, sent), sent
        times = [at for at, _ in found]
        assert times == sorted(times)
        # The newest is there, or one that is hardly older.
        assert max(at for at, _ in sent) - times[-1] < GAPS[again]


@every_database
@both_ways
def test_a_backfill_comes_to_the_same_in_whichever_order(
    make_connected: MakeConnected, again: str
) -> None:
    everything = {str(seed): make_up(seed) for seed in range(12)}
    given = [
        PastCompletion(a_member(member_id), at, completion_id=id_)
        for member_id, sent in everything.items()
        for at, id_ in sent
    ]
    host, _, _ = make_connected(
        past_completions=lambda course, since: iter(given), allow_duplicate_badges=True
    )
    set_again(host, again)
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    mapping_id, course = mapping.id, accounts.course_of(mapping)
    host.db.session.rollback()
    numbers = []

    for seed in range(3):
        random.Random(seed).shuffle(given)
        numbers.append(backfill.preview(host.state, course).to_issue)
        backfills.start(host.state.engine, "default", mapping_id)
        backfill.run(host.state)
        numbers.append(len(host.rows()))

    # What is there is there, and what is previewed is recorded.
    assert numbers == [numbers[1], numbers[1], *(0, numbers[1]) * 2]

    for member_id, sent in everything.items():
        ordered = sorted(sent, key=_by_time)
        ordered = ordered[-1:] if again == "renew" else ordered
        assert recorded(host, member_id) == model(again, ordered), sent


def _by_time(each: Completion) -> tuple[dt.datetime, str]:
    return each[0], each[1] or ""


@every_database
@both_ways
def test_a_signal_that_comes_twice_at_once_opens_one_cycle(
    make_host: MakeHost, credly: CredlySimulator, again: str
) -> None:
    host = make_host()

    with host.app.app_context():
        connect(host, credly, allow_duplicate_badges=True)
        set_again(host, again)
        host.complete(completed_at=START, completion_id="first")

    for number, id_ in enumerate((None, "second", "third"), 1):
        at = START + number * 40 * DAY

        def send(at: dt.datetime = at, id_: str | None = id_) -> None:
            with host.app.app_context():
                course_completed.send(
                    host.app,
                    member=a_member(),
                    course_id="py-101",
                    completed_at=at,
                    completion_id=id_,
                )

        in_threads(*[send] * 4)

    with host.app.app_context():
        assert recorded(host) == [
            (START, "first"),
            (START + 40 * DAY, None),
            (START + 80 * DAY, "second"),
            (START + 120 * DAY, "third"),
        ]


@every_database
def test_once_is_once(make_connected: MakeConnected) -> None:
    host, _, _ = make_connected(allow_duplicate_badges=True)
    for number in range(3):
        host.complete(
            completed_at=START + number * 400 * DAY, completion_id=str(number)
        )

    assert recorded(host) == [(START, "0")]


def test_a_completion_in_the_hosts_transaction_goes_with_it(
    connected: Connected,
) -> None:
    host, _, _ = connected
    set_again(host, "renew")
    host.complete(completed_at=START)
    renamed = sa.update(Mapping).values(course_title="Python")

    for at in (START + 40 * DAY, START + 80 * DAY):
        host.db.session.execute(renamed)
        course_completed.send(
            host.app, member=a_member(), course_id="py-101", completed_at=at
        )

    host.db.session.rollback()
    assert len(host.rows()) == 1


@pytest.mark.parametrize("id_", ["", "x" * 192, 1.5, b"x", "\0", " "])
def test_an_id_of_a_completion_that_cannot_be_used_is_left_out(
    connected: Connected, id_: t.Any
) -> None:
    host, _, _ = connected
    host.complete(completion_id=id_)

    assert host.row().completion_id is None


class TestRenewing:
    @pytest.fixture
    def host(self, make_host: MakeHost, credly: CredlySimulator) -> t.Iterator[Host]:
        host = make_host()

        with host.app.app_context():
            connect(host, credly)
            set_again(host, "renew", expires=12)
            yield host

    def complete(self, host: Host, days: int) -> None:
        host.complete(completed_at=START + days * DAY)

    @every_database
    def test_the_badge_is_replaced(self, host: Host, credly: CredlySimulator) -> None:
        self.complete(host, 0)
        host.drain()
        credly.accept(host.row().badge_id or "")
        self.complete(host, 400)
        host.drain()

        old, new = host.rows()
        assert (old.state, old.replaced_by) == ("replaced", new.badge_id)
        assert (new.state, new.replaces, new.renewal) == ("issued", old.badge_id, True)
        (replaced,) = (each for each in credly.received if each.kind == "replace")
        body = t.cast(dict[str, t.Any], replaced.json)
        assert body["issued_at"] == "2025-03-06 12:00:00 +0000"
        assert body["expires_at"] == "2026-03-06 23:59:59 +0000"
        assert credly.count("issue") == 1

    def test_again_and_again(self, host: Host, credly: CredlySimulator) -> None:
        for number in range(4):
            self.complete(host, number * 400)
            host.drain()

        assert [row.state for row in host.rows()] == ["replaced"] * 3 + ["issued"]

    @every_database
    def test_it_is_what_the_course_is_mapped_to_when_it_is_sent(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        self.complete(host, 0)
        host.drain()
        self.complete(host, 400)
        other = credly.add_template("Another Badge")
        accounts.sync_templates(host.state)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        host.db.session.rollback()
        accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
        host.drain()

        old, new = host.rows()
        assert (old.state, new.state) == ("replaced", "issued")
        assert (new.template_id, new.badge_name) == (other, "Another Badge")
        assert credly.badges[1]["badge_template"]["id"] == other

        # What was issued stays what it is, whatever comes after it.
        accounts.change_mapping(host.state, mapping.id, COURSES[0], old.template_id)
        actions.revoke(
            host.state.engine, "default", new.id, reason="A reason.", tell=False
        )
        accounts.remove_mapping(host.state, mapping.id)
        host.drain()
        new = host.rows()[1]
        assert (new.state, new.template_id) == ("revoked", other)

    def test_a_lost_renewal_is_looked_up_as_what_it_was(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        self.complete(host, 0)
        host.drain()
        self.complete(host, 400)
        other = credly.add_template("Another Badge")
        accounts.sync_templates(host.state)
        credly.fail("replace", how="reset", after=True)
        host.drain()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        host.db.session.rollback()
        accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
        host.let_lists_catch_up()
        host.drain(2)

        old, new = host.rows()
        assert (old.state, new.state) == ("replaced", "issued")
        assert new.template_id == old.template_id
        assert len(credly.badges) == 2

    def test_one_that_waits_is_issued_first(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        self.complete(host, 0)
        self.complete(host, 400)
        self.complete(host, 800)
        host.drain()
        assert [row.state for row in host.rows()] == ["issued", "none", "none"]

        for _ in range(2):
            host.make_due()
            host.drain()

        assert [row.state for row in host.rows()] == ["replaced", "replaced", "issued"]
        assert credly.count("replace") == 2

    def test_one_that_has_expired_and_is_still_counted(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        credly.expired_is_replaced = False
        self.complete(host, 0)
        host.drain()
        self.complete(host, 400)
        host.drain(3)

        old, new = host.rows()
        assert (old.state, new.state, new.error) == ("issued", "failed", BLOCKED)

    @pytest.mark.parametrize("how", ["revoked", "failed", "rejected"])
    def test_where_there_is_none_one_is_issued(
        self, host: Host, credly: CredlySimulator, how: str
    ) -> None:
        if how == "failed":
            credly.fail("issue", status=422, times=2)

        credly.states_in_the_way = {"pending", "accepted"}
        credly.posts_allowed = 4
        self.complete(host, 0)
        host.drain(2)
        first = host.rows()[0]

        if how == "revoked":
            reason = "By mistake"
            actions.revoke(
                host.state.engine, "default", first.id, reason=reason, tell=False
            )
            host.drain()
        elif how == "rejected":
            credly.reject(first.badge_id or "")

        self.complete(host, 400)
        host.drain(3)

        *_, last = host.rows()
        assert (last.cycle, last.state, last.renewal) == (2, "issued", False)

    def test_what_was_taken_back_is_not_in_the_way_of_the_next(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        self.complete(host, 0)
        host.drain()
        self.complete(host, 400)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        template_id, course = mapping.template_id, accounts.course_of(mapping)
        accounts.remove_mapping(host.state, mapping.id)
        host.drain()
        assert [row.state for row in host.rows()] == ["issued", "cancelled"]

        accounts.add_mapping(host.state, course, template_id)
        set_again(host, "renew")
        self.complete(host, 400)
        host.drain()
        assert [row.state for row in host.rows()] == [
            *("replaced", "cancelled", "issued")
        ]

    def test_a_renewal_that_is_undone_and_done_again(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        self.complete(host, 0)
        host.drain()
        self.complete(host, 400)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        template_id, course = mapping.template_id, accounts.course_of(mapping)
        accounts.remove_mapping(host.state, mapping.id)
        host.drain()
        accounts.add_mapping(host.state, course, template_id, undo=True)
        host.drain()

        assert [row.state for row in host.rows()] == ["replaced", "issued"]

    def test_after_one_that_was_skipped_the_next_has_a_row_of_its_own(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        self.complete(host, 0)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        template_id, course = mapping.template_id, accounts.course_of(mapping)
        accounts.remove_mapping(host.state, mapping.id)
        host.drain()
        accounts.add_mapping(host.state, course, template_id)
        set_again(host, "renew")

        for _ in range(2):
            self.complete(host, 400)

        host.drain()
        assert [(row.cycle, row.state) for row in host.rows()] == [
            *((1, "cancelled"), (2, "issued"))
        ]


class TestEachTime:
    @pytest.fixture
    def host(self, make_host: MakeHost, credly: CredlySimulator) -> t.Iterator[Host]:
        host = make_host()

        with host.app.app_context():
            connect(host, credly, allow_duplicate_badges=True)
            set_again(host, "each")
            credly.badges_allowed = credly.posts_allowed = 3
            yield host

    def forbid(self, host: Host, credly: CredlySimulator, *, allow: bool) -> None:
        template_id = host.rows()[0].template_id
        credly.change_template(template_id, allow_duplicate_badges=allow)
        accounts.sync_templates(host.state)

    def test_a_badge_more(self, host: Host, credly: CredlySimulator) -> None:
        for number in range(3):
            host.complete(completed_at=START + number * DAY)

        host.drain()
        assert [row.state for row in host.rows()] == ["issued"] * 3
        assert len({row.badge_id for row in host.rows()}) == 3
        assert credly.count("replace") == 0

    @every_database
    def test_what_credly_would_refuse_is_held_back_until_it_does_not(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        host.complete(completed_at=START)
        host.drain()
        self.forbid(host, credly, allow=False)
        host.complete(completed_at=START + DAY)
        host.complete("43", completed_at=START)
        host.drain()
        host.make_due()
        host.drain()

        assert [
            (row.state, row.action, row.reason, row.due_at) for row in host.rows()
        ] == [
            ("issued", None, None, None),
            ("none", "issue", "no duplicates", None),
            ("issued", None, None, None),
        ]
        assert host.log() == []

        self.forbid(host, credly, allow=True)
        host.drain()
        assert [row.state for row in host.rows()] == ["issued"] * 3

    @every_database
    def test_what_is_held_back_can_renew(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        host.complete(completed_at=START)
        host.drain()
        self.forbid(host, credly, allow=False)
        host.complete(completed_at=START + DAY)
        host.drain()
        set_again(host, "renew")
        host.drain()

        assert [row.state for row in host.rows()] == ["replaced", "issued"]

    def test_one_that_is_not_in_force_is_in_nobodys_way(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        credly.fail("issue", status=422, times=2)
        host.complete(completed_at=START)
        host.drain(2)
        self.forbid(host, credly, allow=False)
        credly.posts_allowed = 3
        host.complete(completed_at=START + DAY)
        host.drain()

        assert [row.state for row in host.rows()] == ["failed", "issued"]


@every_database
@both_ways
def test_what_was_missed_is_added_and_nothing_twice(
    make_connected: MakeConnected, again: str
) -> None:
    now = dt.datetime.now(dt.UTC)
    days = itertools.count()
    given = [(a_member(), now - 3 * DAY), (a_member(), now)]
    host, _, _ = make_connected(
        past_completions=lambda course, since: given, allow_duplicate_badges=True
    )
    set_again(host, again)
    # Mapped long ago.
    host.db.session.execute(sa.update(Mapping).values(created_at=START))
    host.db.session.commit()
    host.complete(completed_at=now - 33 * DAY)
    next(days)

    for _ in range(2):
        heal.heal(host.state)

    expected = [now] if again == "renew" else [now - 3 * DAY, now]
    assert [at for at, _ in recorded(host)] == [now - 33 * DAY, *expected]
    runs = host.db.session.scalar(sa.text("SELECT count(*) FROM credly_batch"))
    assert runs == 1


def test_erasing_forgets_the_hosts_id_of_a_completion(connected: Connected) -> None:
    host, _, _ = connected
    host.complete(completion_id="enrolment-7")
    host.credly.erase_member("42")

    assert host.row().completion_id is None
