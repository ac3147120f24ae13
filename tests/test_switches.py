"""What is not known of Credly is a switch of the simulator: one life of badges, under
each pair of positions of any two switches.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import datetime as dt
import itertools
import random
import typing as t

import pytest
from conftest import COURSES
from test_withdrawn import withdraw

from flask_credly import accounts
from flask_credly import jobs
from flask_credly.issuing.poll import poll_now
from flask_credly.issuing.verdict import BLOCKED
from flask_credly.ledger import actions
from flask_credly.ledger import polls
from flask_credly.ledger import retrying
from flask_credly.ledger import undos
from flask_credly.ledger.issuances import Filter
from flask_credly.models import Issuance
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator
from flask_credly.testing.manners import Manners
from tests.support import invariants
from tests.support.world import World
from tests.support.world import world as world

pytestmark = pytest.mark.slow

DAY = dt.timedelta(days=1)
START = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)

SWITCHES: dict[str, tuple[t.Any, ...]] = {
    "organization_mismatch_status": (404, 403),
    "organization_status": (403, 200),
    "unauthorized_body": ("empty", "html"),
    "unknown_filter": ("ignore", "refuse"),
    "ignored_filters": (
        set(),
        {"state", "badge_template_id", "issuer_earner_id"},
    ),
    "look_up_lag": (0.0, 45.0),
    "error_shape": ("message", "list"),
    "email_filter_finds_accepted": (True, False),
    "ignored_sorts": (set(), {"state_updated_at", "created_at"}),
    "pending_has_state_time": (False, True),
    "search_page_size": (100, 2),
    "search_next_address": ("", "https://elsewhere.example.org/v1/search"),
    "search_repeats_cursor": (False, True),
    "cursor_seconds": (3600.0, 0.0),
    "lost_cursor_status": (400, 404),
    "accepted_is_public": (True, False),
    "states_in_the_way": (
        {"pending", "accepted", "rejected"},
        {"pending", "accepted", "rejected", "revoked"},
        {"pending", "accepted"},
    ),
    "expired_is_in_the_way": (True, False),
    "states_not_revoked": ({"revoked"}, {"revoked", "rejected"}),
    "states_not_replaced": ({"rejected", "revoked"}, {"revoked"}),
    "expired_is_replaced": (True, False),
    "replace_status": (201, 200),
    "replace_may_double": (False, True),
    "batch_status": (201, 404, 405),
    "batch_answer": (
        *("as asked", "other order", "fewer", "more", "no names", "no list"),
    ),
    "batch_names_error": (True, False),
    "batch_keeps_first": (False, True),
}

NO_UNKNOWNS = {"latency", "granted_scopes", "posts_allowed", "badges_allowed", "lock"}
"""What a test sets for itself, and says nothing of Credly."""

Position = tuple[str, int]


def cover(switches: cabc.Mapping[str, cabc.Sized]) -> list[dict[str, int]]:
    """Find few sets of positions that hold each pair of positions of two switches: the
    best of some that are made greedily.
    """
    made = random.Random(1)
    positions = [(name, i) for name in switches for i in range(len(switches[name]))]
    rest = {
        frozenset(pair)
        for pair in itertools.combinations(positions, 2)
        if pair[0][0] != pair[1][0]
    }
    found = []

    while rest:
        count = collections.Counter(itertools.chain.from_iterable(rest))
        tries = [_one(positions, rest, count, made) for _ in range(4)]
        best = max(tries, key=lambda each: len(rest & _pairs(each)))
        rest -= _pairs(best)
        found.append(best)

    return found


def _one(
    positions: list[Position],
    rest: set[frozenset[Position]],
    count: collections.Counter[Position],
    made: random.Random,
) -> dict[str, int]:
    chosen: dict[str, int] = {}

    # In any order, but each after what was not decided by those before.
    for name, i in made.sample(positions, len(positions)):
        others = [each for each in positions if each[0] == name]

        if name not in chosen:
            chosen[name] = max(
                others,
                key=lambda each: (
                    sum(frozenset((each, one)) in rest for one in chosen.items()),
                    count[each],
                    each[1] == i,
                ),
            )[1]

    return chosen


def _pairs(chosen: dict[str, int]) -> set[frozenset[Position]]:
    return set(map(frozenset, itertools.combinations(chosen.items(), 2)))


COVERED = cover(SWITCHES)


def test_all_switches_there_are() -> None:
    assert set(SWITCHES) | NO_UNKNOWNS == set(Manners.__annotations__) | {"lock"}


def test_each_pair_of_positions_is_covered() -> None:
    usual = Manners(t.cast(t.Any, None))

    for name, positions in SWITCHES.items():
        assert positions[0] == getattr(usual, name)

    for one, two in itertools.combinations(SWITCHES, 2):
        met = {(each[one], each[two]) for each in COVERED}
        pairs = itertools.product(range(len(SWITCHES[one])), range(len(SWITCHES[two])))
        assert met == set(pairs)


class Life:
    """The life of a few badges, and who has a hand in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.host = world.host
        self.credly: CredlySimulator = world.credly
        self.engine = self.host.state.engine
        self.ordered: set[int] = set()

    def work(self, times: int = 3) -> None:
        """Let the workers do what is due."""
        for _ in range(times):
            self.host.drain()
            jobs.undo()
            self.world.advance(900)

        self.host.drain()

    def row(self, member_id: str) -> Issuance:
        """Get the last row of a member."""
        *_, row = (each for each in self.host.rows() if each.member_id == member_id)
        return row

    def complete(self, member_id: str, days: int = 0) -> None:
        course = COURSES[member_id == "renewed"]
        self.host.complete(member_id, course.id, completed_at=START + days * DAY)

    def revoke(self, member_id: str) -> None:
        row = self.row(member_id)
        self.ordered.add(row.id)
        actions.revoke(
            self.engine,
            "default",
            row.id,
            reason="A mistake.",
            tell=False,
            by="An admin",
        )

    def correct(self, member_id: str) -> None:
        row = self.row(member_id)
        actions.correct(
            self.engine,
            "default",
            row.id,
            first_name=row.first_name,
            last_name="Roe",
            completed_at=row.completed_at,
            template_id=row.template_id,
        )

    def issue_again(self, member_id: str) -> None:
        row = self.row(member_id)
        self.ordered.add(row.id)
        actions.issue_again(
            self.engine,
            "default",
            row.id,
            email=row.email,
            first_name=row.first_name,
            last_name=row.last_name,
            reason="Another address.",
            tell=True,
        )

    def undo(self, member_id: str) -> None:
        self.ordered |= {
            row.id for row in self.host.rows() if row.member_id == member_id
        }
        undos.start(
            self.engine,
            "default",
            undos.Selection(wanted=Filter(text=member_id)),
            number=9,
            reason="A mistake.",
            tell_pending=False,
            tell_accepted=False,
        )

    def answer(self, member_id: str, what: str) -> None:
        """Let the member accept or decline the badge."""
        badge_id = self.row(member_id).badge_id
        assert badge_id is not None
        getattr(self.credly, what)(badge_id)

    def violations(self) -> list[str]:
        """What must hold at each time, judged by Credly's book."""
        ordered = {row.badge_id for row in self.host.rows() if row.id in self.ordered}
        return [
            *invariants.twice_in_force(self.credly.badges_for(in_force=True)),
            *self.credly.problems,
            *(
                f"{badge['id']} was revoked, and nobody asked"
                for badge in self.credly.badges
                for each in self.credly.history(badge["id"])
                if (each.state, each.by) == ("revoked", "request")
                if badge["id"] not in ordered
            ),
        ]

    def end(self) -> list[str]:
        """Let everything come to its end. Get what is wrong then."""
        for _ in range(40):
            self.work(1)
            self.world.advance(4000)

            if all(row.action is None for row in self.host.rows()):
                break

        for row in self.host.rows():
            polls.ask_for(self.engine, "default", row.id)

        poll_now(self.host.state)
        rows = self.host.rows()
        known = {row.badge_id for row in rows}
        ours = [
            badge
            for badge in self.credly.badges
            if badge["id"] in known
            or self.credly.history(badge["id"])[0].by == "request"
        ]
        return [
            *invariants.unsettled(rows, self.host.attempts()),
            *invariants.differing(rows, ours),
            *self.violations(),
        ]


