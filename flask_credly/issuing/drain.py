"""Issues what is due.

The thread that runs a drain reads and writes the ledger; a few others only talk to
Credly. So there is no transaction open during a request, and what finishes together
is saved together.
"""

from __future__ import annotations

import collections
import concurrent.futures as cf
import dataclasses
import itertools
import logging
import queue
import threading
import time

import sqlalchemy as sa

from ..credly import Client
from ..credly import Deadline
from ..errors import CredlyError
from ..errors import InTrouble
from ..errors import RateLimited
from ..errors import SecretUnreadable
from ..errors import Unauthorized
from ..errors import Unavailable
from ..ledger import claim
from ..ledger import gates
from ..ledger import settle
from ..ledger.claim import Row
from ..ledger.decide import Answer
from ..ledger.decide import decide
from ..ledger.decide import MAX_ATTEMPTS
from ..ledger.decide import Phase
from ..ledger.settle import Settlement
from ..models import Installation
from ..settings import AppState
from . import announce
from . import notifier
from . import profile
from . import whose
from .ask import answer_to
from .ask import Asker
from .ask import Outcome
from .ask import Step
from .stopping import stopping
from .token import get_token
from .token import SharedToken

logger = logging.getLogger("flask_credly")

BUDGET = 60.0
"""Seconds after which a drain takes no more rows and leaves them to the next."""

SHORT_PAUSE = 5.0
"""Seconds of a pause that a drain waits for. A longer one is left to the sweep."""

GLANCE = 0.25
"""Seconds after which nothing goes out any more that was begun: what the admin or a
member stops meanwhile is sent all the same.
"""

SEND_WITHIN = 5.0
"""Seconds after which nothing goes out any more, counted from before the intent was
written: the database may need its time for that, and the process may stand still.
"""

CAREFUL_WIDTH = 2
"""Requests in flight after a rate limit, and one more for every
:data:`CAREFUL_GROWTH` that went well.
"""

CAREFUL_GROWTH = 25

KEYLESS_FOR = 120.0
"""Seconds for which a worker without the key is taken to be there after one of its
drains: RQ's own says so with each of them only.
"""

DUPLICATES_WAIT = 60.0
"""Seconds to wait at least after a lost answer where Credly would issue twice: its
lists may lag, and nothing but the look-up keeps a second badge out. Also after a
worker's death: see :func:`lease_seconds`.
"""

LOOK_UP_WAIT = 30.0
"""Seconds until Credly is asked again whether the badge is there, where it did not
say. Doubled each time.
"""

MAX_LOOK_UPS = 8
"""Look-ups without a clear answer, over an hour, after which a person has to look."""

DIED = (
    "The worker died each time it handled this badge. The developer of this site finds"
    " the reason in its log."
)
NO_WORD = (
    "Credly did not say whether the badge was issued. Look there before you issue it by"
    " hand."
)


def lease_seconds(timeout: float) -> float:
    """Say how long a worker holds a row: until its request can have left, was answered
    or given up, and shows in Credly's lists.
    """
    return SEND_WITHIN + 2 * timeout + DUPLICATES_WAIT


def drain(state: AppState) -> bool:
    """Issue what is due until nothing is, the gate closes, or time is up.

    :return: Whether time was up and rows may be left.
    """
    until = time.monotonic() + BUDGET

    while (gate := gates.read(state.engine)) is not None:
        if gate.is_open:
            if _drain(state, gate, until):
                return True

            # Nothing is due any more, or the gate was closed.
            gate = gates.read(state.engine)

            if gate is None or gate.is_open:
                return False

        if gate.opens_in is None or gate.opens_in > SHORT_PAUSE:
            return False

        if time.monotonic() > until:
            return True

        if stopping.wait(gate.opens_in):
            return True

    return False


def _drain(state: AppState, gate: gates.Gate, until: float) -> bool:
    with Client(
        state.settings.api_url, gate.organization_id, timeout=state.settings.timeout
    ) as client:
        return _Drain(state, client, gate, until).run()


