"""What one organization has at the simulated Credly: its templates and its badges."""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import copy
import dataclasses
import datetime as dt
import typing as t
import uuid

from . import rules
from . import shapes
from .manners import Manners
from .rules import Refusal
from .rules import Row

By = t.Literal["request", "issuer", "earner"]

_FROM = {
    "accepted": ("pending",),
    "rejected": ("pending", "accepted"),
    "revoked": ("pending", "accepted", "rejected"),
}


@dataclasses.dataclass(frozen=True)
class Change:
    """A step in a badge's life.

    :param state: What the badge became: ``"pending"`` when it was issued.
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
class Entry:
    """A badge in the book.

    :param row: The badge as Credly shows it.
    :param history: How it came to be so, the first change first.
    """

    row: Row
    history: list[Change]

    @property
    def booked_at(self) -> float:
        """When it was written."""
        return self.history[0].at

    @property
    def asked_for(self) -> bool:
        """Whether a request issued it, and not somebody by hand."""
        return self.history[0].by == "request"


class Book:
    """The templates and badges of one organization. Its caller holds the lock.

    :param clock: The simulator's time.
    :param users: Credly's users: the id of each by address, in small letters.
    :param note: Called with what a client should not have done.
    :param manners: What the organization's switches say.
    """

    def __init__(
        self,
        clock: cabc.Callable[[], float],
        users: dict[str, str],
        note: cabc.Callable[[str], None],
        manners: Manners,
    ) -> None:
        self.templates: dict[str, Row] = {}
        self.entries: dict[str, Entry] = {}
        self._clock = clock
        self._users = users
        self._note = note
        self._manners = manners
        self._late: list[tuple[float, cabc.Callable[[float], object]]] = []
        self._index: collections.defaultdict[tuple[str, str], list[Entry]] = (
            collections.defaultdict(list)
        )

    def clear(self) -> None:
        """Forget the badges."""
        self.entries.clear()
        self._index.clear()
        self._late.clear()

        for row in self.templates.values():
            row["badges_count"] = 0

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC)

    # Templates

    def add_template(self, id: str, organization: Row, **options: t.Any) -> None:
        """Add a template.

        :param organization: The owner as templates show it.
        :param options: See :func:`.shapes.template_row`.
        """
        self.templates[id] = shapes.template_row(
            id=id,
            organization=organization,
            now=self._now(),
            unknown_keys=len(self.templates) % 3 == 1,
            **options,
        )

    def change_template(self, id: str, changes: Row) -> None:
        row = self.templates[id]

        if unknown := set(changes) - set(row):
            raise TypeError(f"A template has no {', '.join(sorted(unknown))}.")

        now = rules.stamp(self._now())

        if "state" in changes:
            row["state_updated_at"] = now

        row.update(changes, updated_at=now)

    # Badges

    def find(self, badge_id: str) -> Entry:
        """Get a badge.

        :raises KeyError: If there is none with this id.
        """
        self.settle_late()
        return self.entries[badge_id]

    def select(
        self, email: str | None, earner_id: str | None, template_id: str | None
    ) -> list[Row]:
        """Copy the badges that fit, in the order issued."""
        self.settle_late()
        return [
            copy.deepcopy(row)
            for row in (entry.row for entry in self.entries.values())
            if (email is None or rules.same_email(row["recipient_email"], email))
            and (earner_id is None or row["issuer_earner_id"] == earner_id)
            and (template_id is None or row["badge_template"]["id"] == template_id)
        ]

    def shown_rows(self, until: float) -> list[Row]:
        """Get the badges that were written by a time."""
        entries = self.entries.values()
        return [entry.row for entry in entries if entry.booked_at <= until]

    def accept(self, badge_id: str) -> None:
        row = self._change(badge_id, "accepted", "earner", self._clock())
        email = row["recipient_email"].casefold()
        user_id = self._users.setdefault(email, str(uuid.uuid4()))
        row["user"] = {"id": user_id, "first_name": row["issued_to_first_name"]}
        row["badge_url"] = f"https://badges.example.org/badges/{badge_id}"

    def reject(self, badge_id: str) -> None:
        self._change(badge_id, "rejected", "earner", self._clock())

    def revoke(
        self, badge_id: str, at: float, by: By, *, reason: str, told: bool
    ) -> None:
        row = self._change(badge_id, "revoked", by, at, reason=reason, told=told)
        row["revocation_reason"] = reason

    def delete(self, badge_id: str) -> None:
        gone = self.find(badge_id)
        del self.entries[badge_id]

        for entries in self._index.values():
            entries[:] = [entry for entry in entries if entry is not gone]

    def _change(
        self, badge_id: str, state: str, by: By, at: float, **more: t.Any
    ) -> Row:
        entry = self.find(badge_id)
        row = entry.row

        if row["state"] not in _FROM[state]:
            raise ValueError(f"A badge that is {row['state']} does not become {state}.")

        text = rules.stamp(dt.datetime.fromtimestamp(at, dt.UTC))
        row.update(state=state, state_updated_at=text, updated_at=text)
        row.pop("accept_badge_url", None)
        row.pop("badge_url", None)
        entry.history.append(Change(state, at, by, **more))
        return row

    def owns(self, row: Row, email: str) -> bool:
        """Whether a badge belongs to the user who has this address."""
        if rules.same_email(row["recipient_email"], email):
            return True

        user_id = self._users.get(email.casefold())
        owner_id = self._users.get(row["recipient_email"].casefold())
        return user_id is not None and user_id == owner_id

    # Issuing

    def issue(self, body: object, at: float, by: By) -> Row:
        """Write a badge. Get it.

        :param body: The decoded body of the request.
        :param at: When it is written.
        :param by: Who does.
        :raises Refusal: If Credly would not issue it.
        """
        now = dt.datetime.fromtimestamp(at, dt.UTC)
        order = rules.read_order(body, self.templates, now)
        template = self.templates[order.template_id]
        row = shapes.badge_row(order, template, now)
        twin = self._find_twin(order)

        if twin is not None and not template["allow_duplicate_badges"]:
            _settle_duplicate(order, row, twin)

        if by == "request":
            self._note_second(order, row)

        if not self._manners.pending_has_state_time:
            row["state_updated_at"] = None

        template["badges_count"] += 1
        self._enter(Entry(row, [Change("pending", at, by)]))
        return row

    def write_late(self, at: float, write: cabc.Callable[[float], object]) -> None:
        """Write something at a later time, if it is not refused then.

        :param write: Called with that time.
        """
        self._late.append((at, write))

    def settle_late(self) -> None:
        """Write what is late and now due."""
        now = self._clock()
        due = [item for item in self._late if item[0] <= now]
        self._late = [item for item in self._late if item[0] > now]

        for at, write in sorted(due, key=lambda item: item[0]):
            with contextlib.suppress(Refusal):
                write(at)

    def _find_twin(self, order: rules.Order) -> Row | None:
        emails = {order.email.casefold(), *self._emails_of(order.email)}
        keys = [_email_key(email) for email in emails]

        if order.earner_id:
            keys.append(_earner_key(order.earner_id))

        for key in keys:
            for entry in self._index[order.template_id, key]:
                if self._stands(entry.row):
                    return entry.row

        return None

    def _stands(self, row: Row) -> bool:
        in_the_way = row["state"] in self._manners.states_in_the_way
        return in_the_way and row["replacement_badge_id"] is None

    def _emails_of(self, email: str) -> list[str]:
        if (user_id := self._users.get(email.casefold())) is None:
            return []

        return [known for known, id in self._users.items() if id == user_id]

    def _enter(self, entry: Entry) -> None:
        row = entry.row
        template_id = row["badge_template"]["id"]
        self.entries[row["id"]] = entry
        self._index[template_id, _email_key(row["recipient_email"])].append(entry)

        if row["issuer_earner_id"]:
            self._index[template_id, _earner_key(row["issuer_earner_id"])].append(entry)

    def _note_second(self, order: rules.Order, row: Row) -> None:
        key = (order.template_id, _who(order.earner_id, order.email))

        for entry in self._index[key]:
            if entry.asked_for and entry.row["replacement_badge_id"] != row["id"]:
                self._note(f"second badge of template {key[0]} for {key[1]}")
                return


def _settle_duplicate(order: rules.Order, row: Row, twin: Row) -> None:
    if order.behavior == "allow":
        return

    if order.behavior != "replace":
        text = "already has this badge"
        raise Refusal(
            422,
            f"Validation failed: User {text}",
            errors=[("recipient_email", text)],
        )

    twin["replacement_badge_id"] = row["id"]
    row["replaces_badge_id"] = twin["id"]
    row.update(shapes.issued_keys(twin["issued_at"]))


def written_by(body: object) -> str | None:
    """Get the template and the earner that an issue body is about, in words."""
    if not isinstance(body, dict):
        return None

    names = ("badge_template_id", "issuer_earner_id", "recipient_email")
    template_id, earner_id, email = (body.get(name) or "" for name in names)

    if not all(isinstance(value, str) for value in (template_id, earner_id, email)):
        return None

    return f"template {template_id.lower()} and {_who(earner_id, email)}"


def _who(earner_id: str | None, email: str) -> str:
    return _earner_key(earner_id) if earner_id else _email_key(email)


def _earner_key(earner_id: str) -> str:
    return f"earner {earner_id}"


def _email_key(email: str) -> str:
    return f"e-mail {email.casefold()}"
