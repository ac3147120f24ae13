"""Issues what is due.

The thread that runs a drain reads and writes the ledger; a few others only talk to
Credly. So there is no transaction open during a request, and what finishes together
is saved together.
"""

from __future__ import annotations

import collections
import concurrent.futures as cf
import dataclasses
import logging
import threading
import time
import typing as t

import blinker
import sqlalchemy as sa

from .. import signals
from ..credly import Client
from ..errors import CredlyError
from ..errors import RateLimited
from ..errors import Unauthorized
from ..ledger import claim
from ..ledger import gates
from ..ledger import settle
from ..ledger.claim import Row
from ..ledger.decide import Answer
from ..ledger.decide import decide
from ..ledger.decide import Phase
from ..ledger.settle import Settlement
from ..models import Installation
from ..settings import State
from . import profile
from .ask import answer_to
from .ask import Asker
from .ask import Outcome
from .ask import Step
from .token import get_token
from .token import SharedToken

logger = logging.getLogger("flask_credly")

BUDGET = 60.0
"""Seconds after which a drain takes no more rows and leaves them to the next."""

UNAVAILABLE_PAUSE = 30.0
"""Seconds to pause when Credly cannot be reached."""

DUPLICATES_WAIT = 60.0
"""Seconds to wait at least after a lost answer where Credly would issue twice: its
lists may lag, and nothing but the look-up keeps a second badge out.
"""


def drain(state: State) -> bool:
    """Issue what is due until nothing is, the gate closes, or time is up.

    :return: Whether time was up and rows may be left.
    """
    gate = gates.read(state.engine)

    if gate is None or not gate.is_open:
        return False

    with Client(
        state.settings.api_url, gate.organization_id, timeout=state.settings.timeout
    ) as client:
        return _Drain(state, client, gate).run()


