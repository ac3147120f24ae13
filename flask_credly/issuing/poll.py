"""Asks Credly what became of the badges: whether they were accepted, declined, revoked.

What changed last comes first, so that a page or two say all that is new. Once a day a
survey reads all badges, for what has slipped through: lists move while they are read.
Both are matched with the ledger by the badge's id alone, and neither says that a badge
is missing. Whatever dies in the midst is done again: a page counts as read once its
badges are written down and the host was told.
"""

from __future__ import annotations

import datetime as dt
import functools
import logging
import time
import typing as t

from ..credly import Badge
from ..credly import BadgePage
from ..credly import Client
from ..errors import CredlyError
from ..errors import OutcomeUnknown
from ..errors import Refused
from ..ledger import claim
from ..ledger import gates
from ..ledger import polls
from ..ledger.polls import Poll
from ..ledger.polls import Survey
from ..secret import Secret
from ..state import AppState
from ..state import Community
from . import announce
from . import stopping
from .closing import close
from .sender import answer_to
from .sender import CLOSING
from .token import open_client
from .token import with_token

logger = logging.getLogger("flask_credly")

T = t.TypeVar("T")

BUDGET = 240.0
"""Seconds after which no further community is begun."""

PAGES_A_TURN = 20
"""Pages that are read for one community before others have their turn."""

MAX_PAGES = 20_000
"""Pages of 50 after which a list is taken for endless."""

MAX_SEARCH_PAGES = 10_000

AT_A_TIME = 500
"""Badges that are looked for in the ledger at once."""

GIVE_WAY = dt.timedelta(seconds=10)
"""For which a list waits while badges are issued: one page at a time."""

AFTER_AN_ERROR = dt.timedelta(minutes=15)

AFTER_A_REFUSAL = dt.timedelta(hours=1)

_PATIENCE = 10.0
"""Seconds to wait at most for the time of a request."""


_LIST = "list?"
"""Begins what a survey asks for where Credly has no search: the page of its list."""


class _GiveWay(Exception):
    """Others have reserved the time of all requests."""


def poll(state: AppState) -> None:
    """Ask for all communities that are due, until none is or time is up. Trouble with
    one is logged, and holds nobody up.
    """
    until = time.monotonic() + BUDGET
    failed: set[str] = set()

    while True:
        due = [each for each in polls.due_for(state.engine) if each not in failed]

        if not due:
            return

        for tenant in due:
            if stopping.is_set() or time.monotonic() > until:
                return

            try:
                if not poll_one(state.of(tenant)):
                    failed.add(tenant)
            except Exception:
                failed.add(tenant)
                logger.exception(
                    "Reading the badges' status from Credly failed. The worker"
                    " retries it.",
                    extra={"credly_event": "poll_failed"},
                )


def poll_now(state: Community) -> bool:
    """Ask for one community now, to the end.

    :return: Whether all of it is known.
    """
    polls.at_once(state.engine, state.tenant)

    while poll_one(state):
        if stopping.is_set():
            return False

        if state.tenant not in polls.due_for(state.engine):
            return not polls.is_held(state.engine, state.tenant)

    return False


def poll_one(state: Community) -> bool:
    """Ask for one community, if its gate is open: first for what an admin waits for.

    :return: Whether that went well. What is left of a long list is due at once.
    """
    gate = gates.read(state.engine, state.tenant)

    if gate is None or not gate.is_open:
        return False

    with open_client(state, gate.organization_id) as client:
        return _Reader(state, gate, client).run()


