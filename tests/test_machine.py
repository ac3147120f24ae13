"""The ledger under any sequence of what can happen to it, found by Hypothesis: the
invariants hold after each step, and everything comes to an end.
"""

from __future__ import annotations

import collections
import typing as t

import pytest
import sqlalchemy as sa
from conftest import COURSES
from conftest import every_database
from hypothesis import stateful
from hypothesis import strategies as st

from flask_credly import accounts
from flask_credly import jobs
from flask_credly.credly import Client
from flask_credly.errors import CredlyError
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import issuances
from flask_credly.ledger import settle
from flask_credly.models import Batch
from tests.support import invariants
from tests.support.world import Died
from tests.support.world import KEYS
from tests.support.world import run_machine
from tests.support.world import World
from tests.support.world import world as world

pytestmark = pytest.mark.slow


MOODS: dict[str, dict[str, t.Any]] = {
    "fails": {"status": 500},
    "fails but books": {"status": 502, "after": True, "body": "<html>"},
    "is in trouble": {"status": 503},
    "is in trouble but books": {"status": 503, "after": True},
    "loses the answer": {"how": "reset", "after": True},
    "does not answer": {"how": "hang"},
    "books late": {"how": "late", "delay": 20},
    "answers in pieces": {"how": "truncate"},
    "refuses": {"status": 422},
    "forbids": {"status": 403},
    "asks to wait": {"status": 429, "headers": {"Retry-After": "30"}},
    "is silent about how long": {"status": 429},
}

# Where a worker dies: what is replaced, and whether the true one is called first.
POINTS: tuple[tuple[object, str, bool], ...] = (
    (claim, "claim", True),
    (claim, "begin", False),
    (claim, "begin", True),
    (Client, "find", True),
    (Client, "issue", False),
    (Client, "issue", True),
    (settle, "settle", False),
    (settle, "settle", True),
)

members = st.sampled_from(["1", "2", "3"])
courses = st.sampled_from(COURSES)
numbers = st.integers(0, 2)


