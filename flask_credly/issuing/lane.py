"""Issues what is due for one account.

The thread that runs a lane reads and writes the ledger; a few others only talk to
Credly. So there is no transaction open during a request, and what finishes together
is saved together.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import concurrent.futures as cf
import dataclasses
import functools
import itertools
import logging
import queue
import threading
import time
import typing as t

import sqlalchemy as sa

from ..credly import Client
from ..credly import Deadline
from ..errors import CredlyError
from ..errors import SecretUnreadable
from ..ledger import claim
from ..ledger import gates
from ..ledger import polls
from ..ledger import settle
from ..ledger.claim import Row
from ..ledger.decide import Answer
from ..ledger.decide import Phase
from ..ledger.settle import Settlement
from ..models import Reason
from ..state import Community
from . import announce
from . import notifier
from . import profile
from . import verdict
from .closing import close
from .sender import answer_to
from .sender import Outcome
from .sender import Request
from .sender import Sender
from .throttle import LOOKAHEAD
from .throttle import Throttle
from .token import open_client
from .token import SharedToken
from .token import TokenHolder
from .verdict import Judge

logger = logging.getLogger("flask_credly")

SEND_WITHIN = 5.0
"""Seconds after which nothing goes out any more, counted from before the intent was
written: the database may need its time for that, and the process may stand still.
"""

ROWS_A_TURN = 10
"""Rows that one account gets at a time while others wait."""

FEW = 5
"""Badges from which on several are asked for with one request."""

Asked = list[Request]
"""One request about a row, or about several."""

Ended = t.Literal["idle", "nothing", "keyless", "time", "turn"]
"""How a lane ended. ``idle``: nothing more is due, or the account's gate was closed.
``nothing``: so it was from the first. ``keyless``: this process cannot decrypt the
Client Secret. ``time``: it was told to stop. ``turn``: others wait.
"""


def lease_seconds(timeout: float) -> float:
    """Say how long a worker holds a row: until its request can have left, was answered
    or given up, and shows in Credly's lists.
    """
    return SEND_WITHIN + 2 * timeout + verdict.DUPLICATES_WAIT


@dataclasses.dataclass
class Share:
    """What a lane may use.

    :param most: Requests in flight while it is alone.
    :param lanes: How many accounts are served at a time, at most.
    :param over: Says whether time is up.
    :param accounts: How many accounts have something due, those that are served among
        them: as they were looked at last.
    """

    most: int
    lanes: int
    over: t.Callable[[], bool]
    accounts: int = 1

    @property
    def is_crowded(self) -> bool:
        """Whether other accounts wait."""
        return self.accounts > 1

    @property
    def while_crowded(self) -> int:
        """Requests in flight then: at most half."""
        return max(1, self.most // min(max(2, self.accounts), self.lanes))


def serve(state: Community, gate: gates.Gate, share: Share) -> Ended:
    """Issue what is due for an account, until nothing is, its gate closes, or its turn
    or the time is over.
    """
    with open_client(state, gate.organization_id) as client:
        return _Lane(state, client, gate, share).run()


class _Lane:
    def __init__(
        self, state: Community, client: Client, gate: gates.Gate, share: Share
    ) -> None:
        self._state = state
        self._engine = state.engine
        self._gate = gate
        self._share = share
        self._lease = lease_seconds(state.settings.timeout)
        self._throttle = Throttle(
            self._engine,
            gate,
            most=share.most,
            per_second=state.settings.max_per_second,
            lease=self._lease,
        )
        self._token = TokenHolder(state, gate.generation)
        self._stop = threading.Event()
        self._client = client
        self._sender = Sender(
            client, gate.installation, self._stop, self._throttle.limit
        )
        self._judge = Judge(
            self._token,
            restored=gate.restored,
            retry_delay=state.settings.retry_delay,
            request_of=self._sender.request_of,
            badges_of_others=functools.partial(claim.badges_of_others, self._engine),
        )
        self._paused = gate.probing
        self._called = False
        self._keyless = False
        self._claimed = False
        self._found_none = False
        self._gave_back = False
        self._issued = 0
        self._left: int | None = None
        self._alone = False
        self._to_look_up: collections.deque[Row] = collections.deque()
        self._ready: collections.deque[Row] = collections.deque()
        self._in_flight: dict[cf.Future[list[Outcome]], Asked] = {}
        self._done: queue.SimpleQueue[cf.Future[list[Outcome]]] = queue.SimpleQueue()
        self._most_together = state.settings.batch_size if gate.batches else 1
        self._together = self._most_together
        # By their ids: what is asked for alone; and of that which Credly has named when
        # it refused several, whether it was asked for before.
        self._singly: set[int] = set()
        self._named: dict[int, bool] = {}

    def run(self) -> Ended:
        try:
            with cf.ThreadPoolExecutor(self._share.most) as pool:
                try:
                    return self._loop(pool)
                finally:
                    self._stop.set()
        finally:
            # The pool has waited for every answer: also where something went wrong,
            # what is known by now is written down.
            self._settle(_answered(self._in_flight))
            claim.release(self._engine, [*self._to_look_up, *self._ready])
            self._throttle.leave()

            if self._issued:
                logger.info("Badges issued: %d.", self._issued)

    def _loop(self, pool: cf.ThreadPoolExecutor) -> Ended:
        while True:
            out_of_time = self._share.over()
            its_turn = not out_of_time and self._has_turn()

            if its_turn and not self._stop.is_set():
                self._fill(pool)

            if not self._in_flight:
                if out_of_time:
                    return "time"

                if self._keyless:
                    return "keyless"

                held = self._ready or self._to_look_up

                if self._stop.is_set() or (self._found_none and not held):
                    return "idle" if self._claimed else "nothing"

                if not its_turn:
                    return "turn"

                if self._gave_back:
                    self._gave_back = False
                    continue

                if self._throttle.next_at is None:
                    return "idle" if self._claimed else "nothing"

            done = self._answers()
            self._throttle.count(len(done))
            self._settle([(self._in_flight[each], each.result()) for each in done])

            for each in done:
                del self._in_flight[each]

    def _has_turn(self) -> bool:
        """Whether it may begin more: while others wait, a few rows and no more."""
        if not self._share.is_crowded:
            self._left = None
            return True

        if self._left is None:
            self._left = max(0, ROWS_A_TURN - self._give_back())

        return self._left > 0 or bool(self._ready or self._to_look_up)

    def _give_back(self) -> int:
        """Keep what is for one turn of what is held. Get how much that is."""
        spare: list[Row] = []

        for held in (self._ready, self._to_look_up):
            while held and len(self._ready) + len(self._to_look_up) > ROWS_A_TURN:
                spare.append(held.pop())

        claim.release(self._engine, spare)
        return len(self._ready) + len(self._to_look_up)

    def _answers(self) -> list[cf.Future[list[Outcome]]]:
        """Wait for an answer, and take all that are there. Not for ever: the process
        may be told to stop.
        """
        wait = 1.0

        if (next_at := self._throttle.next_at) is not None:
            wait = min(wait, max(0.001, next_at - time.monotonic()))

        try:
            done = [self._done.get(timeout=wait)]
        except queue.Empty:
            return []

        # While there is work for the threads, more answers come in to be saved with it.
        self._stop.wait(self._throttle.seconds_until_half(len(self._in_flight)))

        while not self._done.empty():
            done.append(self._done.get())

        return done

    # Filling: claim, look at each row, write the intent, send.

    def _fill(self, pool: cf.ThreadPoolExecutor) -> None:
        room = self._throttle.room(len(self._in_flight))

        if self._share.is_crowded:
            room = min(room, self._share.while_crowded - len(self._in_flight))

        if room <= 0:
            return

        held = len(self._to_look_up) + len(self._ready)
        nothing_else = not held and not self._in_flight

        if nothing_else:
            self._alone = False

        size = self._batch_size()

        if held < room * size and not self._alone:
            enough = self._throttle.enough()
            # Of many no more than is needed: if this worker dies, each is looked up.
            batches = min(enough, 2 * self._throttle.limit)
            self._claim(max(enough, batches * size), alone=nothing_else)

        if not self._to_look_up and not self._ready:
            self._throttle.forget_reserved()
            return

        if (token := self._get_token()) is None:
            return

        chosen = self._choose(room, size)
        turns = self._throttle.take(min(room, len(self._to_look_up) + len(chosen)))

        if not turns or not self._connect(pool, min(len(turns), self._throttle.limit)):
            return

        # From before the leases are renewed: the process may stand still at any time.
        latest = Deadline(SEND_WITHIN)
        begun = self._begin(chosen[: len(turns)])
        held_on = self._hold(len(turns) - len(begun))
        send_before = latest.or_in(LOOKAHEAD)

        for is_begun, each in (
            *((True, each) for each in begun),
            *((False, [(row, row)]) for row in held_on),
        ):
            send_after = turns.popleft()
            asked = [
                Request(
                    row,
                    _phase_of(row) if is_begun else "look-up",
                    was_uncertain=before.outcome_unknown,
                    sent_before=before.issued_at is not None
                    and self._named.get(row.id, True),
                    send_after=send_after,
                    send_before=send_before,
                    token=token,
                )
                for row, before in each
            ]
            sent = pool.submit(self._sender.send, asked)
            self._in_flight[sent] = asked
            sent.add_done_callback(self._done.put)

    def _batch_size(self) -> int:
        """Say how many badges to ask for with one request at most."""
        # If Credly is in trouble, as few as possible shall be uncertain.
        probing = self._paused and not self._gate.careful
        few = min(FEW, self._most_together)
        return 1 if probing or self._together < few else self._together

    def _choose(self, room: int, size: int) -> list[list[Row]]:
        """Choose what to ask for next, and what of it with one request."""
        chosen: list[list[Row]] = []
        # No two for the same member: the answer would not tell them apart.
        batch: dict[tuple[str, str], Row] = {}

        for row in self._ready:
            if len(chosen) == room:
                return chosen

            if size == 1 or not self._may_go_along(row):
                chosen.append([row])
            elif (key := (row.member_id, row.template_id)) not in batch:
                batch[key] = row

                if len(batch) == size:
                    chosen.append(list(batch.values()))
                    batch = {}

        if len(batch) < min(FEW, size):
            return [*chosen, *([row] for row in batch.values())][:room]

        return [*chosen, list(batch.values())]

    def _may_go_along(self, row: Row) -> bool:
        """Whether a badge may be asked for together with others: a new one, of which
        nothing is in doubt.
        """
        return (
            row.action == "issue"
            and not (row.attempts or row.outcome_unknown or row.duplicate)
            and not (row.crashes or row.test)
            and row.id not in self._singly
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

    def _get_token(self) -> SharedToken | None:
        try:
            return self._token.get()
        except CredlyError as e:
            self._close_gate(answer_to(e), e)
            return None

    def _claim(self, limit: int, *, alone: bool) -> None:
        if self._left is not None:
            limit = min(limit, self._left)

        if not limit:
            return

        rows = claim.claim(
            self._engine,
            self._gate,
            limit=limit,
            lease_seconds=self._lease,
            alone=alone,
        )

        self._claimed = self._claimed or bool(rows)

        if rows and self._gate.polls_late:
            # Before anything is issued: what becomes of it is asked for, though this
            # process may end now.
            polls.soon(self._engine, self._gate)
            self._gate = dataclasses.replace(self._gate, polls_late=False)

        if self._left is not None:
            # What is not there uses up the turn as well.
            self._left = self._left - len(rows) if rows else 0
            self._found_none = not rows

        if len(rows) == limit and not self._called:
            # There is work for another worker, which calls the next.
            self._called = True
            notifier.notify(self._state)

        self._alone = any(row.crashes >= claim.POISON_THRESHOLD for row in rows)
        # A host's hook may be slow. What is not looked at in time is given back.
        until = time.monotonic() + self._lease / 4

        for number, row in enumerate(rows):
            if time.monotonic() > until:
                claim.release(self._engine, rows[number:])
                return

            if row.crashes > claim.MAX_CRASHES:
                self._fail(row, reason="crashed")
            elif (
                row.outcome_unknown
                or self._gate.restored
                or row.action in ("revoke", "replace")
            ):
                self._to_look_up.append(row)
            else:
                self._make_ready(row)

    def _make_ready(self, row: Row) -> None:
        """Check that the request can be made, with the member's data as they are now
        where it is a retry or something is missing.
        """
        if row.action == "revoke":
            self._ready.append(row)
            return

        # It may be there and not be listed yet. Only the very same request is refused.
        too_early = row.outcome_unknown and row.unsettled

        if too_early and row.mapped_to != row.template_id:
            claim.put_off(self._engine, row)
            return

        # Before the mapping: that may come back, and its badges with it.
        if row.withdrawn:
            if too_early:
                claim.put_off(self._engine, row)
            else:
                settle.cancel(self._engine, row, "withdrawn")

            return

        if row.mapped_to is None and row.is_as_mapped:
            if not settle.cancel_unmapped(self._engine, row):
                claim.release(self._engine, [row])

            return

        if row.is_as_mapped and row.mapped_to != row.template_id:
            # It was looked up as what it was. Now it becomes the mapping's.
            if row.outcome_unknown:
                self._fail(row, verdict.NO_WORD)
            else:
                claim.follow_mapping(self._engine, row)

            return

        wants_profile = row.is_as_mapped and not row.test

        if wants_profile and (row.attempts or profile.missing(row)):
            row = profile.refresh(self._state, row)

        if missing := profile.missing(row, with_address=row.action == "issue"):
            if too_early:
                claim.put_off(self._engine, row)
            else:
                self._fail(row, missing)

            return

        self._ready.append(row)

    def _fail(
        self, row: Row, detail: str | None = None, *, reason: Reason | None = None
    ) -> None:
        words = settle.fail(self._engine, row, detail, reason=reason)

        if words is not None and not row.test:
            announce.failed(self._state, row, words)

    def _begin(self, chosen: list[list[Row]]) -> list[list[tuple[Row, Row]]]:
        """Write the intent. Get each row as it is now, and as it was before."""
        asked = {(row.id, row.lease): row for each in chosen for row in each}

        if not asked:
            return []

        begun = {
            (row.id, row.lease): row
            for row in claim.begin(
                self._engine,
                list(asked.values()),
                self._gate,
                lease_seconds=self._lease,
            )
        }

        # Not before: where that failed, they are given back.
        self._ready = collections.deque(
            row for row in self._ready if (row.id, row.lease) not in asked
        )

        if lost := [row for key, row in asked.items() if key not in begun]:
            self._look_at_gate(lost)

        found = [
            [
                (begun[row.id, row.lease], row)
                for row in each
                if (row.id, row.lease) in begun
            ]
            for each in chosen
        ]
        return [each for each in found if each]

    def _hold(self, room: int) -> list[Row]:
        rows = list(itertools.islice(self._to_look_up, room))

        if not rows:
            return []

        held = claim.hold(self._engine, rows, self._gate, lease_seconds=self._lease)

        for _ in rows:
            self._to_look_up.popleft()

        kept = {row.id for row in held}

        if lost := [row for row in rows if row.id not in kept]:
            self._look_at_gate(lost)

        return held

    def _look_at_gate(self, rows: list[Row]) -> None:
        """Find out why these were not begun. If it was not the gate, the lease is lost
        or the mapping removed or changed: the next claim sees to that.
        """
        claim.release(self._engine, rows)
        gate = gates.read(self._engine, self._gate.tenant)

        if gate is None or not gate.is_open or gate.generation != self._gate.generation:
            self._stop.set()
        else:
            self._gave_back = True

    # Settling.

    def _settle(self, done: list[tuple[Asked, list[Outcome]]]) -> None:
        settlements = []
        closing: dict[int, tuple[Answer, CredlyError]] = {}

        for request, outcome in _by_row(done):
            each = self._judge.judge(request, outcome)

            if outcome.alone:
                self._singly.add(each.row.id)

            if outcome.named:
                self._named[each.row.id] = request.sent_before
            elif each.row.id in self._named and each.answer == "found":
                # It was refused with others, and issued all the same.
                self._sender.no_batch = "Credly issued a badge that it had refused."

            if each.rule.then == "go on":
                self._go_on(each)
                continue

            if each.rule.close:
                assert outcome.error is not None
                self._stop.set()
                # Several may have one answer.
                closing[id(outcome.error)] = (each.answer, outcome.error)

            settlements.append(each)

        saved = self._save(settlements)

        try:
            for answer, error in closing.values():
                self._close_gate(answer, error)

            self._learn(done)
            self._learn_of_batches(done)
        finally:
            for each in saved:
                self._announce(each)

    def _go_on(self, each: Settlement) -> None:
        """Go on to the request: what was looked for is not there, or what is to be
        changed is.
        """
        row = dataclasses.replace(
            each.row,
            outcome_unknown=each.was_uncertain and each.rule.outcome_unknown is None,
        )

        if each.target is not None:
            row = dataclasses.replace(
                row, target=each.target.id, target_expired=each.target.has_expired()
            )

        self._singly.add(row.id)
        self._make_ready(row)

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
                if each.badge is None:
                    raise

                # Another row has taken this badge meanwhile: look once more.
                settle.settle(self._engine, [verdict.doubt(each)])
        except settle.LeaseLost:
            pass  # another worker sees to it
        except sa.exc.SQLAlchemyError:
            logger.exception(
                "The result of badge %d could not be saved.",
                each.row.id,
                extra={
                    "credly_event": "badge_not_saved",
                    "credly_issuance": each.row.id,
                },
            )

        return False

    def _close_gate(self, answer: Answer, error: CredlyError) -> None:
        self._stop.set()
        self._keyless = self._keyless or isinstance(error, SecretUnreadable)
        close(self._state, self._gate.generation, answer, error)

    def _learn(self, done: list[tuple[Asked, list[Outcome]]]) -> None:
        """Widen gently after a pause."""
        phases = [
            asked[0].phase
            for asked, outcomes in done
            if any(each.answer in _WENT_WELL for each in outcomes)
        ]

        if not phases:
            return

        # A look-up that succeeds says nothing about what is asked for next.
        if self._paused and any(phase != "look-up" for phase in phases):
            gates.resume(self._engine, self._gate.tenant, self._gate.generation)
            self._paused = False

        self._sender.widen(self._throttle.widen(len(phases)))

    def _learn_of_batches(self, done: list[tuple[Asked, list[Outcome]]]) -> None:
        for asked, outcomes in done:
            answers = {each.answer for each in outcomes}

            if len(asked) == 1:
                continue

            # It may have been too much for the time that there is.
            if answers & {"unknown", "in trouble"}:
                self._together //= 2
            elif answers == {"issued"}:
                self._together = min(2 * self._together, self._most_together)

        if self._sender.no_batch and self._most_together > 1:
            self._together = self._most_together = 1
            gates.refuse_batches(self._engine, self._gate.tenant, self._gate.generation)
            logger.warning(
                "Credly did not accept several badges in one request, so badges are"
                " sent one at a time for a day: %s",
                self._sender.no_batch,
                extra={"credly_event": "batch_refused"},
            )

    def _announce(self, each: Settlement) -> None:
        if each.row.test:
            return

        if each.rule.then == "failed" and each.row.action == "issue":
            announce.failed(self._state, each.row, each.detail or "")
        elif each.row.action == "revoke" and each.badge:
            announce.what_became(self._state, [each.row.id])
        elif each.rule.then == "issued":
            self._issued += 1
            announce.issued(self._state, each.row, each.badge)

            if replaced := {each.row.replaces, each.row.target} - {None}:
                announce.what_became(
                    self._state, badge_ids=t.cast("set[str]", replaced)
                )


_WENT_WELL: tuple[Answer, ...] = (
    *("issued", "found", "held", "absent", "in force", "revoked"),
)


def _phase_of(row: Row) -> Phase:
    return "issue" if row.action == "check" else row.action


def _by_row(
    done: list[tuple[Asked, list[Outcome]]],
) -> cabc.Iterator[tuple[Request, Outcome]]:
    for asked, outcomes in done:
        yield from zip(asked, outcomes, strict=True)


def _answered(
    in_flight: dict[cf.Future[list[Outcome]], Asked],
) -> list[tuple[Asked, list[Outcome]]]:
    return [
        (asked, each.result())
        for each, asked in in_flight.items()
        if each.done() and not each.cancelled() and not each.exception()
    ]
