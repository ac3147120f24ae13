"""Several communities, two of them of one organization of Credly's: members who
complete a course again and again, in any order, and withdraw; admins who revoke,
correct, issue again, drop, stop and remove; an issuer at work in Credly's own pages;
polls that see what happened late, in another order or not at all; and hosts that commit
late. Each with something else between any two transactions of a worker.

Judged by Credly's book, and by what was promised to whom.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import os
import random
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import COURSES
from conftest import every_database
from conftest import MakeHost
from test_machine import MOODS

from flask_credly.issuing import backfill
from flask_credly.issuing import dispatcher
from flask_credly.issuing import poll
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import polls
from flask_credly.ledger import removing
from flask_credly.ledger import retention
from flask_credly.ledger import runs
from flask_credly.ledger import settle
from flask_credly.ledger import withdrawals
from flask_credly.ledger.reasons import explain
from flask_credly.models import Account
from flask_credly.models import Attempt
from flask_credly.models import AuditEntry
from flask_credly.models import Batch
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Mapping
from flask_credly.models import ToCheck
from tests.support import invariants
from tests.support.communities import About
from tests.support.communities import Badge
from tests.support.communities import BY
from tests.support.communities import Communities
from tests.support.communities import Key
from tests.support.communities import TENANTS
from tests.support.communities import Who
from tests.support.midst import HOOK
from tests.support.midst import Moment
from tests.support.midst import REQUEST
from tests.support.midst import run_examples
from tests.support.world import make_world
from tests.support.world import World

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("CREDLY_TEST_EXAMPLES", "8"))

STEPS_OF_ONE = 50

MOMENTS: dict[str, tuple[Moment, ...]] = {
    "drain": (
        *3 * (REQUEST,),
        (claim, "_find"),
        (claim, "claim"),
        (claim, "begin"),
        (claim, "hold"),
        (claim, "follow_mapping"),
        (settle, "cancel"),
        (settle, "cancel_unmapped"),
        (settle, "fail"),
        (settle, "settle"),
        (withdrawals, "release"),
    ),
    "poll": (
        *2 * (REQUEST,),
        (polls, "take"),
        (polls, "take_survey"),
        (polls, "learn"),
        (polls, "to_tell"),
        (polls, "note_told"),
        (polls, "finish"),
        (polls, "checked"),
    ),
    "backfill": (HOOK, (backfills, "add"), (backfills, "finish")),
    "remove": ((removing, "step"),),
}

OF_HOSTS = (*5 * ("complete",), "complete_silently", *2 * ("withdraw",), "erase")
OF_EARNERS = ("accept", "accept", "decline", "revoke_by_hand", "replace_by_hand")
OF_ADMINS = (
    *3 * ("revoke", "correct", "issue_again"),
    *2 * ("retry", "decide", "check", "backfill", "stop_backfill"),
    *("unmap", "change_badge", "change_again", "pause"),
    *3 * ("map_again", "resume"),
)
OF_ALL = ("remove", "connect")

GROUPS = {
    **dict.fromkeys(range(8), OF_HOSTS),
    **dict.fromkeys(range(8, 11), OF_EARNERS),
    **dict.fromkeys(range(11, 20), OF_ADMINS),
    20: OF_ALL,
    **dict.fromkeys((21, 22), ("late",)),
}
"""What is done next, some of it more often; or :data:`ELSE`."""

ELSE = (
    *20 * ("let_work",),
    *4 * ("let_time_pass",),
    *2 * ("change_mood",),
    "change_news",
)


@pytest.fixture
def world(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> cabc.Iterator[World]:
    monkeypatch.setattr(removing, "PORTION", 2)
    monkeypatch.setattr(backfill, "CHUNK", 2)
    monkeypatch.setattr(withdrawals, "MOST", 3)
    # One request and one community at a time, or the order would be another each time.
    monkeypatch.setattr(dispatcher, "_lanes", lambda state: 0)

    with make_world(
        make_host,
        monkeypatch,
        tenant=lambda: None,
        past_completions=lambda course, since, tenant: made.past((tenant, course)),
        CREDLY_CONCURRENCY=1,
        CREDLY_BATCH_SIZE=2,
    ) as made:
        yield made


class Anything(Communities):
    """What is done in which order, and what must hold."""

    def __init__(self, world: World) -> None:
        # Rows that were revoked, and the badge of each row as it was last.
        self.revoked: set[Key] = set()
        self.badges: dict[Key, tuple[str, str | None]] = {}
        super().__init__(world)

    def go_on(self, seed: int) -> None:
        """Do anything."""
        chance = random.Random(seed)
        about = self.about(chance)
        names = GROUPS.get(chance.randrange(len(GROUPS) + len(ELSE)))

        if not self.is_connected(about.tenant) and chance.random() < 0.5:
            self.do("connect", about)
        elif names is None:
            getattr(self, chance.choice(ELSE))(chance)
        elif names is OF_HOSTS:
            for _ in range(chance.randrange(1, 4)):
                self.do(chance.choice(names), self.about(chance))
        else:
            self.do(chance.choice(names), about)

            # What follows it is rather about what it has come to.
            if names is OF_ADMINS and chance.random() < 0.5:
                self.work("drain")

    def about(self, chance: random.Random) -> About:
        # Few, so that they meet.
        return About(
            chance.choice((*3 * TENANTS[:1], *2 * TENANTS[1:2], TENANTS[2])),
            chance.choice((0, 0, 0, 1)),
            chance.randrange(len(COURSES)),
            chance.randrange(1000),
        )

    # The workers.

    def work(self, kind: str) -> None:
        app_state = self.host.app.extensions["credly"]

        if kind == "drain":
            self.host.drain()
        elif kind == "poll":
            self.is_polling = True

            try:
                poll.poll(app_state)
            finally:
                self.is_polling = False
        elif (run := runs.take(self.engine, t.cast(t.Any, kind))) is not None:
            if kind == "backfill":
                backfill.record_or_fail(app_state.of(run.tenant), run)
            else:
                while removing.step(self.engine, run) == "more":
                    pass

        self.host.db.session.remove()

    def let_work(self, chance: random.Random) -> None:
        kinds = ["drain", "drain", "drain", "poll"]

        for each in ("backfill", "remove"):
            if runs.due_for(self.engine, t.cast(t.Any, each)):
                kinds += 3 * [each]

        kind = chance.choice(kinds)

        if kind == "poll":
            self.let_something_become(chance)
        elif kind == "drain":
            self.let_something_wait(chance)

        moment = chance.choice(MOMENTS[kind])
        after = chance.random() < 0.5
        name = chance.choice((*OF_HOSTS, *OF_EARNERS, *OF_ADMINS, *OF_ALL))
        luck = chance.random()
        # It dies at some, and nothing happens at others.
        what = (name, self.choose(chance)) if luck > 0.2 else None
        when = f"{'after' if after else 'before'} {moment[1]}"
        self.story.append(f"{kind}, {when} {what}" if luck < 0.85 else kind)

        with self.meet(moment if luck < 0.85 else None, after, what):
            self.work(kind)

    def let_something_wait(self, chance: random.Random) -> None:
        while chance.random() < 0.8:
            about = self.about(chance)
            names = ("complete", "revoke", "correct", "issue_again", "withdraw")
            self.do(chance.choice(names), about)

        self.world.advance(chance.choice((0, 0, 61)))

    def let_something_become(self, chance: random.Random) -> None:
        while chance.random() < 0.7:
            self.do(chance.choice(OF_EARNERS), self.about(chance))

        if chance.random() < 0.5:
            self.change_news(chance)

        self.world.advance(901)

    def choose(self, chance: random.Random) -> About:
        """Choose to whom something happens: rather one about whom something is done."""
        about = self.about(chance)
        busy = [
            row
            for row in self.rows()
            if row.action and row.member_id in self.members[row.tenant]
        ]

        if not busy or chance.random() < 0.3:
            return about

        tenant, member, course = self.who(chance.choice(busy))
        return About(tenant, self.members[tenant].index(member), course, about.number)

    # Time, and Credly.

    def let_time_pass(self, chance: random.Random) -> None:
        self.world.advance(chance.choice([6, 61, 901, 4000, 100_000]))

    def change_mood(self, chance: random.Random) -> None:
        mood = chance.choice(sorted(set(MOODS) - {"books late"}))
        kinds = ("issue", "batch", "look-up", "badge", "revoke", "replace", "search")
        organization = self.at_credly[chance.choice(TENANTS)]
        organization.fail(t.cast(t.Any, chance.choice(kinds)), **MOODS[mood])

    def change_news(self, chance: random.Random) -> None:
        how = chance.choice(("lost", "late", "other order"))
        self.news = (how, chance.randrange(1, 4))

    # What must hold.

    def violations(self) -> list[str]:
        rows = [row for row in self.rows() if row.erased_at is None]
        issued = list(self.issued())
        return [
            *self.too_many(issued),
            *self.unasked(issued),
            *self.come_back(rows),
            *self.not_their_own(rows, issued),
            *self.wrongly_noted(),
            *self.named(),
        ]

    def nothing_is_broken(self) -> None:
        assert self.violations() == []

    def is_known(self, who: Who) -> bool:
        return who[:2] not in self.gone | self.unsure

    def in_force(self, issued: list[tuple[Who, Badge]]) -> collections.Counter[Who]:
        there = {
            badge["id"]
            for each in self.credly.organizations
            for badge in each.badges_for(in_force=True)
        }
        return collections.Counter(who for who, badge in issued if badge["id"] in there)

    def too_many(self, issued: list[tuple[Who, Badge]]) -> cabc.Iterator[str]:
        """A badge for each completion, or for the first, and those that admins asked
        for besides. One in force, unless each completion gives one.
        """
        there = self.in_force(issued)

        for who, number in collections.Counter(who for who, _ in issued).items():
            if not self.is_known(who):
                continue

            known = self.known[who]
            completed = len(known.sent) if who[2] else min(1, len(known.sent))

            if number > completed + known.more:
                yield f"{who} got {number}, and {completed} + {known.more} were due"

            if there[who] > (len(known.sent) if who[2] == 2 else 1):
                yield f"{who} has {there[who]} in force"

    def unasked(self, issued: list[tuple[Who, Badge]]) -> cabc.Iterator[str]:
        """What was revoked although nobody wanted it."""
        revoked = collections.Counter(
            who
            for who, badge in issued
            if badge["id"] not in self.ordered
            and ("revoked", "request")
            in [(e.state, e.by) for e in self.at_credly[who[0]].history(badge["id"])]
        )

        for who, number in revoked.items():
            wanted = len(self.known[who].withdrawn) if self.is_known(who) else number

            if number > wanted:
                yield f"{number} of {who} were revoked, and {wanted} withdrawn"

    def come_back(self, rows: list[Issuance]) -> cabc.Iterator[str]:
        """What was over, and is not any more."""
        by_key = {self.key(row): row for row in rows}

        for key in self.dropped & set(by_key):
            if (row := by_key[key]).state != "cancelled" or row.action:
                yield f"{key} was dropped, and is {row.state} {row.action}"

        for row in rows:
            if row.badge_id and row.replaces in self.to_end and not row.renewal:
                yield f"{self.key(row)} is in the place of what was to be revoked"

        for key in self.revoked & set(by_key):
            if (state := by_key[key].state) not in ("revoked", "replaced"):
                yield f"{key} was revoked, and is {state}"

        for key in set(self.badges) & set(by_key):
            before, row = self.badges[key], by_key[key]

            if row.badge_id != before[0]:
                yield f"{key} has another badge than before"
            elif before[1] != row.badge_state and (
                before[1] == "revoked" or row.badge_state == "pending"
            ):
                yield f"{key} was {before[1]}, and is {row.badge_state}"

        self.dropped &= set(by_key)
        self.revoked = {key for key, row in by_key.items() if row.state == "revoked"}
        self.badges = {
            key: (row.badge_id, row.badge_state)
            for key, row in by_key.items()
            if row.badge_id is not None
        }

    def not_their_own(
        self, rows: list[Issuance], issued: list[tuple[Who, Badge]]
    ) -> cabc.Iterator[str]:
        """Rows that have somebody else's badge."""
        whose = {badge["id"]: who for who, badge in issued}

        for row in rows:
            if (who := whose.get(row.badge_id or "")) not in (None, self.who(row)):
                yield f"{self.who(row)} has a badge of {who}"

    def wrongly_noted(self) -> cabc.Iterator[str]:
        """What was done and does not stand in the audit trail, or more than once."""
        what = (AuditEntry.tenant, AuditEntry.action)

        with sa.orm.Session(self.engine) as session:
            query = sa.select(*what, sa.func.count()).group_by(*what)
            these = (AuditEntry.actor == BY, AuditEntry.outcome == "ok")
            found = session.execute(query.where(*these)).all()

        noted = {(tenant, action): number for tenant, action, number in found}

        for each in {*noted, *self.noted}:
            if noted.get(each, 0) != self.noted[each]:
                number = noted.get(each, 0)
                yield f"{each}: done {self.noted[each]} times, noted {number}"

    def named(self) -> cabc.Iterator[str]:
        """Where members are named that were erased."""
        with sa.orm.Session(self.engine) as session:
            texts = [
                (tenant, text or "")
                for query in (
                    sa.select(Issuance.tenant, Issuance.email),
                    sa.select(LogEntry.tenant, LogEntry.details),
                    sa.select(Attempt.tenant, Attempt.detail),
                )
                for tenant, text in session.execute(query)
            ]
            ids = session.execute(sa.select(Issuance.tenant, Issuance.member_id)).all()

        for tenant, member in self.gone:
            email = a_member(member).email

            if (tenant, member) in ids or any(
                of == tenant and email in text for of, text in texts
            ):
                yield f"{member} of {tenant} was erased, and is named"

    # The end.

    def teardown(self) -> None:
        """Everything is well again, and all comes to its end."""
        for each in self.credly.organizations:
            each.clear_faults()

        self.news = ("", 0)

        for tenant in TENANTS:
            self.do("resume", About(tenant))

        self.let_all_end()
        self.let_polls_read_all()
        self.let_checks_read_what_was_replaced()
        self.let_all_end()
        assert self.violations() == []
        assert self.credly.problems == []
        issued = list(self.issued())

        for tenant in TENANTS:
            if self.is_connected(tenant):
                self.check_shown(tenant, issued)
                self.check_promises(tenant, issued)
            else:
                self.check_removed(tenant)

    def let_all_end(self) -> None:
        for number in range(40):
            self.world.advance(4000)

            while runs.due_for(self.engine, "remove"):
                self.work("remove")

            for kind in ("backfill", "drain"):
                self.work(kind)

            if not number % 5:
                self.work("poll")

            if not (left := self.left()):
                return

        raise AssertionError(left)

    def left(self) -> list[str]:
        """Say what is not at rest, and for what nobody has to decide."""
        with sa.orm.Session(self.engine) as session:
            is_open = sa.or_(Batch.due_at.is_not(None), Batch.lease.is_not(None))
            found = session.scalars(sa.select(Batch).where(is_open))
            runs_left = [f"{each.verb} {each.state}" for each in found]

        return runs_left + invariants.unsettled(
            [
                row
                for row in self.rows()
                if row.reason != "awaits approval" and self.is_connected(row.tenant)
            ]
        )

    def let_polls_read_all(self) -> None:
        begun_at = self.now()

        for _ in range(20):
            self.world.advance(100_000)
            self.work("poll")

            with sa.orm.Session(self.engine) as session:
                query = sa.select(Account.survey_due_at, Account.surveyed_at)
                found = session.execute(query).all()

            if all(not due_at or (at and at > begun_at) for due_at, at in found):
                return

        raise AssertionError("Not all badges were read.")

    def let_checks_read_what_was_replaced(self) -> None:
        """By hand: no list says so of all."""
        by_hand = {
            id_
            for each in self.credly.organizations
            for id_, entry in each.book.entries.items()
            if ("replaced", "issuer") in [(c.state, c.by) for c in entry.history]
        }

        for row in self.rows():
            if row.badge_id in by_hand:
                polls.ask_for(self.engine, row.tenant, row.id)

        self.work("poll")

    def check_shown(self, tenant: str, issued: list[tuple[Who, Badge]]) -> None:
        """What is shown is what Credly has."""
        rows = [row for row in self.rows(tenant) if row.erased_at is None]
        badges = {badge["id"]: badge for badge in self.at_credly[tenant].badges}
        assert invariants.misshown(rows, badges) == []
        states = {row.badge_id: row.badge_state for row in rows if row.badge_id}
        assert states == {id_: badges[id_]["state"] for id_ in states}
        sure = {self.who(row) for row in rows} - {
            self.who(row)
            for row in rows
            if row.outcome_unknown or row.reason == "removed"
        }
        assert [
            who
            for who, badge in issued
            if badge["id"] not in states
            and self.is_known(who)
            and who[0] == tenant
            # Remove deletes what Credly has never seen, as far as is known.
            and (who in sure or tenant not in self.ever_removed)
        ] == []

    def check_promises(self, tenant: str, issued: list[tuple[Who, Badge]]) -> None:
        there = self.in_force(issued)
        rows = collections.defaultdict(list)

        for row in self.rows(tenant):
            rows[self.who(row)].append(row)

        for who, known in self.known.items():
            if who[0] != tenant or not self.is_known(who):
                continue

            for row in rows[who]:
                if row.reason in ("withdrawn", "withdrawn first"):
                    was = any(at >= row.completed_at for at in known.withdrawn)
                    assert was, f"{who} is {row.reason}, and was not"

            for at, gap in known.owed.items():
                mine = [r for r in rows[who] if not gap or r.completed_at > at - gap]
                assert mine, f"{who} at {at} is in no row"
                assert any(
                    row.state in ("issued", "revoked", "replaced") or explain(row)
                    for row in mine
                ), f"{who} has no badge, and nobody knows why"

            reasons = {row.reason for row in rows[who] if not row.error}
            # Of what Remove has left in doubt nobody knows whether it was issued.
            said = any(row.error for row in rows[who]) or reasons & {
                *("awaits approval", "removed"),
            }

            if known.taken_back and not said:
                # It is about the last one alone.
                most = max(0, len(known.sent) - 1) if who[2] else 0
                assert there[who] <= most, f"{who} was withdrawn, and is in force"

    def check_removed(self, tenant: str) -> None:
        # A completion that is committed later still is deleted with what is old.
        retention.prune(self.engine, self.host.state.settings)

        for row in self.rows(tenant):
            assert (row.email, row.first_name, row.last_name) == ("", "", ""), row.id
            assert row.action is None, row.id

        with self.engine.connect() as connection:
            for each in (Batch, LogEntry, Mapping, ToCheck):
                these = sa.select(each.tenant).where(each.tenant == tenant)
                assert connection.execute(these).all() == [], each


@every_database
def test_any_communities_at_once(world: World) -> None:
    run_examples(Anything, world, EXAMPLES, STEPS_OF_ONE)
