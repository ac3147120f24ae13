"""The runs in the background, each beside any other and beside all that hosts, members
and admins do: in any order, step by step, with something else between any two
transactions of a worker, or while Credly or the host answers it.

Judged by Credly's book, and by what was promised to whom.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
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

from flask_credly import accounts
from flask_credly import completion_withdrawn
from flask_credly.accounts.mappings import UNDO_TIME
from flask_credly.issuing import backfill
from flask_credly.issuing import compare
from flask_credly.issuing import undo
from flask_credly.ledger import actions
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import clock
from flask_credly.ledger import comparing
from flask_credly.ledger import comparisons
from flask_credly.ledger import gates
from flask_credly.ledger import removing
from flask_credly.ledger import retrying
from flask_credly.ledger import runs
from flask_credly.ledger import settle
from flask_credly.ledger import undoing
from flask_credly.ledger import undos
from flask_credly.ledger.reasons import explain
from flask_credly.ledger.transaction import in_session
from flask_credly.models import Attempt
from flask_credly.models import Batch
from flask_credly.models import BatchRow
from flask_credly.models import DifferenceRow
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Mapping
from flask_credly.options import Options
from flask_credly.options import SILENT
from tests.support import invariants
from tests.support.midst import HOOK
from tests.support.midst import Machine
from tests.support.midst import Moment
from tests.support.midst import REQUEST
from tests.support.midst import run_examples
from tests.support.world import make_world
from tests.support.world import World

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("CREDLY_TEST_EXAMPLES", "8"))

STEPS_OF_ONE = 40

HERE = COURSES[:2]

Who = tuple[str, int]
"""A member's id, and the number of a course."""

MOMENTS: dict[str, tuple[Moment, ...]] = {
    "drain": (
        REQUEST,
        REQUEST,
        (claim, "claim"),
        (claim, "begin"),
        (claim, "follow_mapping"),
        (settle, "cancel_unmapped"),
        (settle, "settle"),
    ),
    "backfill": (HOOK, HOOK, (backfills, "add"), (backfills, "finish")),
    "compare": (
        REQUEST,
        REQUEST,
        HOOK,
        (backfills, "record"),
        (comparing, "adopt"),
        (comparing, "adopt_unknown"),
        (comparing, "believe"),
        (comparisons, "finish"),
        (comparisons, "note_repaired"),
        (comparisons, "finish_repair"),
    ),
}

STEPS: tuple[runs.Verb, ...] = ("undo", "retry", "remove")

MEMBERS = 5

OF_MEMBERS = ("complete", "complete", "complete_silently", "withdraw", "erase")
BEGINNINGS = ("backfill", "undo", "undo", "retry_all", "compare", "repair")
ENDS = ("stop_backfill", "stop_undo", "stop_retry", "stop_comparing")
OTHERS = ("revoke", "remove")

OPERATIONS = (
    *OF_MEMBERS,
    *2 * ("unmap", "map_again"),
    *BEGINNINGS,
    *ENDS,
    *OTHERS,
)

WHAT = (
    *4 * ("let_a_member",),
    *6 * ("change_mappings",),
    *6 * ("begin_a_run",),
    *3 * ("end_something",),
    *5 * ("complete_many",),
    *3 * ("backfill_many",),
    "begin_a_new_life",
    *14 * ("let_work",),
    *4 * ("take",),
    *4 * ("step",),
    "let_go",
    *3 * ("let_time_pass",),
    "change_mood",
)
"""What is done next, some of it more often."""


