"""The whole life of badges under any sequence of what can happen to them: members who
complete, accept and decline, an issuer at work in Credly, an admin who revokes,
corrects and issues again, workers that die, and a Credly in every mood.

Judged by Credly's book.
"""

from __future__ import annotations

import collections
import os
import typing as t

import pytest
from conftest import COURSES
from conftest import every_database
from hypothesis import stateful
from hypothesis import strategies as st
from test_machine import MOODS

from flask_credly import accounts
from flask_credly.credly import Client
from flask_credly.issuing.poll import poll_now
from flask_credly.ledger import actions
from flask_credly.ledger import claim
from flask_credly.ledger import issuances
from flask_credly.ledger import polls
from flask_credly.ledger import settle
from flask_credly.models import Issuance
from flask_credly.testing.rules import Refusal
from tests.support import invariants
from tests.support.world import Died
from tests.support.world import run_machine
from tests.support.world import World
from tests.support.world import world as world

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("CREDLY_TEST_EXAMPLES", "12"))

POINTS: tuple[tuple[object, str, bool], ...] = (
    (claim, "claim", True),
    (claim, "begin", False),
    (claim, "begin", True),
    (Client, "badge", True),
    (Client, "issue", True),
    (Client, "revoke", False),
    (Client, "revoke", True),
    (Client, "replace", False),
    (Client, "replace", True),
    (settle, "settle", False),
    (settle, "settle", True),
)

KINDS = ("issue", "look-up", "badge")

moods = st.sampled_from([None, None, *sorted(MOODS)])
"""How Credly answers what an admin has done. Drawn with it, or the two would seldom
meet.
"""


