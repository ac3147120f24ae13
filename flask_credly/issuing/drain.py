"""Issues what is due.

The thread that runs a drain reads and writes the ledger; a few others only talk to
Credly. So there is no transaction open during a request, and what finishes together
is saved together.
"""

from __future__ import annotations

import collections
import concurrent.futures as cf
import dataclasses
import hashlib
import logging
import threading
import time
import typing as t

import sqlalchemy as sa

from .. import signals
from ..catalog import Member
from ..credly import BadgeRequest
from ..credly import Client
from ..errors import AlreadyHeld
from ..errors import ConnectionExpired
from ..errors import CredlyError
from ..errors import OutcomeUnknown
from ..errors import RateLimited
from ..errors import Refused
from ..errors import Unauthorized
from ..errors import Unavailable
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


@dataclasses.dataclass(frozen=True)
class _Step:
    """One request to make.

    :param knew_maybe: Whether the badge was maybe issued before it.
    :param send_before: Monotonic time after which it may not go out any more: the
        lease is then too old.
    """

    row: Row
    phase: Phase
    knew_maybe: bool
    send_before: float


@dataclasses.dataclass(frozen=True)
class _Outcome:
    answer: Answer
    badge_id: str | None = None
    error: CredlyError | None = None


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


def earner_id(installation: str, member_id: str) -> str:
    """Name a member towards Credly: the same for life, opaque, and not to be confused
    with the ids of another system of the same organization.
    """
    return hashlib.sha256(f"{installation}:{member_id}".encode()).hexdigest()[:40]