class _Drain:
    def __init__(self, state: State, client: Client, gate: gates.Gate) -> None:
        self._state = state
        self._engine = state.engine
        self._gate = gate
        # A request takes at most the time-out; it may go out in the lease's first
        # half, and comes back well before its end.
        self._lease = max(60.0, 6 * state.settings.timeout)
        self._width = 1 if gate.probing else state.settings.concurrency
        self._paused = gate.probing
        self._token: SharedToken | None = None
        self._rejected: int | None = None
        self._doubtful: collections.deque[Row] = collections.deque()
        self._cleared: collections.deque[Row] = collections.deque()
        self._in_flight: dict[cf.Future[Outcome], Step] = {}
        self._stop = threading.Event()
        self._asker = Asker(client, _installation_key(state.engine), self._stop)

    def run(self) -> bool:
        until = time.monotonic() + BUDGET
        out_of_time = False

        with cf.ThreadPoolExecutor(self._state.settings.concurrency) as pool:
            try:
                while True:
                    out_of_time = time.monotonic() > until

                    if not self._stop.is_set():
                        self._fill(pool, take_more=not out_of_time)

                    if not self._in_flight:
                        break

                    done, _ = cf.wait(self._in_flight, return_when=cf.FIRST_COMPLETED)
                    self._settle([(self._in_flight.pop(f), f.result()) for f in done])
            finally:
                self._stop.set()

        claim.release(self._engine, [*self._doubtful, *self._cleared])
        return out_of_time

    # Filling: claim, look at each row, write the intent, send.

    def _fill(self, pool: cf.ThreadPoolExecutor, *, take_more: bool) -> None:
        full = self._state.settings.concurrency
        # At full width as many again wait for a free thread, so that none is idle
        # while the ledger is written.
        depth = self._width if self._width < full else 2 * full
        room = depth - len(self._in_flight)

        if room <= 0:
            return

        if take_more and len(self._doubtful) + len(self._cleared) < room:
            self._claim(8 * self._width)

        if not self._doubtful and not self._cleared:
            return

        if not self._ensure_token():
            return

        for row, knew_maybe in self._begin(room):
            self._submit(pool, row, "issue", knew_maybe=knew_maybe)
            room -= 1

        while self._doubtful and room > 0:
            self._submit(pool, self._doubtful.popleft(), "look-up", knew_maybe=True)
            room -= 1

    def _claim(self, limit: int) -> None:
        rows = claim.claim(
            self._engine,
            self._gate.organization_id,
            limit=limit,
            lease_seconds=self._lease,
        )
        for row in rows:
            if row.maybe_issued:
                self._doubtful.append(row)
            else:
                self._clear(row)

    def _clear(self, row: Row) -> None:
        """Check that the request can be made, with the member's data as they are now
        where it is a retry or something is missing.
        """
        if not row.mapped:
            settle.cancel(self._engine, row, "The mapping was removed.")
            return

        if row.attempts or profile.missing(row):
            row = profile.refresh(self._state, row)

        if missing := profile.missing(row):
            if settle.fail(self._engine, row, missing):
                self._send_failed(row, missing)

            return

        self._cleared.append(row)

    def _begin(self, room: int) -> list[tuple[Row, bool]]:
        rows = [self._cleared.popleft() for _ in range(min(room, len(self._cleared)))]
        begun: list[tuple[Row, bool]] = []

        for lease in dict.fromkeys(row.lease for row in rows):
            asked = {row.id: row for row in rows if row.lease == lease}
            ok = claim.begin(
                self._engine,
                list(asked.values()),
                self._gate.generation,
                lease_seconds=self._lease,
            )
            begun += [(row, asked.pop(row.id).maybe_issued) for row in ok]

            if asked:
                self._look_at_gate(list(asked.values()))

        return begun

    def _look_at_gate(self, rows: list[Row]) -> None:
        """Find out why these were not begun. If it was not the gate, the lease is lost
        or the mapping removed: the next claim sees to that.
        """
        claim.release(self._engine, rows)
        gate = gates.read(self._engine)

        if gate is None or not gate.is_open or gate.generation != self._gate.generation:
            self._stop.set()

    def _submit(
        self, pool: cf.ThreadPoolExecutor, row: Row, phase: Phase, *, knew_maybe: bool
    ) -> None:
        assert self._token is not None
        send_before = time.monotonic() + self._lease / 2
        step = Step(row, phase, knew_maybe, send_before, self._token)
        self._in_flight[pool.submit(self._asker.ask, step)] = step

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

        for step, outcome in done:
            answer = self._consider(step, outcome)

            if answer == "refused" and step.phase == "look-up":
                answer = "unknown" if step.row.allows_duplicates else "refused"

            rule = decide(step.phase, answer, step.row.attempts)

            if rule.then == "issue":
                maybe = step.knew_maybe if rule.maybe_issued is None else False
                self._clear(dataclasses.replace(step.row, maybe_issued=maybe))
                continue

            if rule.close:
                self._close_gate(answer, outcome.error)

            settlements.append(
                Settlement(
                    row=step.row,
                    phase=step.phase,
                    answer=answer,
                    rule=rule,
                    knew_maybe=step.knew_maybe,
                    wait=self._wait(step.row, answer) if rule.then == "wait" else 0,
                    badge_id=outcome.badge_id,
                    detail=_detail(step.row, outcome),
                    status=outcome.error.status if outcome.error else None,
                )
            )

        saved = settle.settle(self._engine, settlements)
        self._learn([outcome.answer for _, outcome in done])

        for each in saved:
            self._announce(each)

    def _consider(self, step: Step, outcome: Outcome) -> Answer:
        """Take a refused token for what it is: an old one is replaced and the request
        repeated; the credentials have expired if a fresh one is refused as well.
        """
        if not isinstance(outcome.error, Unauthorized):
            return outcome.answer

        version = step.token.version

        if self._token is not None and version < self._token.version:
            return "not sent"

        if self._rejected is None:
            self._rejected = version
            self._token = None
            return "not sent"

        return "not sent" if version <= self._rejected else "unauthorized"

    def _wait(self, row: Row, answer: Answer) -> float:
        delay = self._state.settings.retry_delay

        if answer == "unknown" and row.allows_duplicates:
            return max(delay, DUPLICATES_WAIT)

        return delay

    def _close_gate(self, answer: Answer, error: CredlyError | None) -> None:
        self._stop.set()
        detail = error.detail if error else ""
        generation = self._gate.generation

        if answer == "unauthorized":
            logger.warning("The connection to Credly has expired: %s", detail)
            gates.expire(self._engine, generation)
            return

        reason: gates.Reason

        if isinstance(error, RateLimited):
            reason, seconds = "rate limit", error.retry_after
        else:
            reason, seconds = "unavailable", UNAVAILABLE_PAUSE

        until = gates.pause(self._engine, generation, reason, seconds, detail)

        if until is not None:
            logger.warning("Issuing is paused until %s: %s", until.isoformat(), detail)
            signals.issuance_paused.send(self._state.app, until=until, reason=reason)

    def _learn(self, answers: list[Answer]) -> None:
        """Widen gently after a pause."""
        good = sum(
            answer in ("issued", "found", "held", "absent") for answer in answers
        )

        if not good:
            return

        if self._paused:
            gates.resume(self._engine, self._gate.generation)
            self._paused = False

        self._width = min(self._width + good, self._state.settings.concurrency)

    def _announce(self, each: Settlement) -> None:
        row = each.row

        if each.rule.then == "failed":
            self._send_failed(row, each.detail or "")
        elif each.rule.then == "issued":
            _send(signals.badge_issued, self._state, row, badge_id=each.badge_id)

    def _send_failed(self, row: Row, error: str) -> None:
        logger.warning(
            "No badge for member %r, %s %r: see the error log.",
            row.member_id,
            row.kind,
            row.course_id,
        )
        _send(signals.badge_failed, self._state, row, error=error)


def _send(signal: blinker.Signal, state: State, row: Row, **extra: t.Any) -> None:
    try:
        signal.send(
            state.app,
            member_id=row.member_id,
            course_id=row.course_id,
            kind=row.kind,
            template_id=row.template_id,
            **extra,
        )
    except Exception:
        logger.exception("A receiver of %r failed.", signal)


def _detail(row: Row, outcome: Outcome) -> str | None:
    if outcome.error:
        return outcome.error.detail

    if outcome.answer == "absent":  # what is wrong is what went wrong before
        return row.error or "No answer of Credly was received."

    return None


def _installation_key(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        key: str = connection.execute(sa.select(Installation.key)).scalar_one()

    return key