@pytest.fixture
def world(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> cabc.Iterator[World]:
    for owner in (undoing, retrying, removing):
        monkeypatch.setattr(owner, "PORTION", 2)

    monkeypatch.setattr(backfill, "CHUNK", 2)
    monkeypatch.setattr(compare, "SAY_EVERY", 0.0)

    # One request at a time, or the order would be another each time.
    with make_world(
        make_host, monkeypatch, CREDLY_CONCURRENCY=1, CREDLY_BATCH_SIZE=2
    ) as made:
        yield made


class Runs(Machine):
    """A host, its members, its admin, and its workers with what they have in hand."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.credly.posts_allowed = 99
        self.credly.badges_allowed = 99
        # Where Credly would not refuse a second badge.
        self.templates = [
            self.credly.add_template(each.id, allow_duplicate_badges=True)
            for each in HERE
        ]
        self.world.past = self.past
        self.next_member = 5
        self.members = [str(number) for number in range(5)]
        self.gone: list[str] = []
        # What the host knows.
        self.done: dict[Who, dt.datetime] = {}
        # What is promised.
        self.owed: set[Who] = set()
        self.ordered: set[Who] = set()
        self.waited: dict[int, set[Who]] = {}
        self.promised: set[Who] = set()
        # What an earlier removal of a mapping has cancelled, and nobody wants since.
        self.forgone: set[Who] = set()
        self.unmapped_at: dict[int, dt.datetime] = {}
        self.unmapped: list[tuple[int, dt.datetime, dt.datetime | None]] = []
        # What a worker records at this moment, and what it has recorded in this life
        # of the connection.
        self.records = False
        self.reading: set[Who] = set()
        self.given: set[Who] = set()

        self.in_hand: list[runs.Run] = []
        self.set_up()

    def past(self, course: t.Any) -> cabc.Iterator[t.Any]:
        number = HERE.index(course)

        for (member, of), at in list(self.done.items()):
            if of == number:
                if self.records:
                    self.note_read((member, of))

                yield a_member(member), at
                self.at(HOOK, True)

    def note_read(self, who: Who) -> None:
        # The host has read it before it was erased.
        if who[0] in self.gone:
            return

        self.reading.add(who)
        self.forgone.discard(who)

        if not any(
            self.who(row) == who and row.state != "cancelled" for row in self.rows()
        ):
            self.given.add(who)

    def rows(self) -> list[Issuance]:
        with sa.orm.Session(self.engine) as session:
            return list(session.scalars(sa.select(Issuance).order_by(Issuance.id)))

    def batches(self, verb: runs.Verb) -> list[Batch]:
        with sa.orm.Session(self.engine) as session:
            query = sa.select(Batch).where(Batch.verb == verb).order_by(Batch.id)
            return list(session.scalars(query))

    def latest(self, verb: runs.Verb, *states: str) -> int | None:
        found = [each.id for each in self.batches(verb) if each.state in states]
        return found[-1] if found else None

    def who(self, row: Issuance) -> Who:
        return row.member_id, [each.id for each in HERE].index(row.course_id)

    def now(self) -> dt.datetime:
        return clock.now(None)  # type: ignore[arg-type]

    def is_connected(self) -> bool:
        return gates.read(self.engine, "default") is not None

    def mapping_id(self, course: int) -> int | None:
        with sa.orm.Session(self.engine) as session:
            this = sa.select(Mapping.id).where(Mapping.course_id == HERE[course].id)
            return session.scalar(this)

    def do(self, name: str, *about: t.Any) -> None:
        member, course = about
        self.story.append(f"{name} {self.members[member]} {course}")
        self.host.db.session.remove()
        getattr(self, f"do_{name}")(self.members[member], course)
        self.host.db.session.remove()

    # The members, and the host.

    def do_complete(self, member: str, course: int) -> None:
        who = (member, course)
        self.forgone.discard(who)
        is_mapped = self.mapping_id(course) is not None
        self.done[who] = dt.datetime.now(dt.UTC)
        self.host.complete(member, HERE[course].id, completed_at=self.done[who])

        if is_mapped:
            self.owed.add(who)

    def do_complete_silently(self, member: str, course: int) -> None:
        self.done.setdefault((member, course), dt.datetime.now(dt.UTC))

    def do_withdraw(self, member: str, course: int) -> None:
        who = (member, course)
        self.done.pop(who, None)
        for these in (self.owed, self.reading, self.forgone):
            these.discard(who)

        # The first has its badges revoked.
        self.ordered |= {who} if course == 0 else set()
        completion_withdrawn.send(
            self.host.app, member_id=member, course_id=HERE[course].id
        )

    def do_erase(self, member: str, course: int) -> None:
        for each in range(len(HERE)):
            self.done.pop((member, each), None)

        self.host.credly.erase_member(member)
        self.renew(self.members.index(member))
        self.gone.append(member)

        for these in (
            *(self.owed, self.promised, self.reading, self.forgone),
            *self.waited.values(),
        ):
            these -= {each for each in these if each[0] == member}

    # The admin.

    def set_up(self) -> None:
        self.do_connect("", 0)
        mapping_id = self.mapping_id(0)
        assert mapping_id is not None
        accounts.change_options(self.host.state, mapping_id, Options(withdrawn=SILENT))

    def do_connect(self, _: str, course: int) -> None:
        try:
            accounts.connect(
                self.host.state,
                organization_id=self.credly.organization_id,
                client_id=self.credly.client_id,
                client_secret=self.credly.client_secret,
            )
        except (accounts.StillRemoving, accounts.CouldNotVerify):
            return

        for number in range(len(HERE)):
            self.do_map_again("", number)

    def do_map_again(self, _: str, course: int) -> None:
        """Take the removal of a mapping back, where that was just now."""
        removed_at = self.unmapped_at.get(course)
        undo = (
            removed_at is not None
            and self.now() - removed_at < UNDO_TIME
            and course in self.waited
        )

        try:
            accounts.add_mapping(
                self.host.state, HERE[course], self.templates[course], undo=undo
            )
        except (
            accounts.AlreadyMapped,
            accounts.NotConnected,
            accounts.UnknownTemplate,
        ):
            return

        if removed_at is not None:
            self.unmapped.append((course, removed_at, self.now()))
            del self.unmapped_at[course]

        waited = self.waited.pop(course, set())
        self.promised |= waited if undo else set()

    def do_unmap(self, _: str, course: int) -> None:
        if (mapping_id := self.mapping_id(course)) is None:
            return

        waited = {
            self.who(row)
            for row in self.rows()
            if (row.state, row.action) == ("none", "issue")
            and row.erased_at is None
            and row.withdrawn_at is None
            and row.course_id == HERE[course].id
        }
        again = {each for each in self.promised if each[1] == course}
        self.forgone |= {
            self.who(row)
            for row in self.rows()
            if (row.state, row.reason) == ("cancelled", "unmapped")
            and row.erased_at is None
            and self.who(row)[1] == course
            and self.who(row) not in again
        }
        accounts.remove_mapping(self.host.state, mapping_id)
        self.unmapped_at[course] = self.now()
        self.promised -= again
        self.waited[course] = waited | again

    def do_remove(self, _: str, course: int) -> None:
        if not accounts.remove(self.host.state):
            return

        for number in range(len(HERE)):
            self.unmapped_at.setdefault(number, self.now())

        self.waited.clear()
        self.promised.clear()
        self.forgone.clear()
        self.owed.clear()
        self.given.clear()
        self.reading.clear()

    def do_backfill(self, _: str, course: int) -> None:
        if (mapping_id := self.mapping_id(course)) is not None:
            backfills.start(self.engine, "default", mapping_id)

    def do_stop_backfill(self, _: str, course: int) -> None:
        if run_id := self.latest("backfill", "recording", "recorded"):
            backfills.stop(self.engine, "default", run_id)

    def do_undo(self, _: str, course: int) -> None:
        if not (found := self.batches("backfill")):
            return

        selection = undos.Selection(undoes=found[-1].id)
        preview = in_session(self.engine, undos.preview, "default", selection)
        run_id = undos.start(
            self.engine,
            "default",
            selection,
            number=preview.number,
            reason="A reason.",
            tell_pending=False,
            tell_accepted=False,
            last_id=preview.last_id,
        )

        if run_id is not None:
            # Those that it has recorded, and nobody else.
            self.ordered |= {
                self.who(row)
                for row in self.rows()
                if row.batch_id == found[-1].id and self.who(row) in self.given
            }

    def do_stop_undo(self, _: str, course: int) -> None:
        if run_id := self.latest("undo", "choosing", "revoking"):
            undos.stop(self.engine, "default", run_id)

    def do_retry_all(self, _: str, course: int) -> None:
        self.forgone.clear()
        retrying.retry_all(self.engine, "default")

    def do_stop_retry(self, _: str, course: int) -> None:
        if run_id := self.latest("retry", "retrying"):
            retrying.stop(self.engine, "default", run_id)
            self.promised.clear()

    def do_compare(self, _: str, course: int) -> None:
        comparisons.start(self.engine, "default")

    def do_repair(self, _: str, number: int) -> None:
        if run_id := self.latest("compare", "compared"):
            self.forgone.clear()
            left = in_session(self.engine, comparisons.count_left, "default", run_id)

            if left:
                bucket = sorted(left)[number % len(left)]
                comparisons.start_repair(
                    self.engine, "default", run_id, bucket, left[bucket]
                )

    def do_stop_comparing(self, _: str, course: int) -> None:
        if run_id := self.latest("compare", *comparisons.GOES_ON):
            comparisons.stop(self.engine, "default", run_id)

    def do_revoke(self, member: str, course: int) -> None:
        for row in self.rows():
            if self.who(row) == (member, course):
                actions.revoke(
                    self.engine, "default", row.id, reason="A reason.", tell=False
                )
                self.ordered.add((member, course))

    def let_a_member(self, chance: random.Random) -> None:
        self.do(
            chance.choice(OF_MEMBERS),
            chance.randrange(MEMBERS),
            chance.randrange(len(HERE)),
        )

    def change_mappings(self, chance: random.Random) -> None:
        if gone := [*self.unmapped_at]:
            self.do("map_again", 0, chance.choice(gone))
        else:
            self.do("unmap", 0, chance.randrange(len(HERE)))

    def begin_a_run(self, chance: random.Random) -> None:
        name = chance.choice(BEGINNINGS)

        # What is younger is not called different.
        if name in ("compare", "repair"):
            self.world.advance(901)

        if name == "repair":
            self.do("compare", 0, 0)
            self.work("compare")

        self.do(name, 0, chance.randrange(len(HERE)))
        self.perhaps_finish(chance)

    def end_something(self, chance: random.Random) -> None:
        name = chance.choice((*ENDS, *OTHERS))
        self.do(name, chance.randrange(MEMBERS), chance.randrange(len(HERE)))

    def some_members(self, chance: random.Random) -> list[int]:
        """Choose some, half of them new: the others have soon had everything."""
        found = chance.sample(range(MEMBERS), chance.randrange(1, MEMBERS))

        for each in found[::2]:
            self.renew(each)

        return found

    def renew(self, number: int) -> None:
        self.members[number] = str(self.next_member)
        self.next_member += 1

    def complete_many(self, chance: random.Random) -> None:
        course = chance.randrange(len(HERE))

        for each in self.some_members(chance):
            self.do("complete", each, course)

        self.perhaps_finish(chance)

    def backfill_many(self, chance: random.Random) -> None:
        course = chance.randrange(len(HERE))

        for each in self.some_members(chance):
            self.do("complete_silently", each, course)

        self.do("backfill", 0, course)
        self.perhaps_finish(chance)

    def begin_a_new_life(self, chance: random.Random) -> None:
        self.do("remove", 0, 0)
        self.let_runs_end("remove")
        self.do("connect", 0, 0)

    def perhaps_finish(self, chance: random.Random) -> None:
        """Let all that is due be done at once, without anything in the midst."""
        if chance.random() < 0.3:
            self.let_runs_end(*STEPS)

            for kind in ("backfill", "compare", "drain"):
                self.work(kind)

    # The workers.

    def work(self, kind: str) -> None:
        if kind == "drain":
            self.host.drain()
        elif kind == "backfill":
            if (run := runs.take(self.engine, "backfill")) is not None:
                self.records = True
                self.reading.clear()
                state = self.host.state.of(run.tenant)
                backfill.record_or_fail(state, run)
                self.note_recorded(run)
        elif (run := runs.take(self.engine, "compare")) is not None:
            self.records = run.state == "repairing"
            compare._do(self.host.state.of(run.tenant), run)

        self.records = False
        self.host.db.session.remove()

    def note_recorded(self, run: runs.Run) -> None:
        found = in_session(self.engine, runs.get, "default", run.id, "backfill")

        if found is not None and found.state == "recorded":
            self.owed |= self.reading

    def due(self, *verbs: runs.Verb) -> list[runs.Verb]:
        return [verb for verb in verbs if runs.due_for(self.engine, verb)]

    def let_work(self, chance: random.Random) -> None:
        kinds = ["drain", *2 * self.due("backfill", "compare")]
        kind = chance.choice(kinds)

        if kind == "drain" and not any(row.due_at for row in self.rows()):
            for each in self.some_members(chance)[:3]:
                self.do("complete", each, chance.randrange(len(HERE)))

        moment = chance.choice(MOMENTS[kind])
        after = chance.random() < 0.5
        # It dies at every fourth.
        what = None if chance.random() < 0.2 else self.choose(chance)

        when = f"{'after' if after else 'before'} {moment[1]}"
        self.story.append(f"{kind}, and {when} {what or 'it dies'}")

        with self.meet(moment, after, what):
            self.work(kind)

        self.records = False  # though it may have died

    def take(self, chance: random.Random) -> None:
        due = self.due(*STEPS)

        if not due:
            return

        if (taken := runs.take(self.engine, chance.choice(due))) is not None:
            self.in_hand.append(taken)
            self.do_step(taken, chance.randrange(3))

    def step(self, chance: random.Random) -> None:
        """Also by a worker whose lease has ended meanwhile."""
        if self.in_hand:
            self.do_step(chance.choice(self.in_hand), chance.randrange(1, 4))

    def do_step(self, run: runs.Run, times: int) -> None:
        for _ in range(times):
            if (said := undo.STEPS[run.verb](self.engine, run)) != "more":
                self.in_hand.remove(run)

                if said == "rest":
                    runs.leave(self.engine, run, rest=True)

                break

    def let_go(self, chance: random.Random) -> None:
        """A worker leaves the rest to another, or dies."""
        if self.in_hand:
            run = self.in_hand.pop(chance.randrange(len(self.in_hand)))

            if chance.random() < 0.5:
                runs.leave(self.engine, run)

    def let_time_pass(self, chance: random.Random) -> None:
        self.world.advance(chance.choice([6, 61, 901, 4000]))

    def change_mood(self, chance: random.Random) -> None:
        mood = chance.choice(sorted(set(MOODS) - {"books late"}))
        kinds = ["issue", "batch", "look-up", "badge", "revoke"]
        self.credly.fail(t.cast(t.Any, chance.choice(kinds)), **MOODS[mood])

    def choose(self, chance: random.Random) -> tuple[str, int, int]:
        """Choose what happens in the midst of what a worker does, and to whom: rather
        to one whom it may be about.
        """
        name = chance.choice(OPERATIONS)
        name = "erase" if chance.random() < 0.15 else name

        with sa.orm.Session(self.engine) as session:
            found = set(session.scalars(sa.select(DifferenceRow.member_id)))

        about = [n for n, id_ in enumerate(self.members) if id_ in found]
        member = chance.choice(about or range(MEMBERS))
        return name, member, chance.randrange(len(HERE))

    def go_on(self, seed: int) -> None:
        """Do anything, each as often as :data:`WHAT` says."""
        chance = random.Random(seed)
        name = chance.choice(WHAT)

        if not self.is_connected() and chance.random() < 0.3:
            name = "begin_a_new_life"

        self.story.append(f"{name}:")
        getattr(self, name)(chance)

    # What must hold.

    def whose(self, badge: dict[str, t.Any]) -> Who:
        member = badge["recipient_email"].partition("@")[0].removeprefix("member-")
        return member, self.templates.index(badge["badge_template"]["id"])

    def violations(self) -> list[str]:
        found = invariants.twice_in_force(self.credly.badges)

        for badge in self.credly.badges:
            for each in self.credly.history(badge["id"]):
                if (each.state, each.by) == ("revoked", "request"):
                    if (who := self.whose(badge)) not in self.ordered:
                        found.append(f"{who} was revoked, and nobody asked")

        found += [
            f"{who} came back, and nobody asked"
            for row in self.rows()
            if row.erased_at is None
            and (who := self.who(row)) in self.forgone
            and row.state != "cancelled"
        ]
        return found + self.named(*self.gone)

    def named(self, *member_ids: str) -> list[str]:
        """Where members are named that were erased."""
        found = []

        with sa.orm.Session(self.engine) as session:
            for id_ in member_ids:
                for model, column, value in (
                    (Issuance, Issuance.member_id, id_),
                    (Issuance, Issuance.email, a_member(id_).email),
                    (DifferenceRow, DifferenceRow.member_id, id_),
                ):
                    if session.scalar(sa.select(model.id).where(column == value)):
                        found.append(f"{id_} was erased and is in {column}")

                for details in session.scalars(sa.select(LogEntry.details)):
                    if a_member(id_).email in details:
                        found.append(f"{id_} was erased and is in the log")

        return found

    def nothing_is_broken(self) -> None:
        assert self.violations() == []

    def teardown(self) -> None:
        """Everything is well again, and all comes to its end."""
        self.credly.clear_faults()
        self.meeting = None
        self.let_all_end()
        assert self.violations() == []
        self.check_requests()
        assert self.credly.problems == []

        if self.is_connected():
            self.check_promises()
            self.check_comparison()
        else:
            self.check_removed()

    def let_all_end(self) -> None:
        for _ in range(40):
            self.world.advance(4000)

            self.let_runs_end(*STEPS)

            for kind in ("backfill", "compare", "drain"):
                self.work(kind)

            with sa.orm.Session(self.engine) as session:
                going_on = sa.select(Batch).where(
                    sa.or_(Batch.due_at.is_not(None), Batch.lease.is_not(None))
                )
                left = [
                    f"{each.verb} is {each.state}" for each in session.scalars(going_on)
                ]

            left += invariants.unsettled(self.host.rows(), self.host.attempts())

            if not left:
                return

        raise AssertionError(left)

    def let_runs_end(self, *verbs: runs.Verb) -> None:
        for verb in verbs:
            while (run := runs.take(self.engine, verb)) is not None:
                while (said := undo.STEPS[verb](self.engine, run)) == "more":
                    pass

                if said == "rest":
                    runs.leave(self.engine, run, rest=True)
                    break

    def check_requests(self) -> None:
        by_id = {row.id: row for row in self.rows() if row.erased_at is None}
        spans = [*self.unmapped, *((c, at, None) for c, at in self.unmapped_at.items())]

        with sa.orm.Session(self.engine) as session:
            for each in session.scalars(sa.select(Attempt)):
                row = by_id.get(each.issuance_id)

                for course, since, until in spans if row else ():
                    if row and row.course_id == HERE[course].id:
                        assert not (
                            each.action == "issue"
                            and since < each.started_at
                            and (until is None or each.started_at < until)
                        ), f"{self.who(row)} was sent without a mapping"

    def check_promises(self) -> None:
        rows = {self.who(row): row for row in self.rows() if row.erased_at is None}
        has = {self.whose(badge) for badge in self.credly.badges}

        for who in self.owed - has:
            assert who in rows, f"{who} has neither a badge nor a row"
            assert explain(rows[who]), f"{who} has no badge, and nobody knows why"

        for who in self.promised - has:
            assert who in rows, f"{who} was to come back, and is gone"
            row = rows[who]
            assert (row.state, row.reason) != ("cancelled", "unmapped"), (
                f"{who} did not come back"
            )

        with sa.orm.Session(self.engine) as session:
            of_row = BatchRow.issuance_id == Issuance.id
            query = sa.select(Issuance, BatchRow.outcome).join(BatchRow, of_row)
            outcomes = session.execute(query).all()

        in_force = {
            self.whose(badge)
            for badge in self.credly.badges
            if badge["state"] in ("pending", "accepted")
        }

        for row, outcome in outcomes:
            assert outcome not in undos.OPEN, f"{self.who(row)} is {outcome} for ever"

            if outcome in ("revoked", "dropped") and row.erased_at is None:
                assert self.who(row) not in in_force, f"{self.who(row)} is {outcome}"

    def check_comparison(self) -> None:
        for each in (None, *comparisons.REPAIRED):
            self.world.advance(100_000)

            if each is None:
                self.do_compare("", 0)
                self.work("compare")
                self.check_differences()
            else:
                run_id = self.latest("compare", "compared")
                assert run_id is not None
                left = in_session(
                    self.engine, comparisons.count_left, "default", run_id
                )

                if number := left.get(each):
                    assert comparisons.start_repair(
                        self.engine, "default", run_id, each, number
                    )
                    self.work("compare")

        self.let_all_end()
        assert self.violations() == []
        self.world.advance(100_000)
        self.do_compare("", 0)
        self.work("compare")
        self.check_differences()
        buckets = {each.bucket for each in self.differences()}
        assert buckets.isdisjoint(comparisons.REPAIRED), buckets

    def differences(self) -> list[DifferenceRow]:
        (run,) = self.batches("compare")
        assert run.state == "compared", run.state

        with sa.orm.Session(self.engine) as session:
            return list(session.scalars(sa.select(DifferenceRow)))

    def check_differences(self) -> None:
        """What it says is so."""
        rows = {row.id: row for row in self.rows()}
        known = {row.badge_id for row in rows.values()}
        there = {self.who(row) for row in rows.values() if row.erased_at is None}
        badges = {badge["id"]: badge for badge in self.credly.badges}

        for each in self.differences():
            row = rows.get(each.issuance_id or 0)
            badge = badges.get(each.badge_id or "")
            said = (each.bucket, row and self.who(row), each.member_id)

            if each.bucket == "not_recorded":
                who = (each.member_id, [c.id for c in HERE].index(each.course_id or ""))
                assert who in self.done and who not in there, said
            elif each.bucket == "unknown_here":
                assert badge is not None and badge["id"] not in known, said
            elif each.bucket == "failed_here":
                assert row and badge and row.badge_id is None, said
                assert self.whose(badge) == self.who(row), said
                assert badge["id"] not in known, said
            elif each.bucket == "state_differs":
                assert row and badge and row.badge_id == badge["id"], said
                assert (row.badge_state, row.state == "revoked") != (
                    badge["state"],
                    badge["state"] == "revoked",
                ), said
            elif each.bucket == "no_longer_completed":
                assert row and badge, said
                assert self.who(row) not in self.done, said
            else:
                raise AssertionError(said)

    def check_removed(self) -> None:
        assert self.owed == set()

        with sa.orm.Session(self.engine) as session:
            assert session.scalars(sa.select(Batch)).all() == []

        for row in self.rows():
            assert (row.email, row.first_name, row.last_name) == ("", "", ""), row.id
            assert row.action is None, row.id


@every_database
def test_any_runs_at_once(world: World) -> None:
    run_examples(Runs, world, EXAMPLES, STEPS_OF_ONE)