class _Drain:
    def __init__(self, state: State, client: Client, gate: gates.Gate) -> None:
        self._state = state
        self._engine = state.engine
        self._client = client
        self._gate = gate
        self._installation = _installation_key(state.engine)
        # A request takes at most the time-out; it may go out in the lease's first
        # half, and comes back well before its end.
        self._lease = max(60.0, 6 * state.settings.timeout)
        self._width = 1 if gate.probing else state.settings.concurrency
        self._paused = gate.probing
        self._token: SharedToken | None = None
        self._rejected: int | None = None
        self._doubtful: collections.deque[Row] = collections.deque()
        self._cleared: collections.deque[Row] = collections.deque()
        self._in_flight: dict[cf.Future[_Outcome], _Step] = {}
        self._stop = threading.Event()

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

        if row.attempts or _missing(row):
            row = self._with_fresh_member(row)

        if missing := _missing(row):
            if settle.fail(self._engine, row, missing):
                self._send_failed(row, missing)

            return

        self._cleared.append(row)

    def _with_fresh_member(self, row: Row) -> Row:
        if self._state.load_member is None:
            return row

        try:
            member = self._state.load_member(row.member_id)
        except Exception:
            logger.exception("The @credly.member hook failed for %r.", row.member_id)
            return row
        finally:
            # What the hook read must not stay open while Credly is asked.
            self._state.session.remove()

        if not isinstance(member, Member):
            return row

        fresh = dataclasses.replace(
            row,
            email=str(member.email or "").strip()[:320],
            first_name=str(member.first_name or "").strip()[:255],
            last_name=str(member.last_name or "").strip()[:255],
        )

        if fresh != row:
            claim.update_member(self._engine, fresh)

        return fresh

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
        step = _Step(row, phase, knew_maybe, time.monotonic() + self._lease / 2)
        future = pool.submit(self._ask, step, self._token)
        self._in_flight[future] = step

    def _ensure_token(self) -> bool:
        if self._token is not None:
            return True

        try:
            self._token = get_token(
                self._state, self._gate.generation, rejected=self._rejected or 0
            )
        except CredlyError as e:
            self._close_gate(_answer_to(e), e)
            return False

        return True

    # Asking: runs in the other threads.

    def _ask(self, step: _Step, token: SharedToken) -> _Outcome:
        if self._stop.is_set() or time.monotonic() > step.send_before:
            return _Outcome("not sent")

        request = self._request(step.row)

        try:
            return self._ask_once(step.phase, request, token)
        except CredlyError as e:
            if isinstance(e, Unauthorized):
                e.token_version = token.version

            return _Outcome(_answer_to(e), error=e)

    def _ask_once(
        self, phase: Phase, request: BadgeRequest, token: SharedToken
    ) -> _Outcome:
        if phase == "look-up":
            found = self._client.find(token.value, request)
            return _Outcome("found", found.id) if found else _Outcome("absent")

        try:
            return _Outcome("issued", self._client.issue(token.value, request).id)
        except AlreadyHeld as e:
            return self._find_held(request, token, e)

    def _find_held(
        self, request: BadgeRequest, token: SharedToken, error: AlreadyHeld
    ) -> _Outcome:
        # Success either way. The id is worth a question, but not a second one.
        try:
            found = self._client.find(token.value, request)
        except CredlyError as e:
            logger.info("The badge that is held could not be looked up: %s", e.detail)
            found = None

        return _Outcome("found", found.id) if found else _Outcome("held", error=error)

    def _request(self, row: Row) -> BadgeRequest:
        return BadgeRequest(
            template_id=row.template_id,
            earner_id=earner_id(self._installation, row.member_id),
            email=row.email,
            first_name=row.first_name,
            last_name=row.last_name,
            issued_at=row.completed_at,
        )

    # Settling.

    def _settle(self, done: list[tuple[_Step, _Outcome]]) -> None:
        settlements = []

        for step, outcome in done:
            answer = self._consider(outcome)

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

    def _consider(self, outcome: _Outcome) -> Answer:
        """Take a refused token for what it is: an old one is replaced and the request
        repeated; the credentials have expired if a fresh one is refused as well.
        """
        error = outcome.error

        if not isinstance(error, Unauthorized):
            return outcome.answer

        version = error.token_version

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

        if isinstance(error, RateLimited):
            seconds, reason = error.retry_after, t.cast(gates.Reason, "rate limit")
        else:
            seconds, reason = UNAVAILABLE_PAUSE, "unavailable"

        until = gates.pause(self._engine, generation, reason, seconds, detail)

        if until is not None:
            logger.warning("Issuing is paused until %s: %s", until.isoformat(), detail)
            signals.issuance_paused.send(self._state.app, until=until, reason=reason)

    def _learn(self, answers: list[Answer]) -> None:
        """Widen gently after a pause."""
        good = sum(answer in ("issued", "found", "held", "absent") for answer in answers)

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


def _send(signal: t.Any, state: State, row: Row, **extra: object) -> None:
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
        logger.exception("A receiver of %s failed.", signal.name)


def _detail(row: Row, outcome: _Outcome) -> str | None:
    if outcome.error:
        return outcome.error.detail

    if outcome.answer == "absent":  # what is wrong is what went wrong before
        return row.error or "No answer of Credly was received."

    return None


def _answer_to(error: CredlyError) -> Answer:
    # In this order: some are kinds of others.
    table: tuple[tuple[type[CredlyError], Answer], ...] = (
        (ConnectionExpired, "unauthorized"),
        (Unauthorized, "unauthorized"),
        (RateLimited, "rate limited"),
        (Unavailable, "unavailable"),
        (OutcomeUnknown, "unknown"),
        (Refused, "refused"),
    )
    return next(answer for kind, answer in table if isinstance(error, kind))


def _missing(row: Row) -> str | None:
    """Say what Credly would refuse the request for."""
    named = {
        "e-mail address": row.email,
        "first name": row.first_name,
        "last name": row.last_name,
    }
    missing = [name for name, value in named.items() if not value.strip()]

    if missing:
        return f"The member's profile has no {' and no '.join(missing)}."

    return None


def _installation_key(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        key: str = connection.execute(sa.select(Installation.key)).scalar_one()

    return key