class Ledger(stateful.RuleBasedStateMachine):
    """A host, its members, its admin, its workers, and Credly."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.begin_anew()
        self.host = self.world.host
        self.credly = self.world.credly
        self.credly.posts_allowed = 99
        self.templates = [
            self.credly.add_template("One"),
            self.credly.add_template("Two"),
            self.credly.add_template("Three", allow_duplicate_badges=True),
        ]
        self.completed: collections.Counter[tuple[str, str]] = collections.Counter()
        self.retries: collections.Counter[int] = collections.Counter()
        self.erased: dict[int, str] = {}
        self.lost_key = False
        self.on = True

    @property
    def connected(self) -> bool:
        return accounts.get(self.host.db.session, "default") is not None

    # The admin.

    @stateful.initialize()
    def set_up(self) -> None:
        self.connect()

        for number, course in enumerate(COURSES):
            self.map(course, number)

    def connect(self) -> None:
        self.credly.restore_client()
        self.credly.clear_faults()
        accounts.connect(
            self.host.state,
            organization_id=self.credly.organization_id,
            client_id=self.credly.client_id,
            client_secret=self.credly.client_secret,
        )
        self.lost_key = False

    def connect_another_organization(self) -> None:
        if not self.connected:
            return

        with pytest.raises(accounts.OtherOrganization):
            accounts.connect(
                self.host.state,
                organization_id="11111111-2222-4333-8444-555555555555",
                client_id=self.credly.client_id,
                client_secret=self.credly.client_secret,
            )

    def remove(self) -> None:
        accounts.remove(self.host.state)
        # As the request ends: SQLite gives the numbers of the rows once more.
        self.host.db.session.remove()

    def map(self, course: t.Any, number: int) -> None:
        try:
            accounts.add_mapping(self.host.state, course, self.templates[number])
        except (
            accounts.AlreadyMapped,
            accounts.NotConnected,
            accounts.UnknownTemplate,
        ):
            self.host.db.session.rollback()

    def change(self, number: int, template: int) -> None:
        for mapping in accounts.list_mappings(self.host.db.session, "default")[number:][
            :1
        ]:
            course = next(each for each in COURSES if each.id == mapping.course_id)
            accounts.change_mapping(
                self.host.state, mapping.id, course, self.templates[template]
            )

    def unmap(self, number: int) -> None:
        for mapping in accounts.list_mappings(self.host.db.session, "default")[number:][
            :1
        ]:
            accounts.remove_mapping(self.host.state, mapping.id)

    def retry(self) -> None:
        for row_id in [row.id for row in self.host.rows()]:
            self.retries[row_id] += issuances.retry(
                self.host.state.engine, "default", row_id
            )

    def erase(self, member: str) -> None:
        """The same id comes back later, as that of a new member."""
        mine = [row.id for row in self.host.rows() if row.member_id == member]
        erased = self.host.credly.erase_member(member)
        assert erased.badges == len(mine)
        self.erased |= dict.fromkeys(mine, member)

    def backfill(self, number: int) -> None:
        for mapping in accounts.list_mappings(self.host.db.session, "default")[number:][
            :1
        ]:
            backfills.start(self.host.state.engine, "default", mapping.id)

        jobs.backfill()

    def stop(self) -> None:
        runs = sa.select(Batch.id).order_by(Batch.id.desc())

        if run_id := self.host.db.session.scalar(runs):
            backfills.stop(self.host.state.engine, "default", run_id)

    def sync(self) -> None:
        if self.connected and not self.lost_key:
            try:
                accounts.sync_templates(self.host.state)
            except CredlyError:
                pass

    @stateful.rule(data=st.data())
    def administer(self, data: st.DataObject) -> None:
        """One rule for all, so that it does not come too often."""
        if not self.connected:
            self.set_up()
            return

        what = data.draw(
            st.sampled_from(
                [
                    *("map", "change", "unmap", "connect", "other", "sync"),
                    *("retry", "switch", "backfill", "stop", "erase", "remove"),
                ]
            )
        )

        if what == "map":
            self.map(data.draw(courses), data.draw(numbers))
        elif what == "change":
            self.change(data.draw(numbers), data.draw(numbers))
        elif what == "unmap":
            self.unmap(data.draw(numbers))
        elif what == "connect":
            self.connect()
        elif what == "other":
            self.connect_another_organization()
        elif what == "sync":
            self.sync()
        elif what == "switch":
            self.on = not self.on
            gates.switch(self.host.state.engine, "default", on=self.on)
        elif what == "retry":
            self.retry()
        elif what == "erase":
            self.erase(data.draw(members))
        elif what == "backfill":
            self.backfill(data.draw(numbers))
        elif what == "stop":
            self.stop()
        else:
            self.remove()

    # The members.

    @stateful.rule(member=members, course=courses, times=st.integers(1, 2))
    def complete(self, member: str, course: t.Any, times: int) -> None:
        mappings = accounts.list_mappings(self.host.db.session, "default")
        mapped = {each.course_id: each.template_id for each in mappings}
        self.host.db.session.remove()

        for _ in range(times):
            self.host.complete(member, course.id, kind=course.kind)

        mine = [
            row
            for row in self.host.rows()
            if (row.member_id, row.course_id) == (member, course.id)
        ]
        assert len(mine) == 1 or (not mine and course.id not in mapped)

    # The workers.

    @stateful.rule(seconds=st.sampled_from([0, 0, 61, 61, 601, 7201]))
    def drain(self, seconds: int) -> None:
        self.world.advance(seconds)
        self.host.drain()

    @stateful.rule(point=st.sampled_from(POINTS))
    def die_in_a_drain(self, point: tuple[object, str, bool]) -> None:
        owner, name, after = point
        true = getattr(owner, name)

        def die(*args: t.Any, **given: t.Any) -> t.NoReturn:
            if after:
                try:
                    true(*args, **given)
                except CredlyError:
                    pass

            raise Died

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, die)

            try:
                self.host.drain()
            except Died:
                self.host.db.session.remove()

    # Time, Credly, and the keys.

    @stateful.rule(
        mood=st.sampled_from(sorted(MOODS)),
        kind=st.sampled_from(["issue", "issue", "look-up"]),
        times=st.integers(1, 3),
    )
    def change_mood(self, mood: str, kind: t.Any, times: int) -> None:
        if kind == "look-up" and "late" in mood:
            return

        self.credly.fail(kind, times=times, **MOODS[mood])

    def trouble_the_token_endpoint(self, status: int) -> None:
        self.credly.fail("token", status=status)

    def calm_down(self) -> None:
        self.credly.clear_faults()

    def revoke_tokens(self) -> None:
        self.credly.revoke_tokens()

    def revoke_client(self) -> None:
        self.credly.revoke_client()

    def rotate_key(self, number: int) -> None:
        keys = self.host.app.config["CREDLY_ENCRYPTION_KEYS"]
        self.host.app.config["CREDLY_ENCRYPTION_KEYS"] = [KEYS[number], *keys]

    def lose_keys(self) -> None:
        self.host.app.config["CREDLY_ENCRYPTION_KEYS"] = [KEYS[0]]
        self.lost_key = True

    @stateful.rule(data=st.data())
    def trouble(self, data: st.DataObject) -> None:
        what = data.draw(
            st.sampled_from(["tokens", "endpoint", "rotate", "calm", "client", "keys"])
        )

        if what == "tokens":
            self.revoke_tokens()
        elif what == "endpoint":
            self.trouble_the_token_endpoint(data.draw(st.sampled_from([429, 500, 503])))
        elif what == "rotate":
            self.rotate_key(data.draw(st.integers(1, 5)))
        elif what == "calm":
            self.calm_down()
        elif what == "client":
            self.revoke_client()
        else:
            self.lose_keys()

    # What must hold.

    def violations(self) -> list[str]:
        rows, attempts = self.host.rows(), self.host.attempts()
        book = invariants.read_book(self.credly.badges, lambda address: address[7:-12])
        return [
            *invariants.duplicated(
                each for each in book if each.template_id != self.templates[2]
            ),
            *self.too_many_of_the_third(rows, book),
            *invariants.false_issued([row for row in rows if not row.erased_at], book),
            *invariants.too_many_posts(rows, attempts, {}, self.retries),
        ]

    def too_many_of_the_third(
        self, rows: invariants.Rows, book: list[invariants.Booked]
    ) -> list[str]:
        """Where Credly allows it, each course has its own badge, and no more."""
        third = self.templates[2]
        held = collections.Counter(
            each.member_id for each in book if each.template_id == third
        )
        due = collections.Counter(
            self.erased[row.id] if row.erased_at else row.member_id
            for row in rows
            if row.template_id == third
        )
        return [
            f"{member} has {number} badges for {due[member]} courses"
            for member, number in held.items()
            if number > due[member]
        ]

    @stateful.invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "credly"):
            assert self.violations() == []

    def teardown(self) -> None:
        """Everything is well again: then all that waits comes to an end."""
        if self.connected:
            self.connect()
            gates.switch(self.host.state.engine, "default", on=True)

            for _ in range(60):
                self.world.advance(4000)
                self.host.drain()

                if not invariants.unsettled(self.host.rows(), self.host.attempts()):
                    break

            rows, attempts = self.host.rows(), self.host.attempts()
            assert invariants.unsettled(rows, attempts) == []

            failed = {row.id for row in rows if row.state == "failed"}
            told = [entry for entry in self.host.log() if "failed" in entry[0]]
            known = len(failed) + self.retries.total() + len(self.erased)
            assert len(told) <= known

        assert self.violations() == []


@every_database
def test_any_sequence_of_events(world: World) -> None:
    run_machine(Ledger, world)