class _Drain:
    def __init__(
        self, state: AppState, client: Client, gate: gates.Gate, until: float
    ) -> None:
        self._state = state
        self._engine = state.engine
        self._gate = gate
        self._until = until
        self._lease = lease_seconds(state.settings.timeout)
        self._good = 0
        self._pace = _Pace()
        self._paused = gate.probing
        self._width = 1 if gate.probing else self._widest()
        self._token: SharedToken | None = None
        self._rejected: int | None = None
        self._called = False
        self._gave_back = False
        self._issued = 0
        self._suspect = False
        self._doubtful: collections.deque[Row] = collections.deque()
        self._cleared: collections.deque[Row] = collections.deque()
        self._turns: collections.deque[float] = collections.deque()
        self._in_flight: dict[cf.Future[Outcome], Step] = {}
        self._done: queue.SimpleQueue[cf.Future[Outcome]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._client = client
        self._asker = Asker(
            client, _installation_key(state.engine), self._stop, self._width
        )

    def run(self) -> bool:
        try:
            with cf.ThreadPoolExecutor(self._state.settings.concurrency) as pool:
                try:
                    return self._loop(pool)
                finally:
                    self._stop.set()
        finally:
            # The pool has waited for every answer: also where something went wrong,
            # what is known by now is written down.
            self._settle(_answered(self._in_flight))
            claim.release(self._engine, [*self._doubtful, *self._cleared])

            if self._issued:
                logger.info("Badges issued: %d.", self._issued)

    def _loop(self, pool: cf.ThreadPoolExecutor) -> bool:
        while True:
            if stopping.is_set():
                self._stop.set()

            out_of_time = time.monotonic() > self._until or stopping.is_set()

            if not self._stop.is_set() and not out_of_time:
                self._fill(pool)

            if not self._in_flight:
                if out_of_time or self._stop.is_set():
                    return out_of_time

                if self._gave_back:
                    self._gave_back = False
                    continue

                if not self._turns:
                    return False

            done = self._answers()
            self._pace.count(len(done))
            self._settle([(self._in_flight[each], each.result()) for each in done])

            for each in done:
                del self._in_flight[each]

    def _answers(self) -> list[cf.Future[Outcome]]:
        """Wait for an answer, and take all that are there. Not for ever: the process
        may be told to stop.
        """
        wait = 1.0

        if self._turns:
            wait = min(wait, max(0.001, self._turns[0] - time.monotonic()))

        try:
            done = [self._done.get(timeout=wait)]
        except queue.Empty:
            return []

        # While there is work for the threads, more answers come in to be saved with
        # it: until half of what waits has gone out.
        waiting = len(self._in_flight) - self._width
        self._stop.wait(self._pace.seconds_for(waiting // 2))

        while not self._done.empty():
            done.append(self._done.get())

        return done

    # Filling: claim, look at each row, write the intent, send.

    def _fill(self, pool: cf.ThreadPoolExecutor) -> None:
        full = self._state.settings.concurrency
        # Some are begun that wait for a thread, so that none is idle while the ledger
        # is written: not more than go out in time. At the next limit they go back.
        most = 7 * full if self._width == full else full
        waiting = min(self._pace.within(GLANCE / 2), most)
        room = self._width + waiting - len(self._in_flight)

        if room <= 0:
            return

        held = len(self._doubtful) + len(self._cleared)
        alone = not held and not self._in_flight

        if alone:
            self._suspect = False

        if held < room and not self._suspect:
            self._claim(self._enough(), alone=alone)

        if not self._doubtful and not self._cleared:
            self._turns.clear()
            return

        if not self._ensure_token():
            return

        turns = self._take_turns(min(room, len(self._doubtful) + len(self._cleared)))

        if not turns or not self._connect(pool, min(len(turns), self._width)):
            return

        # From before the leases are renewed: the process may stand still at any time.
        latest = Deadline(SEND_WITHIN)
        begun = self._begin(len(turns))
        held_on = self._hold(len(turns) - len(begun))
        send_before = latest.or_in(GLANCE)

        for row, before in begun:
            self._submit(
                pool,
                row,
                "issue",
                before,
                send_after=turns.popleft(),
                send_before=send_before,
            )

        for row in held_on:
            self._submit(
                pool,
                row,
                "look-up",
                row,
                send_after=turns.popleft(),
                send_before=send_before,
            )

    def _connect(self, pool: cf.ThreadPoolExecutor, number: int) -> bool:
        """Open the connections before anything is begun that is to go out at once."""
        if self._in_flight:
            return True

        try:
            self._client.connect(number, pool.map)
        except CredlyError as e:
            self._stop.set()
            self._close_gate("unavailable", e)
            return False

        return True

    def _enough(self) -> int:
        """Say how many rows to hold: not more than can go out within their lease."""
        number = 8 * self._width
        per_second = self._state.settings.max_per_second

        if per_second is None:
            return number

        return min(number, max(1, int(per_second * self._lease / 2)))

    def _take_turns(self, number: int) -> collections.deque[float]:
        """Get the monotonic times after which so many requests may go out, or fewer:
        those that may go out now. Nothing is begun that has to wait.
        """
        now = time.monotonic()
        per_second = self._state.settings.max_per_second

        if per_second is None:
            return collections.deque([now] * number)

        if not self._turns:
            self._turns = self._reserve(number, per_second)

        turns: collections.deque[float] = collections.deque()

        while self._turns and len(turns) < number and self._turns[0] < now + GLANCE / 2:
            turns.append(self._turns.popleft())

        return turns

    def _reserve(self, number: int, per_second: float) -> collections.deque[float]:
        # Not more than a second's worth, to leave some for other workers.
        number = max(1, min(number, int(per_second)))
        wait = gates.reserve(self._engine, number, per_second, at_most=self._lease / 4)

        if wait is None:
            return collections.deque()

        first = time.monotonic() + wait
        return collections.deque(first + i / per_second for i in range(number))

    def _claim(self, limit: int, *, alone: bool) -> None:
        rows = claim.claim(
            self._engine,
            self._gate,
            limit=limit,
            lease_seconds=self._lease,
            alone=alone,
        )
        if len(rows) == limit and not self._called:
            # There is work for another worker, which calls the next.
            self._called = True
            notifier.notify(self._state)

        self._suspect = any(row.crashes >= claim.POISON_THRESHOLD for row in rows)
        # A host's hook may be slow. What is not looked at in time is given back.
        until = time.monotonic() + self._lease / 4

        for number, row in enumerate(rows):
            if time.monotonic() > until:
                claim.release(self._engine, rows[number:])
                return

            if row.crashes > claim.MAX_CRASHES:
                self._fail(row, DIED)
            elif row.outcome_unknown or self._gate.restored:
                self._doubtful.append(row)
            else:
                self._clear(row)

    def _clear(self, row: Row) -> None:
        """Check that the request can be made, with the member's data as they are now
        where it is a retry or something is missing.
        """
        # It may be there and not be listed yet. Only the very same request is refused.
        too_early = row.outcome_unknown and row.unsettled

        if too_early and row.mapped_to != row.template_id:
            claim.put_off(self._engine, row)
            return

        if row.mapped_to is None:
            settle.cancel(self._engine, row)
            return

        if row.mapped_to != row.template_id:
            # It was looked up as what it was. Now it becomes the mapping's.
            if row.outcome_unknown:
                self._fail(row, NO_WORD)
            else:
                claim.follow_mapping(self._engine, row)

            return

        if not row.test and (row.attempts or profile.missing(row)):
            row = profile.refresh(self._state, row)

        if missing := profile.missing(row):
            if too_early:
                claim.put_off(self._engine, row)
            else:
                self._fail(row, missing)

            return

        self._cleared.append(row)

    def _fail(self, row: Row, detail: str) -> None:
        if settle.fail(self._engine, row, detail) and not row.test:
            announce.failed(self._state, row, detail)

    def _begin(self, room: int) -> list[tuple[Row, Row]]:
        """Write the intent. Get each row as it is now, and as it was before."""
        rows = list(itertools.islice(self._cleared, room))

        if not rows:
            return []

        asked = {(row.id, row.lease): row for row in rows}
        begun = [
            (row, asked.pop((row.id, row.lease)))
            for row in claim.begin(
                self._engine,
                rows,
                self._gate.generation,
                lease_seconds=self._lease,
            )
        ]

        # Not before: where that failed, they are given back.
        for _ in rows:
            self._cleared.popleft()

        if asked:
            self._look_at_gate(list(asked.values()))

        return begun

    def _hold(self, room: int) -> list[Row]:
        rows = list(itertools.islice(self._doubtful, room))

        if not rows:
            return []

        held = claim.hold(
            self._engine, rows, self._gate.generation, lease_seconds=self._lease
        )

        for _ in rows:
            self._doubtful.popleft()

        kept = {row.id for row in held}

        if lost := [row for row in rows if row.id not in kept]:
            self._look_at_gate(lost)

        return held

    def _look_at_gate(self, rows: list[Row]) -> None:
        """Find out why these were not begun. If it was not the gate, the lease is lost
        or the mapping removed or changed: the next claim sees to that.
        """
        claim.release(self._engine, rows)
        gate = gates.read(self._engine)

        if gate is None or not gate.is_open or gate.generation != self._gate.generation:
            self._stop.set()
        else:
            self._gave_back = True

    def _submit(
        self,
        pool: cf.ThreadPoolExecutor,
        row: Row,
        phase: Phase,
        before: Row,
        *,
        send_after: float,
        send_before: Deadline,
    ) -> None:
        assert self._token is not None
        step = Step(
            row,
            phase,
            was_uncertain=before.outcome_unknown,
            sent_before=before.issued_at is not None,
            send_after=send_after,
            send_before=send_before,
            token=self._token,
        )
        asked = pool.submit(self._asker.ask, step)
        self._in_flight[asked] = step
        asked.add_done_callback(self._done.put)

    def _ensure_token(self) -> bool:
        if self._token is not None:
            return True

        try:
            self._token = get_token(
                self._state, self._gate.generation, rejected=self._rejected or 0
            )
        except CredlyError as e:
            self._close_gate(answer_to(e), e)
            return False

        return True

    # Settling.

    def _settle(self, done: list[tuple[Step, Outcome]]) -> None:
        settlements = []
        closing: list[tuple[Answer, CredlyError]] = []

        for step, outcome in done:
            answer, badge_id, detail = self._consider(step, outcome)
            told = step.row.told
            rule = decide(
                step.phase, answer, MAX_ATTEMPTS if told else step.row.attempts
            )

            if rule.then == "issue":
                maybe = step.was_uncertain if rule.outcome_unknown is None else False
                self._clear(dataclasses.replace(step.row, outcome_unknown=maybe))
                continue

            if rule.close:
                assert outcome.error is not None
                self._stop.set()
                closing.append((answer, outcome.error))

            settlements.append(
                Settlement(
                    row=step.row,
                    phase=step.phase,
                    answer=answer,
                    rule=rule,
                    was_uncertain=step.was_uncertain,
                    wait=self._wait(step, answer) if rule.then == "wait" else 0,
                    badge_id=badge_id,
                    detail=detail or _detail(step.row, answer, outcome),
                    said=outcome.error.detail if outcome.error else None,
                    status=outcome.error.status if outcome.error else None,
                )
            )

        saved = self._save(settlements)

        try:
            for answer, error in closing:
                self._close_gate(answer, error)

            self._learn([(step.phase, outcome.answer) for step, outcome in done])
        finally:
            for each in saved:
                self._announce(each)

    def _save(self, settlements: list[Settlement]) -> list[Settlement]:
        try:
            settle.settle(self._engine, settlements)
            return settlements
        except (settle.LeaseLost, sa.exc.SQLAlchemyError):
            pass

        # One that cannot be saved shall not take the others along.
        return [each for each in settlements if self._save_one(each)]

    def _save_one(self, each: Settlement) -> bool:
        try:
            try:
                settle.settle(self._engine, [each])
                return True
            except sa.exc.IntegrityError:
                if each.badge_id is None:
                    raise

                # Another row has taken this badge meanwhile: look once more.
                settle.settle(self._engine, [_doubt(each)])
        except settle.LeaseLost:
            pass  # another worker sees to it
        except sa.exc.SQLAlchemyError:
            logger.exception(
                "What became of badge %d was not saved.",
                each.row.id,
                extra={
                    "credly_event": "badge_not_saved",
                    "credly_issuance": each.row.id,
                },
            )

        return False

    def _consider(
        self, step: Step, outcome: Outcome
    ) -> tuple[Answer, str | None, str | None]:
        """Say what an answer comes to, with the badge's id and words for the admin."""
        if isinstance(outcome.error, Unauthorized):
            return self._consider_token(step, outcome.error), None, None

        if outcome.looked or outcome.answer == "held":
            return self._consider_list(step, outcome)

        if step.phase == "look-up" and outcome.answer in (
            *("refused", "unknown", "foreign"),
        ):
            return self._consider_silence(step, outcome.answer)

        return outcome.answer, outcome.badge_id, None

    def _consider_token(self, step: Step, error: Unauthorized) -> Answer:
        """Take a refused token for what it is: an old one is replaced and the request
        repeated; the credentials have expired if a fresh one is refused as well.
        """
        version = step.token.version

        if self._token is not None and version < self._token.version:
            return "not sent"

        if self._rejected is None:
            self._rejected = version
            self._token = None
            return "not sent"

        if version <= self._rejected:
            return "not sent"

        # A firewall's page says nothing about the credentials.
        return "unavailable" if error.foreign else "unauthorized"

    def _consider_list(
        self, step: Step, outcome: Outcome
    ) -> tuple[Answer, str | None, str | None]:
        row, shown = step.row, outcome.shown
        ids = [each.id for each in shown]
        found = whose.look_through(
            shown,
            self._asker.request_of(row),
            known=claim.badges_of_others(self._engine, row, ids) if ids else (),
            allows_duplicates=row.allows_duplicates,
            restored=self._gate.restored,
        )

        if found.badge_id:
            return "found", found.badge_id, None

        words = whose.explain(found.in_the_way, test=row.test)

        if outcome.answer == "held":  # Credly has refused the request
            if words or not (step.sent_before or not outcome.looked):
                return "held", None, words or whose.NOT_LISTED

            return "unlisted", None, None

        if row.duplicate:
            if words or row.look_ups + 1 >= MAX_LOOK_UPS:
                return "held", None, words or whose.NOT_LISTED

            return "unlisted", None, None

        if words and not row.allows_duplicates and row.attempts >= MAX_ATTEMPTS:
            return "held", None, words

        # Where something may be in the way, Credly says so.
        return "not yet" if row.unsettled else "absent", None, None

    def _consider_silence(
        self, step: Step, answer: Answer
    ) -> tuple[Answer, str | None, str | None]:
        row = step.row
        last = row.look_ups + 1 >= MAX_LOOK_UPS

        if row.duplicate and last:
            return "held", None, whose.NOT_LISTED

        if row.duplicate and answer != "foreign":
            return "unlisted", None, None

        # Where Credly refuses duplicates itself, the request is safe.
        if answer == "refused" and not row.allows_duplicates:
            return answer, None, None

        if last:
            return "no word", None, None

        return ("unknown" if answer == "refused" else answer), None, None

    def _wait(self, step: Step, answer: Answer) -> float:
        delay = self._state.settings.retry_delay

        if step.phase == "look-up":
            return max(delay, LOOK_UP_WAIT * 2.0**step.row.look_ups)

        lost = answer in ("unknown", "foreign", "in trouble")

        if lost and step.row.allows_duplicates:
            return max(delay, DUPLICATES_WAIT)

        return delay

    def _close_gate(self, answer: Answer, error: CredlyError) -> None:
        generation = self._gate.generation

        if isinstance(error, SecretUnreadable):
            self._stop.set()
            announce.keyless(self._state, generation, KEYLESS_FOR)
            return

        if answer == "unauthorized":
            announce.expired(self._state, generation, error)
            return

        reason: gates.Reason

        if isinstance(error, RateLimited):
            reason, seconds = "rate limit", error.retry_after
        else:
            reason, seconds = "unavailable", 0.0

        if isinstance(error, (InTrouble, Unavailable)):
            seconds = error.retry_after

        until = gates.pause(self._engine, generation, reason, seconds, error.detail)

        if until is not None:
            announce.paused(self._state, until, reason, error)

    def _learn(self, answers: list[tuple[Phase, Answer]]) -> None:
        """Widen gently after a pause."""
        phases = [
            phase
            for phase, answer in answers
            if answer in ("issued", "found", "held", "absent", "not yet")
        ]

        if not phases:
            return

        # A look-up that succeeds says nothing about what is asked for next.
        if self._paused and "issue" in phases:
            gates.resume(self._engine, self._gate.generation)
            self._paused = False

        self._good += len(phases)
        width = min(self._width + len(phases), self._widest())
        self._asker.widen(width - self._width)
        self._width = width

    def _widest(self) -> int:
        full = self._state.settings.concurrency

        if not self._gate.careful:
            return full

        return min(full, CAREFUL_WIDTH + self._good // CAREFUL_GROWTH)

    def _announce(self, each: Settlement) -> None:
        if each.row.test:
            return

        if each.rule.then == "failed":
            if not each.row.told:
                announce.failed(self._state, each.row, each.detail or "")
        elif each.rule.then == "issued":
            self._issued += 1
            announce.issued(self._state, each.row, each.badge_id)


class _Pace:
    """How fast answers come in, by the last quarter of a second or so."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._answers = 0
        self._per_second = 0.0

    def count(self, answers: int) -> None:
        self._answers += answers
        passed = time.monotonic() - self._since

        if passed >= GLANCE:
            self._per_second = self._answers / passed
            self._since += passed
            self._answers = 0

    def within(self, seconds: float) -> int:
        """How many answers to expect."""
        per_second = self._per_second
        passed = time.monotonic() - self._since

        if not per_second and passed:  # the first quarter of a second
            per_second = self._answers / passed

        return int(per_second * seconds)

    def seconds_for(self, answers: int) -> float:
        """How long so many take, a twentieth of a second at most."""
        if answers < 2 or not self._per_second:
            return 0

        return min(0.05, answers / self._per_second)


def _answered(
    in_flight: dict[cf.Future[Outcome], Step],
) -> list[tuple[Step, Outcome]]:
    return [
        (step, each.result())
        for each, step in in_flight.items()
        if each.done() and not each.cancelled() and not each.exception()
    ]


def _doubt(each: Settlement) -> Settlement:
    answer: Answer = "unknown" if each.phase == "issue" else "not sent"
    rule = decide(each.phase, answer, each.row.attempts)
    return dataclasses.replace(each, answer=answer, rule=rule, badge_id=None)


def _detail(row: Row, answer: Answer, outcome: Outcome) -> str | None:
    if answer == "no word" and outcome.error:
        return f"{NO_WORD} {outcome.error.detail}"

    if outcome.error:
        return outcome.error.detail

    if answer in ("absent", "not yet"):  # what is wrong is what went wrong before
        return row.error or "No answer of Credly was received."

    return None


def _installation_key(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        key: str = connection.execute(sa.select(Installation.key)).scalar_one()

    return key
