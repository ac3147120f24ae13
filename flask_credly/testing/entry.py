"""A badge in the simulator's book, and what became of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

from . import rules
from .rules import Row

By = t.Literal["request", "issuer", "earner"]
MailKind = t.Literal["issued", "replaced", "revoked", "expiring"]


@dataclasses.dataclass(frozen=True)
class Change:
    """A step in a badge's life.

    :param state: What the badge became, ``"pending"`` or ``"accepted"`` when it was
        issued; or ``"replaced"``, though Credly goes on showing the state before.
    :param at: When, on the simulator's clock.
    :param by: A ``"request"``, the ``"issuer"`` by hand, or the ``"earner"``.
    :param reason: Why it was revoked.
    :param told: Whether the earner was told that it was revoked.
    """

    state: str
    at: float
    by: By
    reason: str | None = None
    told: bool | None = None


@dataclasses.dataclass(frozen=True)
class Mail:
    """A mail that Credly would have sent to an earner. Reminders to accept a badge are
    not among them: nothing is known of when Credly sends those.

    :param kind: ``"issued"``, ``"replaced"``, ``"revoked"``, or ``"expiring"``: 60 days
        before the badge expires, if its template says so.
    :param to: The address on the badge.
    :param locale: The badge's.
    :param badge_id: Of the new badge, where one was replaced.
    :param at: When, on the simulator's clock.
    :param message: The ``notification_message`` of the request to replace.
    """

    kind: MailKind
    to: str
    locale: str
    badge_id: str
    at: float
    message: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A badge in the book.

    :param number: Its place in the order issued.
    :param row: The badge as Credly shows it.
    :param history: How it came to be so, the first change first.
    :param body: The body that it was issued with.
    """

    number: int
    row: Row
    history: list[Change]
    body: Row

    @property
    def booked_at(self) -> float:
        """When it was written."""
        return self.history[0].at

    @property
    def replaced(self) -> bool:
        """Whether another badge took its place."""
        return self.row["replacement_badge_id"] is not None

    def in_force(self, now: dt.datetime) -> bool:
        """Whether its earner has it, or can have it."""
        alive = self.row["state"] in ("pending", "accepted") and not self.replaced
        return alive and not self.expired(now)

    @property
    def expires_at(self) -> dt.datetime | None:
        return rules.read_expiry(self.row["expires_at"])

    def expired(self, now: dt.datetime) -> bool:
        return (until := self.expires_at) is not None and until <= now

    @property
    def asked_for(self) -> bool:
        """Whether a request issued it, and not somebody by hand."""
        return self.history[0].by == "request"