@pytest.mark.parametrize("number", range(len(COVERED)))
def test_a_life_under_each_pair_of_positions(world: World, number: int) -> None:
    world.begin_anew()
    life = Life(world)
    credly = life.credly

    for name, position in COVERED[number].items():
        setattr(credly, name, SWITCHES[name][position])

    set_up(life)

    # They are issued, of some the answer is lost, and are answered.
    for member_id in MEMBERS:
        life.complete(member_id)

    credly.fail("issue", how="reset", after=True)
    credly.fail("batch", how="reset", after=True, only=2)
    life.work()
    assert [row.state for row in life.host.rows()] == ["issued"] * len(MEMBERS)

    for member_id in ("accepted", "corrected"):
        life.answer(member_id, "accept")

    life.answer("declined", "reject")
    life.answer("wavering", "accept")
    life.answer("wavering", "reject")
    assert life.violations() == []

    # They are put right, and again the answer is lost.
    credly.fail("replace", how="reset", after=True)
    credly.fail("revoke", how="reset", after=True)

    for member_id in ("corrected", "pending"):
        life.correct(member_id)

    for member_id in ("accepted", "declined", "by-hand"):
        life.revoke(member_id)

    life.issue_again("moved")
    credly.revoke_badge(life.row("by-hand").badge_id or "")
    credly.replace_badge(life.row("replaced").badge_id or "")
    life.work()
    assert life.violations() == []

    # They go on: once more, again after a revocation, renewed, taken back, withdrawn.
    for member_id in ("accepted", "declined", "wavering", "by-hand"):
        life.issue_again(member_id)

    life.complete("renewed", 400)
    life.undo("undone")
    life.ordered.add(life.row("withdrawn").id)
    withdraw(life.host, "withdrawn", withdrawn_at=START + DAY)
    life.work()
    assert life.violations() == []
    credly.posts_allowed = 4  # by hand
    retrying.retry_all(life.engine, "default")
    life.complete("withdrawn", 2)

    assert life.end() == []
    # No badge is from elsewhere: where an earlier one is in the way, that is said.
    blocked = [row for row in life.host.rows() if row.state not in ("held", *ENDED)]
    assert [row.error for row in blocked] == [BLOCKED] * len(blocked)


ENDED = ("issued", "revoked", "replaced")
"""With "failed", all that can become of these badges."""

MEMBERS = (
    *("accepted", "corrected", "declined", "wavering", "by-hand", "moved"),
    *("pending", "replaced", "undone", "withdrawn", "renewed"),
)


def set_up(life: Life) -> None:
    once = life.credly.add_template("Once")
    yearly = life.credly.add_template("Yearly")
    state = life.host.state
    accounts.connect(
        state,
        organization_id=life.credly.organization_id,
        client_id=life.credly.client_id,
        client_secret=life.credly.client_secret,
    )

    for course, template, options in (
        (COURSES[0], once, Options(withdrawn="silent")),
        (COURSES[1], yearly, Options(again="renew", expires=12)),
    ):
        mapping = accounts.add_mapping(state, course, template)
        accounts.change_options(state, mapping.id, options)