class Lives(stateful.RuleBasedStateMachine):
    """A host, its members, its admin, its workers, and Credly."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.begin_anew()
        self.host = self.world.host
        self.credly = self.world.credly
        self.credly.posts_allowed = 99
        self.credly.badges_allowed = 99
        self.once = self.credly.add_template("Once")
        self.often = self.credly.add_template("Often", allow_duplicate_badges=True)
        self.ordered: set[str] = set()
        self.engine = self.host.state.engine

    @stateful.initialize()
    def set_up(self) -> None:
        accounts.connect(
            self.host.state,
            organization_id=self.credly.organization_id,
            client_id=self.credly.client_id,
            client_secret=self.credly.client_secret,
        )

        for course, template in zip(COURSES, (self.once, self.often), strict=False):
            accounts.add_mapping(self.host.state, course, template)

        for member in ("1", "2"):
            for course in (0, 1):
                self.complete(member, course)

        self.host.drain()

    def some(self, number: int) -> Issuance | None:
        rows = self.host.rows()
        return rows[number % len(rows)] if rows else None

    # The members.

    @stateful.rule(member=st.sampled_from(["1", "2"]), course=st.integers(0, 1))
    def complete(self, member: str, course: int) -> None:
        self.host.complete(member, COURSES[course].id, kind=COURSES[course].kind)

    @stateful.rule(number=st.integers(0, 9), accepts=st.booleans())
    def answer(self, number: int, accepts: bool) -> None:
        if badges := self.credly.badges:
            badge_id = badges[number % len(badges)]["id"]

            try:
                (self.credly.accept if accepts else self.credly.reject)(badge_id)
            except ValueError:
                pass  # it is not to be accepted or declined any more

    # The issuer, in Credly's own pages.

    @stateful.rule(number=st.integers(0, 9), revokes=st.booleans())
    def change_by_hand(self, number: int, revokes: bool) -> None:
        if badges := self.credly.badges:
            badge_id = badges[number % len(badges)]["id"]

            try:
                if revokes:
                    self.credly.revoke_badge(badge_id)
                else:
                    self.credly.replace_badge(badge_id, issued_to_last_name="By hand")
            except (ValueError, Refusal):
                pass

    # The admin.

    def meet(self, kind: t.Any, mood: str | None, at_once: bool) -> None:
        if mood:
            self.credly.fail(kind, **MOODS[mood])

        if at_once:
            self.host.drain()

    @stateful.rule(
        number=st.integers(0, 9), tell=st.booleans(), mood=moods, at_once=st.booleans()
    )
    def revoke(self, number: int, tell: bool, mood: str | None, at_once: bool) -> None:
        if row := self.some(number):
            done = actions.revoke(
                self.engine, "default", row.id, reason="A reason.", tell=tell
            )

            if done == "revoke":
                assert row.badge_id is not None
                self.ordered.add(row.badge_id)

        self.meet("revoke", mood, at_once)

    @stateful.rule(
        number=st.integers(0, 9),
        mood=moods,
        at_once=st.booleans(),
        name=st.sampled_from(["Roe", "Doe"]),
    )
    def correct(self, number: int, name: str, mood: str | None, at_once: bool) -> None:
        if row := self.some(number):
            actions.correct(
                self.engine,
                "default",
                row.id,
                first_name=row.first_name,
                last_name=name,
                completed_at=row.completed_at,
                template_id=row.template_id,
            )

        self.meet("replace", mood, at_once)

    @stateful.rule(number=st.integers(0, 9), mood=moods, at_once=st.booleans())
    def issue_again(self, number: int, mood: str | None, at_once: bool) -> None:
        if row := self.some(number):
            new_id = actions.issue_again(
                self.engine,
                "default",
                row.id,
                email=row.email,
                first_name=row.first_name,
                last_name=row.last_name,
                reason="A reason.",
                tell=False,
            )

            if new_id and actions.is_in_force(row):
                assert row.badge_id is not None
                self.ordered.add(row.badge_id)

        self.meet("revoke", mood, at_once)

    @stateful.rule(number=st.integers(0, 9))
    def retry(self, number: int) -> None:
        if row := self.some(number):
            issuances.retry(self.engine, "default", row.id)

    # The workers.

    @stateful.rule(seconds=st.sampled_from([0, 61, 601]))
    def drain(self, seconds: int) -> None:
        self.world.advance(seconds)
        self.host.drain()

    @stateful.rule(seconds=st.sampled_from([0, 901]))
    def poll(self, seconds: int) -> None:
        self.world.advance(seconds)
        poll_now(self.host.state)

    @stateful.rule(point=st.sampled_from(POINTS))
    def die_in_a_drain(self, point: tuple[object, str, bool]) -> None:
        owner, name, after = point
        true = getattr(owner, name)

        def die(*args: t.Any, **given: t.Any) -> t.NoReturn:
            if after:
                true(*args, **given)

            raise Died

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, die)

            try:
                self.host.drain()
            except Died:
                pass

            self.host.db.session.remove()

    # Credly.

    @stateful.rule(
        mood=st.sampled_from(sorted(MOODS)),
        kind=st.sampled_from(KINDS),
        times=st.integers(1, 3),
    )
    def change_mood(self, mood: str, kind: t.Any, times: int) -> None:
        if "late" in mood and kind in ("look-up", "badge"):
            return

        self.credly.fail(kind, times=times, **MOODS[mood])

    @stateful.rule()
    def calm_down(self) -> None:
        self.credly.clear_faults()

    # What must hold.

    def violations(self) -> list[str]:
        in_force = collections.Counter[tuple[str, str]]()
        found = []

        for badge in self.credly.badges:
            last = self.credly.history(badge["id"])

            for each in last:
                if (each.state, each.by) == ("revoked", "request"):
                    if badge["id"] not in self.ordered:
                        found.append(f"{badge['id']} was revoked, and nobody asked")

            if (
                badge["state"] in ("pending", "accepted")
                and not badge["replacement_badge_id"]
            ):
                who = (badge["recipient_email"], badge["badge_template"]["id"])
                in_force[who] += 1

        found += [
            f"{who} has {n} badges in force" for who, n in in_force.items() if n > 1
        ]
        return found

    @stateful.invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "engine"):
            assert self.violations() == []

    def teardown(self) -> None:
        """Everything is well again. Then the ledger says what the book says."""
        self.credly.clear_faults()

        for _ in range(60):
            self.world.advance(4000)
            self.host.drain()
            rows = self.host.rows()

            if all(row.action is None for row in rows):
                break

        assert invariants.unsettled(self.host.rows(), self.host.attempts()) == []

        for row in rows:
            polls.ask_for(self.engine, "default", row.id)

        assert poll_now(self.host.state)
        book = {badge["id"]: badge for badge in self.credly.badges}
        rows = self.host.rows()

        for row in rows:
            assert (row.badge_id is not None) == (
                row.state in ("issued", "revoked", "replaced")
            ), (row.id, row.state, row.badge_id)

            if row.badge_id is not None:
                badge = book[row.badge_id]
                replaced = badge["replacement_badge_id"] is not None
                assert (row.badge_state, row.replaced_by) == (
                    badge["state"],
                    badge["replacement_badge_id"],
                )
                expected = "revoked" if badge["state"] == "revoked" else "issued"
                assert row.state == ("replaced" if replaced else expected), row.id

        known = {row.badge_id for row in rows}
        strangers = {
            badge_id
            for badge_id in book
            if badge_id not in known
            and self.credly.history(badge_id)[0].by == "request"
        }
        assert strangers == set()
        assert self.violations() == []
        assert self.credly.problems == []


@every_database
def test_any_life(world: World) -> None:
    run_machine(Lives, world, EXAMPLES)