class _Reader:
    def __init__(self, state: Community, gate: gates.Gate, client: Client) -> None:
        self._state = state
        self._engine = state.engine
        self._gate = gate
        self._client = client

    def run(self) -> bool:
        taken: Poll | Survey | None = None

        try:
            self._check()

            if (taken := polls.take(self._engine, self._gate)) is not None:
                self._read(taken)

            if (taken := polls.take_survey(self._engine, self._gate)) is not None:
                self._survey(taken)
        except polls.Lost:
            return False
        except _GiveWay:
            if taken is not None:
                polls.leave(self._engine, taken, GIVE_WAY)

            return False
        except CredlyError as e:
            self._stop(taken, e)
            return False
        except BaseException:
            if taken is not None:
                polls.leave(self._engine, taken, AFTER_AN_ERROR)

            raise

        return True

    def _stop(self, taken: Poll | Survey | None, error: CredlyError) -> None:
        answer = answer_to(error)

        if answer in CLOSING or answer == "unauthorized":
            close(self._state, self._gate.generation, answer, error)
            wait = dt.timedelta(0)  # the gate keeps it
        else:
            wait = AFTER_A_REFUSAL if answer == "refused" else AFTER_AN_ERROR
            logger.warning(
                "The badges' status could not be read from Credly: %s",
                error,
                extra={"credly_event": "poll_failed"},
            )

        if taken is not None:
            polls.leave(self._engine, taken, wait, anew=answer == "refused")

    def _check(self) -> None:
        """Read the badges that an admin waits for."""
        for row_id, badge_id in polls.to_check(self._engine, self._gate):
            if not self._may_go_on():
                return

            again = badge_id is not None and not self._check_one(badge_id)
            polls.checked(self._engine, self._gate.tenant, row_id, again)

    def _check_one(self, badge_id: str) -> bool:
        """Read one badge. Get whether that is all that is to be asked of it."""
        read_at = polls.time_of(self._engine)

        try:
            badge = self._ask(lambda token: self._client.badge(token, badge_id))
        except (Refused, OutcomeUnknown) as e:
            # Of one badge this says nothing about the others.
            if isinstance(e, OutcomeUnknown) and e.foreign:
                raise

            if e.status in (404, 410):
                return polls.miss(self._engine, self._gate, badge_id, read_at)

            logger.warning(
                "A badge's status could not be read from Credly: %s",
                e,
                extra={"credly_event": "poll_failed"},
            )
        else:
            self._learn([badge], read_at)

        return True

    def _read(self, poll: Poll) -> None:
        """Read the list, page by page, as far as it is new."""
        before: BadgePage | None = None

        for turn in range(PAGES_A_TURN):
            if turn and self._gives_way(poll):
                return

            number = poll.page
            read_at = polls.time_of(self._engine)
            page = self._ask(functools.partial(self._client.news, page=number))
            _refuse_endless(number, page, before)
            self._judge_order(poll, page, before)
            self._learn(page.rows, read_at)

            if page.is_last or poll.unsorted or _is_known(poll, page):
                polls.finish(self._engine, poll)
                self._resume()
                return

            polls.advance(self._engine, poll)
            poll.page += 1
            before = page

        polls.leave(self._engine, poll)

    def _gives_way(self, taken: Poll | Survey) -> bool:
        """Leave a list in its midst where others go first, or nothing may be asked."""
        if not self._may_go_on():
            polls.leave(self._engine, taken)
            return True

        if claim.any_due(self._engine, self._gate):
            polls.leave(self._engine, taken, GIVE_WAY)
            return True

        return False

    def _may_go_on(self) -> bool:
        if stopping.is_set():
            return False

        gate = gates.read(self._engine, self._gate.tenant)
        return (
            gate is not None
            and gate.is_open
            and gate.generation == self._gate.generation
        )

    def _resume(self) -> None:
        # That Credly answers says nothing about badges that are asked for next. Where
        # none is, nobody else says that an outage has ended.
        if self._gate.probing and not claim.any_due(self._engine, self._gate):
            gates.resume(self._engine, self._gate.tenant, self._gate.generation)

    def _survey(self, survey: Survey) -> None:
        """Read all badges, page by page."""
        before: BadgePage | None = None

        for turn in range(PAGES_A_TURN):
            if turn and self._gives_way(survey):
                return

            if survey.next is not None and survey.next.startswith(_LIST):
                before = self._survey_list(survey, before)
            else:
                self._survey_search(survey)

            if survey.next is None:
                polls.finish_survey(self._engine, survey)
                self._resume()
                return

            polls.advance_survey(self._engine, survey)

        polls.leave(self._engine, survey)

    def _survey_search(self, survey: Survey) -> None:
        read_at = polls.time_of(self._engine)
        query = survey.next

        try:
            page = self._ask(lambda token: self._client.search(token, query))
        except (Refused, OutcomeUnknown) as e:
            if isinstance(e, OutcomeUnknown) and e.foreign:
                raise

            self._take_list(survey, str(e))
            return

        self._learn(page.rows, read_at)
        survey.pages += 1

        if page.is_last:
            survey.next = None
        elif page.next in (None, query) or survey.pages >= MAX_SEARCH_PAGES:
            self._take_list(survey, "its pages do not end")
        else:
            survey.next = page.next

    def _take_list(self, survey: Survey, why: str) -> None:
        logger.info("Credly's search could not be fully read: %s", why)
        survey.next, survey.pages = f"{_LIST}1", 0

    def _survey_list(self, survey: Survey, before: BadgePage | None) -> BadgePage:
        assert survey.next is not None
        number = int(survey.next.removeprefix(_LIST))
        read_at = polls.time_of(self._engine)
        page = self._ask(
            functools.partial(self._client.news, page=number, sort="created_at")
        )
        _refuse_endless(number, page, before)
        self._learn(page.rows, read_at)
        survey.pages += 1
        survey.next = None if page.is_last else f"{_LIST}{number + 1}"
        return page

    def _judge_order(
        self, poll: Poll, page: BadgePage, before: BadgePage | None
    ) -> None:
        first = page.rows[0].state_at if page.rows else None
        highest = before.rows[0].state_at if before and before.rows else None

        if poll.page == 1:
            in_order = page.newest_first and (first is not None or not page.rows)
            # One page is read as a whole, in whatever order.
            poll.unsorted = not (in_order or page.is_last)

            if in_order and first is not None:
                poll.newest = first
        elif not page.newest_first:
            poll.unsorted = True
        elif first is not None and before is not None and before.rows:
            # Those that do not say when they changed come last.
            if before.rows[-1].state_at is None or (highest and first > highest):
                poll.unsorted = True

    def _learn(self, badges: list[Badge], read_at: dt.datetime) -> None:
        for start in range(0, len(badges), AT_A_TIME):
            self._learn_some(badges[start : start + AT_A_TIME], read_at)

    def _learn_some(self, badges: list[Badge], read_at: dt.datetime) -> None:
        learned = polls.learn(self._engine, self._gate, badges, read_at)

        if learned.mismatched:
            logger.warning(
                "%d badges have a different badge template at Credly than in the"
                " ledger.",
                learned.mismatched,
                extra={"credly_event": "badge_mismatched"},
            )

        if learned.to_tell:
            announce.what_became(self._state, learned.to_tell)

    def _ask(self, question: t.Callable[[Secret], T]) -> T:
        per_second = self._state.settings.max_per_second

        if per_second is not None:
            wait = gates.reserve(
                self._engine, self._gate.tenant, 1, per_second, at_most=_PATIENCE
            )

            if wait is None or stopping.wait(wait):
                raise _GiveWay

        return with_token(self._state, self._gate.generation, question)


def _refuse_endless(number: int, page: BadgePage, before: BadgePage | None) -> None:
    if number > MAX_PAGES or before and page.ids and page.ids == before.ids:
        raise Refused("Credly's list did not end.")


def _is_known(poll: Poll, page: BadgePage) -> bool:
    """Whether all that follows was read before."""
    last = page.rows[-1].state_at if page.rows else None
    return last is not None and last < poll.known - polls.OVERLAP
