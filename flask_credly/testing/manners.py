"""How the simulated Credly behaves badly on demand: switches, faults and limits."""

from __future__ import annotations

import dataclasses
import datetime as dt
import email.utils
import math
import random
import threading
import time
import typing as t

from . import serving
from .record import check_kind
from .record import Kind
from .serving import json_reply
from .serving import phrase
from .serving import Reply
from .serving import text_reply

RetryAfter = t.Literal["seconds", "date", "none", "garbage"]

RETRY_AFTERS: tuple[RetryAfter, ...] = t.get_args(RetryAfter)


class Manners:
    """How one organization is answered: what a test switches, and the faults that it
    scripts.
    """

    organization_mismatch_status: int = 404
    """Answer for another organization's id: 401, 403 or 404 (default)."""

    organization_status: int = 403
    """Answer to ``GET /organizations/<id>``: 200 or 403 (default)."""

    unauthorized_body: t.Literal["empty", "json", "html"] = "empty"
    """Body of an API 401."""

    unknown_filter: t.Literal["ignore", "refuse"] = "ignore"
    """Whether a filter key that is not known is ignored, or answered 400."""

    ignored_filters: set[str]
    """Filter keys that are known, but pretended not to be: they select nothing
    out, so that strangers' badges are in the list.
    """

    latency: float = 0.0
    """Seconds before every answer over HTTP."""

    look_up_lag: float = 0.0
    """Seconds for which a new badge does not show in lists."""

    error_shape: t.Literal["message", "list", "string"] = "message"
    """Whether a 422 has ``errors``, with ``messages`` as list or string."""

    email_filter_finds_accepted: bool = True
    """Whether the ``recipient_email`` filter finds accepted badges."""

    granted_scopes: tuple[str, ...] = ("badge_templates", "issued_badges")
    """Scopes that the OAuth application may ask for."""

    posts_allowed: int = 2
    """Issue requests for one template and earner, or revoke or replace requests for
    one badge, before it is a problem. A test in which an admin retries by hand needs
    more than the default of 2. Issue requests are counted anew when the earner's badge
    is not in force any more.
    """

    badges_allowed: int = 1
    """Badges in force that an earner may get by requests, of one template that allows
    duplicates, before it is a problem. A test in which a course is completed again
    needs more than the default of 1.
    """

    ignored_sorts: set[str]
    """Sort keys that are known, but pretended not to be."""

    pending_has_state_time: bool = False
    """Whether a pending badge has a ``state_updated_at``; not as it was seen."""

    search_page_size: int = 100
    """Badges on a page of the search."""

    search_next_address: str = ""
    """What ``next_page_url`` of the search has before its query, such as an address of
    another host. The search's own if empty, but with a prefix that nobody called.
    """

    search_repeats_cursor: bool = False
    """Whether a page that was asked for by cursor names that cursor again."""

    cursor_seconds: float = 3600.0
    """How long a cursor of the search is good."""

    lost_cursor_status: int = 400
    """Answer to a cursor that is not good any more: 400 (default) or 404."""

    accepted_is_public: bool = True
    """Whether a badge is public as soon as it is accepted."""

    states_in_the_way: set[str]
    """States in which a badge keeps its earner from getting the template again."""

    expired_is_in_the_way: bool = True
    """Whether it does so, too, after it has expired."""

    states_not_revoked: set[str]
    """States in which a request to revoke is refused."""

    states_not_replaced: set[str]
    """States in which a request to replace is refused."""

    expired_is_replaced: bool = True
    """Whether a badge that has expired can be replaced."""

    replace_status: int = 201
    """Answer to a request to replace: 200 or 201 (default)."""

    replace_may_double: bool = False
    """Whether a badge is replaced by one of a template that its earner has a badge
    of, which forbids duplicates. It is a problem if so.
    """

    batch_status: int = 201
    """Answer to a request for several badges: 201 (default), or 404 or 405, as where
    there is no such request.
    """

    batch_answer: t.Literal[
        "as asked", "other order", "fewer", "more", "no names", "no list"
    ] = "as asked"
    """What the answer to it has: the badges as they were asked for, or in another
    order; all but the last; a stranger's besides; the badges without their
    ``issuer_earner_id``; or no list at all. All of them were issued.
    """

    batch_names_error: bool = True
    """Whether its refusal has an ``error_index``."""

    batch_keeps_first: bool = False
    """Whether those badges of a refused batch were issued that come before the one
    that it is refused for.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.ignored_filters = set()
        self.ignored_sorts = set()
        self.states_in_the_way = {"pending", "accepted", "rejected"}
        self.states_not_revoked = {"revoked"}
        self.states_not_replaced = {"rejected", "revoked"}
        self.lock = lock
        self._faults: list[Fault] = []
        self._rate_limit: RateLimit | None = None

    def fail(
        self,
        kind: Kind | t.Literal["*"],
        *,
        times: int | None = 1,
        status: int | None = None,
        body: object = None,
        headers: dict[str, str] | None = None,
        after: bool = False,
        only: int | None = None,
        how: serving.How = "answer",
        delay: float = 0.0,
        share: float | None = None,
        seed: int = 0,
    ) -> None:
        """Script a fault. Faults of one kind strike in the order they were scripted.

        :param kind: Which requests: ``"token"``, ``"templates"``, ``"issue"``,
            ``"batch"``, ``"look-up"``, ``"search"``, ``"revoke"``, ``"replace"``, … or
            ``"*"`` for all.
        :param times: How many requests. ``None`` until cleared.
        :param status: The status to send; 500 if left out.
        :param body: The body to send: text, bytes, or something to write as JSON.
        :param headers: Headers to send.
        :param after: Process the request first: the badge is in the book.
        :param only: Of a batch that is processed first, or late, this many badges.
        :param how: ``"answer"`` sends the scripted answer. ``"hang"`` waits
            ``delay`` seconds and closes the connection without an answer,
            ``"reset"`` does so at once. ``"late"`` does so at once, too, and writes
            what was asked for ``delay`` seconds later on the simulator's clock.
            ``"truncate"`` cuts the body, ``"drip"`` sends it byte by byte with
            ``delay`` seconds between: the scripted body, or the true one if none
            is scripted; the request is processed then.
        :param delay: See ``how``. With ``"answer"``, seconds before it.
        :param share: Only this share of the requests, until cleared.
        :param seed: Of the random numbers for ``share``.
        """
        if kind != "*":
            check_kind(kind)

        if how not in serving.HOWS:
            raise ValueError(f"how is {how!r}; it must be one of {serving.HOWS}.")

        if share is not None and times == 1:
            times = None

        fault = Fault(
            kind=kind,
            times=times,
            how=how,
            after=after,
            only=only,
            delay=delay,
            status=status,
            body=body,
            headers=dict(headers or {}),
            share=share,
            chance=random.Random(seed),
        )

        with self.lock:
            self._faults.append(fault)

    def clear_faults(self) -> None:
        """Forget the scripted faults. The rate limit stays."""
        with self.lock:
            self._faults.clear()

    def list_faults(self) -> list[dict[str, t.Any]]:
        """Get the scripted faults that may still strike, without what they send."""
        names = ("kind", "times", "how", "after", "delay", "status", "share")
        return [
            {name: getattr(fault, name) for name in names}
            for fault in self._faults
            if fault.times != 0
        ]

    def rate_limit(
        self,
        limit: int | None,
        per_seconds: float = 60,
        *,
        retry_after: RetryAfter = "seconds",
    ) -> None:
        """Answer API calls with 429 when there are too many in a fixed window of
        real time. Token requests are not counted.

        :param limit: Calls in one window. ``None`` lifts the limit.
        :param per_seconds: Length of the window.
        :param retry_after: Form of the header, or ``"none"``.
        """
        if retry_after not in RETRY_AFTERS:
            raise ValueError(f"retry_after must be one of {RETRY_AFTERS}.")

        with self.lock:
            self._rate_limit = (
                None if limit is None else RateLimit(limit, per_seconds, retry_after)
            )

    def slowly(self, reply: Reply) -> Reply:
        """Let an answer take as long as answers do."""
        if reply.how != "answer":
            return reply

        return dataclasses.replace(reply, delay=reply.delay + self.latency)

    def over_quota(self, kind: Kind) -> Reply | None:
        """Count a request. Get the refusal if it is one too many."""
        if kind == "token" or self._rate_limit is None:
            return None

        return self._rate_limit.take()

    def next_fault(self, kind: Kind) -> Fault | None:
        """Get the fault that strikes this request."""
        return next((fault for fault in self._faults if fault.strikes(kind)), None)


@dataclasses.dataclass
class Fault:
    """A scripted fault. It keeps count of what is left of it."""

    kind: str
    times: int | None
    how: serving.How
    after: bool
    only: int | None
    delay: float
    status: int | None
    body: object
    headers: dict[str, str]
    share: float | None
    chance: random.Random

    @property
    def needs_true_answer(self) -> bool:
        """Whether the request is processed before the fault shows."""
        if self.how == "late":
            return False

        return self.after or (self.how in ("truncate", "drip") and not self._scripted)

    @property
    def _scripted(self) -> bool:
        return self.status is not None or self.body is not None

    def strikes(self, kind: str) -> bool:
        """Decide whether this request is hit, and count it."""
        if self.kind not in (kind, "*") or self.times == 0:
            return False

        if self.share is not None and self.chance.random() >= self.share:
            return False

        if self.times is not None:
            self.times -= 1

        return True

    def reply(self, kind: str, true_answer: Reply | None) -> Reply:
        """Get what is sent instead of the answer."""
        if true_answer is not None and not self._scripted and self.how != "answer":
            return dataclasses.replace(true_answer, how=self.how, delay=self.delay)

        made = self._scripted_reply(kind)
        return dataclasses.replace(made, how=self.how, delay=self.delay)

    def _scripted_reply(self, kind: str) -> Reply:
        status = 500 if self.status is None else self.status
        body = self.body

        if body is None and (status >= 500 or kind != "token"):
            body = {"data": {"message": phrase(status)}, "metadata": None}
        elif body is None:
            body = {
                "error": "invalid_client" if status == 401 else "invalid_request",
                "error_description": phrase(status),
            }

        if isinstance(body, str | bytes):
            return text_reply(status, body, self.headers)

        return json_reply(status, body, self.headers)


class RateLimit:
    """A fixed window: so many requests, then 429 until it ends."""

    def __init__(self, limit: int, per_seconds: float, retry_after: RetryAfter) -> None:
        self._limit = limit
        self._seconds = per_seconds
        self._retry_after = retry_after
        self._ends = 0.0
        self._count = 0

    def take(self) -> Reply | None:
        """Count a request. Get the refusal if it is one too many."""
        # Real time, not the simulator's clock: pacing is a matter of real time.
        if (now := time.monotonic()) >= self._ends:
            self._ends = now + self._seconds
            self._count = 0

        self._count += 1

        if self._count <= self._limit:
            return None

        return Reply(429, b"Retry later\n", self._headers(self._ends - now))

    def _headers(self, left: float) -> dict[str, str]:
        headers = {"Content-Type": "text/plain"}

        if self._retry_after == "seconds":
            headers["Retry-After"] = str(max(1, math.ceil(left)))
        elif self._retry_after == "date":
            end = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=left + 1)
            headers["Retry-After"] = email.utils.format_datetime(end, usegmt=True)
        elif self._retry_after == "garbage":
            headers["Retry-After"] = "soon"

        return headers
