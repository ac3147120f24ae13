"""Compares what the host, the ledger and Credly say of the same badges, and repairs
what has one right answer.

Credly is read as the survey does: page by page, at the account's pace, through its
gate, and never in the way of badges that wait.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import functools
import logging
import sqlite3
import time
import typing as t

import sqlalchemy as sa

from ..catalog import Course
from ..catalog import Kind
from ..credly import Badge
from ..credly import Client
from ..credly import read_time
from ..credly import same_text
from ..credly import SearchPage
from ..errors import CredlyError
from ..errors import OutcomeUnknown
from ..errors import Refused
from ..ledger import audit
from ..ledger import backfills
from ..ledger import claim
from ..ledger import comparing
from ..ledger import comparisons
from ..ledger import gates
from ..ledger import polls
from ..ledger.backfills import Mapped
from ..ledger.comparisons import Bucket
from ..ledger.comparisons import REPAIRED
from ..ledger.comparisons import Why
from ..ledger.comparisons import WORDS
from ..ledger.runs import Run
from ..ledger.transaction import connect
from ..secret import Secret
from ..state import Community
from . import announce
from . import notifier
from . import stopping
from .backfill import chunks
from .backfill import HookFailed
from .backfill import read as read_completions
from .closing import close
from .comparison import Comparison
from .comparison import Difference
from .profile import missing
from .sender import answer_to
from .sender import CLOSING
from .sender import earner_id
from .token import open_client
from .token import with_token

logger = logging.getLogger("flask_credly")

T = t.TypeVar("T")

MAX_PAGES = 200_000

LOOK_EVERY = 0.25
"""Seconds after which the gate is looked at once more."""

PATIENCE = 300.0
"""Seconds to wait at most for a pause to end, or for the time of a request."""

TRIES = 4
"""How often one request is made that fails for a reason that passes."""


class Unread(CredlyError):
    """One side could not be read to its end.

    :param page: Up to which page of Credly's list it was read.
    """

    def __init__(self, why: Why, page: int = 0) -> None:
        super().__init__(WORDS[why])
        self.why = why
        self.page = page


@dataclasses.dataclass
class Result:
    """What a comparison has come to.

    :param unread: What could not be read to its end. Of Credly's list, nothing is said
        about what is missing in it.
    :param with_host: Whether the host was asked who completed what.
    """

    comparison: Comparison
    unread: list[Unread]
    with_host: bool

    @property
    def complete(self) -> bool:
        """Whether all was read to the end."""
        return not self.unread


Outcome = t.Literal["repaired", "changed", "no course"]
"""What comes of a repair. ``changed``: not as it was compared, or not there any more.
``no course``: it is not known for which course the badge is.
"""


@dataclasses.dataclass
class Repaired:
    """What a repair has come to.

    :param done: Badges that were repaired.
    :param skipped: Those that have changed since they were compared, or that Credly
        does not show any more.
    :param no_course: Those of which it is not known for which course they are.
    """

    done: int = 0
    skipped: int = 0
    no_course: int = 0

    def count(self, outcome: Outcome) -> None:
        """Count what came of one badge."""
        self.done += outcome == "repaired"
        self.skipped += outcome == "changed"
        self.no_course += outcome == "no course"


@contextlib.contextmanager
def compare(
    state: Community,
    since: dt.datetime | None = None,
    progress: cabc.Callable[[int], None] = lambda badges: None,
    go_on: cabc.Callable[[], None] = lambda: None,
) -> cabc.Iterator[Result]:
    """Read the three sides, and find what differs. Nothing is changed.

    :param since: Only what was completed from then on.
    :param progress: Called with the number of badges that were read so far.
    :param go_on: Called while the host and the ledger are read: not while a query of
        the host's is open. What it raises ends the comparison.
    :raises LookupError: There is no connection to Credly.
    """
    if (gate := gates.read(state.engine, state.tenant)) is None:
        raise LookupError("Credly is not connected.")

    with connect(state.engine) as connection:
        courses = backfills.mapped(connection, state.tenant)

    began = polls.time_of(state.engine)

    with Comparison(
        began,
        functools.partial(earner_id, gate.installation, tenant=state.tenant),
        courses,
        comparing.unique_templates(state.engine, state.tenant),
        restored=gate.restored,
        since=since,
    ) as comparison:
        unread: list[Unread] = []

        try:
            whole = _read_credly(state, gate, comparison, unread, progress)
            _read_host(state, courses, since, comparison, unread, go_on)

            for rows in comparing.windows(state.engine, gate, began, since):
                comparison.add_rows(rows)
                go_on()

            comparison.compare(
                whole=whole, never_there=functools.partial(_never_there, state)
            )
        except sqlite3.OperationalError:
            logger.exception(
                "The comparison with Credly has no room in the temporary directory.",
                extra={"credly_event": "reconcile_failed"},
            )
            unread.append(Unread("room"))

        yield Result(comparison, unread, state.past_completions is not None)


def _read_credly(
    state: Community,
    gate: gates.Gate,
    comparison: Comparison,
    unread: list[Unread],
    progress: cabc.Callable[[int], None],
) -> bool:
    """Add what Credly has. Get whether that is all of it."""
    read = 0
    pages = 0
    readable = True

    try:
        with asking(state, gate) as asker:
            for page in _pages(asker):
                pages += 1
                comparison.add_badges(page.rows, page.unread or ())
                readable = readable and page.unread is not None
                read += len(page.rows)
                progress(read)
    except Unread as e:
        unread.append(Unread(e.why, pages))
        return False

    if not readable:
        unread.append(Unread("unreadable", pages))

    return readable


def _pages(asker: Asker) -> cabc.Iterator[SearchPage]:
    query: str | None = None
    begun_anew = False
    asked: set[int] = set()  # Their hashes: the texts are long.

    for _ in range(MAX_PAGES):
        try:
            page = asker.ask(_search(asker.client, query))
        except Refused as e:
            # It may have forgotten what comes next. What is listed twice does no harm.
            if query is None or begun_anew:
                logger.warning(
                    "Credly's search was not read to its end: %s",
                    e,
                    extra={"credly_event": "reconcile_failed"},
                )
                raise Unread("refused") from None

            query, begun_anew = None, True
            asked.clear()
            continue

        yield page

        if page.is_last:
            return

        if page.next is None or hash(page.next) in asked:
            break

        query = page.next
        asked.add(hash(query))

    raise Unread("endless")


def _search(client: Client, query: str | None) -> cabc.Callable[[Secret], SearchPage]:
    return lambda token: client.search(token, query)


def _read_host(
    state: Community,
    courses: cabc.Sequence[Mapped],
    since: dt.datetime | None,
    comparison: Comparison,
    unread: list[Unread],
    go_on: cabc.Callable[[], None],
) -> None:
    """Add what the host has, if it says."""
    if state.past_completions is None:
        return

    for mapped in courses:
        go_on()

        try:
            with contextlib.closing(
                read_completions(state, _course(mapped), since)
            ) as completions:
                for chunk in chunks(completions):
                    comparison.add_completions(
                        mapped, ((each, not missing(each.member)) for each in chunk)
                    )
        except (HookFailed, TypeError, ValueError) as e:
            if not isinstance(e, HookFailed):
                logger.error(
                    "What the @credly.past_completions hook gave was not understood:"
                    " %s",
                    e,
                    extra={
                        "credly_event": "hook_failed",
                        "credly_hook": "past_completions",
                    },
                )

            unread.append(Unread("host"))
        else:
            # Who completed it before is not asked for.
            if since is None:
                comparison.note_asked(mapped)
        finally:
            state.session.remove()


def _course(mapped: Mapped) -> Course:
    return Course(mapped.course_id, mapped.course_title, t.cast(Kind, mapped.kind))


def _never_there(state: Community, course: Mapped, given: list[t.Any]) -> list[t.Any]:
    return backfills.never_there(
        state.engine, state.tenant, course.kind, course.course_id, given, course.again
    )


# Asking Credly, without being in the way.


@contextlib.contextmanager
def asking(state: Community, gate: gates.Gate) -> cabc.Iterator[Asker]:
    """Open a way to ask Credly."""
    with open_client(state, gate.organization_id) as client:
        yield Asker(state, gate, client)


class Asker:
    """Asks Credly one thing after the other, at the account's pace and through its
    gate. While badges wait to be issued, at most every fourth request is its own.
    """

    def __init__(self, state: Community, gate: gates.Gate, client: Client) -> None:
        self.client = client
        self._state = state
        self._gate = gate
        self._looked_at = 0.0
        self._others_wait = False
        self._took = 0.0

    def ask(self, question: cabc.Callable[[Secret], T]) -> T:
        """Ask, when it is time to. What passes is waited for.

        :raises Refused: Credly refuses it.
        :raises Unread: It cannot be asked.
        """
        for number in range(TRIES):
            self._wait()
            start = time.monotonic()

            try:
                answer = with_token(self._state, self._gate.generation, question)
            except CredlyError as e:
                if isinstance(e, Refused):
                    raise

                self._note(e, last=number == TRIES - 1)
            else:
                self._took = time.monotonic() - start

                if self._gate.probing and not self._others_wait:
                    # That Credly answers is known by this alone.
                    gates.resume(
                        self._state.engine, self._state.tenant, self._gate.generation
                    )

                return answer

        raise Unread("no answer")

    def _note(self, error: CredlyError, *, last: bool) -> None:
        answer = answer_to(error)
        self._looked_at = 0.0

        if answer in CLOSING or answer == "unauthorized":
            close(self._state, self._gate.generation, answer, error)
        elif last or not isinstance(error, OutcomeUnknown):
            logger.warning(
                "Credly was not read to the end: %s",
                error,
                extra={"credly_event": "reconcile_failed"},
            )
            raise Unread("no answer")

    def _wait(self) -> None:
        if time.monotonic() - self._looked_at > LOOK_EVERY:
            self._wait_for_gate()
            self._looked_at = time.monotonic()
            self._others_wait = claim.any_due(self._state.engine, self._gate)

        pace = self._state.settings.max_per_second

        if self._others_wait:
            self._sleep(3 * max(self._took, 1 / pace if pace else 0))

        if pace is not None:
            self._wait_for_time(pace)

    def _wait_for_gate(self) -> None:
        until = time.monotonic() + PATIENCE

        while True:
            gate = gates.read(self._state.engine, self._state.tenant)

            if gate is None or gate.generation != self._gate.generation:
                raise Unread("gate")

            if gate.is_open:
                self._gate = gate
                return

            # A pause ends by itself; what a person has closed does not.
            if gate.opens_in is None or time.monotonic() + gate.opens_in > until:
                raise Unread("gate")

            self._sleep(gate.opens_in + 0.01)

    def _wait_for_time(self, pace: float) -> None:
        until = time.monotonic() + PATIENCE

        while time.monotonic() < until:
            wait = gates.reserve(
                self._state.engine, self._state.tenant, 1, pace, at_most=10.0
            )

            if wait is not None:
                self._sleep(wait)
                return

            # Others have reserved the time of all requests.
            self._sleep(5.0)

        raise Unread("no answer")

    def _sleep(self, seconds: float) -> None:
        if stopping.wait(seconds):
            raise Unread("stopped")


# Repairing.


def repair(
    state: Community,
    bucket: Bucket,
    differences: cabc.Sequence[Difference],
    *,
    by: str | None,
    note: cabc.Callable[[Difference, Outcome], None] = lambda each, outcome: None,
    run: Run | None = None,
) -> Repaired:
    """Repair what differs in one way, each by what is right now: what has changed since
    it was compared is skipped.

    :param bucket: One of :data:`REPAIRED`.
    :param differences: At most :data:`.comparisons.AT_MOST`.
    :param by: Who does it, for :func:`.audit.note`.
    :param note: Called with what came of each, once that is written. What it raises
        ends the repair.
    :param run: The run that has found the differences, where they are not stored.
    :raises LookupError: There is no connection to Credly.
    :raises Unread: Credly or the host could not be asked to the end.
    """
    if bucket not in REPAIRED or len(differences) > comparisons.AT_MOST:
        raise ValueError("That is not to be repaired so.")

    if (gate := gates.read(state.engine, state.tenant)) is None:
        raise LookupError("Credly is not connected.")

    repaired = Repaired()

    if not differences:
        return repaired

    target = f"{bucket.replace('_', ' ')}: {len(differences)}"

    with audit.asking(state.engine, state.tenant, by, "repair", target):
        if bucket == "not_recorded":
            _record(state, differences, repaired, note, run)
        else:
            with asking(state, gate) as asker:
                for each in differences:
                    outcome = _repair_one(state, gate, asker, each, run)
                    repaired.count(outcome)
                    note(each, outcome)

    return repaired


def _repair_one(
    state: Community,
    gate: gates.Gate,
    asker: Asker,
    each: Difference,
    run: Run | None,
) -> Outcome:
    assert each.badge_id is not None
    badge_id = each.badge_id
    read_at = polls.time_of(state.engine)

    try:
        badge = asker.ask(lambda token: asker.client.badge(token, badge_id))
    except Refused:
        return "changed"

    of = None

    if each.bucket == "unknown_here" and (of := _whose(state, each, badge)) is None:
        return "no course"

    try:
        row_id = _write(state, gate, each, of, badge, read_at, run)
    except sa.exc.IntegrityError:  # another row has the badge by now
        row_id = None

    if row_id is None:
        return "changed"

    if each.bucket != "state_differs":
        announce.adopted(state, row_id, badge.id)

    announce.what_became(state, [row_id])
    return "repaired"


def _write(
    state: Community,
    gate: gates.Gate,
    each: Difference,
    of: comparing.Found | None,
    badge: Badge,
    read_at: dt.datetime,
    run: Run | None,
) -> int | None:
    """Write down one repair. Get the row, or ``None`` where it has changed."""
    if of is not None:
        whose = earner_id(gate.installation, of.member_id, gate.tenant)

        if not same_text(badge.earner_id, whose):
            return None

        return comparing.adopt_unknown(state.engine, gate, of, badge, each.number, run)

    assert each.row_id is not None and each.state is not None

    if each.bucket == "failed_here":
        done = comparing.adopt(
            state.engine,
            gate,
            each.row_id,
            badge,
            seen=each.state,
            issued_at=read_time(badge.issued_at),
        )
    else:
        done = comparing.believe(
            state.engine,
            gate,
            each.row_id,
            badge,
            seen=(each.state, each.badge_state),
            read_at=read_at,
        )

    return each.row_id if done else None


def _whose(state: Community, each: Difference, badge: Badge) -> comparing.Found | None:
    """Find out of which member and course a badge is that no row has."""
    at = read_time(badge.issued_at) or polls.time_of(state.engine)

    if each.course is not None and each.member_id is not None:
        return comparing.Found(
            each.member_id,
            each.course.kind,
            each.course.course_id,
            each.completed_at or at,
        )

    return comparing.whose(
        state.engine,
        state.tenant,
        badge.template_id,
        like=each.like,
        completed_at=at,
    )


def _record(
    state: Community,
    differences: cabc.Sequence[Difference],
    repaired: Repaired,
    note: cabc.Callable[[Difference, Outcome], None],
    run: Run | None,
) -> None:
    """Record completions, with the members' data as the host has them now."""
    of_course: dict[int, list[Difference]] = {}
    courses = {each.course.id: each.course for each in differences if each.course}

    for each in differences:
        assert each.course is not None
        of_course.setdefault(each.course.id, []).append(each)

    for number, wanted in of_course.items():
        numbers = {
            (each.member_id, each.completed_at): each.number
            for each in wanted
            if each.member_id is not None and each.completed_at is not None
        }

        try:
            found = [
                each
                for each in read_completions(state, _course(courses[number]), None)
                if (each.member.id, each.completed_at) in numbers
                and not missing(each.member)
            ]
        except (HookFailed, TypeError, ValueError):
            raise Unread("host") from None
        finally:
            state.session.remove()

        found = _never_there(state, courses[number], found)
        repaired.done += backfills.record(
            state.engine, state.tenant, number, found, numbers, run
        )
        done = {(each.member.id, each.completed_at) for each in found}

        for difference in wanted:
            key = (difference.member_id, difference.completed_at)
            note(difference, "repaired" if key in done else "changed")

    repaired.skipped += len(differences) - repaired.done

    if repaired.done:
        notifier.notify(state)
