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

from . import orders
from . import rules
from . import shapes
from .entry import By
from .entry import Change
from .entry import Entry
from .manners import Manners
from .rules import Refusal
from .rules import Row

_FROM = {
    "accepted": ("pending",),
    "rejected": ("pending", "accepted"),
    "revoked": ("pending", "accepted", "rejected"),
}


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
        self._successors: dict[str, str] = {}
        self._late: list[tuple[float, cabc.Callable[[float], object]]] = []
        self._index: collections.defaultdict[tuple[str, str], list[Entry]] = (
            collections.defaultdict(list)
        )

    def clear(self) -> None:
        """Forget the badges."""
        self.entries.clear()
        self._index.clear()
        self._successors.clear()
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
        self,
        email: str | None,
        earner_id: str | None,
        template_id: str | None,
        in_force: bool,
    ) -> list[Row]:
        """Copy the badges that fit, in the order issued."""
        self.settle_late()
        now = self._now()
        entries = self.entries.values()
        return [
            copy.deepcopy(row)
            for row in (
                each.row for each in entries if not in_force or each.in_force(now)
            )
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
        row["badge_url"] = shapes.badge_url(badge_id)

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

        if entry.replaced:
            raise ValueError(f"A badge that is replaced does not become {state}.")

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

    # Issuing and replacing

    def issue(self, body: object, at: float, by: By) -> Row:
        """Write a badge. Get it.

        :param body: The decoded body of the request.
        :param at: When it is written.
        :param by: Who does.
        :raises Refusal: If Credly would not issue it.
        """
        now = dt.datetime.fromtimestamp(at, dt.UTC)
        order = orders.read_order(body, self.templates, now)
        twin = self._find_twin(order)
        old = None

        if twin is not None and order.behavior == "replace":
            order, old = _renew(order, twin.row), twin
        elif twin is not None and order.behavior != "allow":
            raise _refuse_duplicate()

        return self._add(order, at, by, old)

    def replace(self, badge_id: str, body: object, at: float, by: By) -> Row:
        """Write a badge in the place of another. Get the new one.

        :param badge_id: The badge that is replaced.
        :param body: The decoded body of the request.
        :param at: When it is written.
        :param by: Who does.
        :raises Refusal: If Credly would not do it.
        """
        old = self.find(badge_id)
        now = dt.datetime.fromtimestamp(at, dt.UTC)
        self._check_replaceable(old, now)
        order = orders.read_replacement(body, old.body, self.templates, now)
        email = old.row["recipient_email"]

        if old.row["state"] == "accepted" and not rules.same_email(order.email, email):
            text = "can't be changed after the badge was accepted"
            raise orders.invalid([("recipient_email", text)])

        if self._find_twin(order, old) and not self._manners.replace_may_double:
            raise _refuse_duplicate()

        return self._add(order, at, by, old)

    def _check_replaceable(self, old: Entry, now: dt.datetime) -> None:
        because = "Validation failed: This badge cannot be replaced because it"

        if old.replaced:
            raise Refusal(
                422,
                f"{because} has already been replaced.",
                metadata={"current_badge_id": self._current(old.row["id"])},
            )

        if (state := old.row["state"]) in self._manners.states_not_replaced:
            raise Refusal(422, f"{because} is {state}.")

        if old.expired(now) and not self._manners.expired_is_replaced:
            raise Refusal(422, f"{because} has expired.")

    def _current(self, badge_id: str) -> str:
        # Through those that were deleted, too.
        while (successor := self._successors.get(badge_id)) is not None:
            badge_id = successor

        return badge_id

    def _add(self, order: orders.Order, at: float, by: By, old: Entry | None) -> Row:
        now = dt.datetime.fromtimestamp(at, dt.UTC)
        template = self.templates[order.template_id]
        row = shapes.badge_row(order, template, now)

        if by == "request":
            self._note_second(order, now, old)

        if old is not None:
            self._put_in_place(row, old, at, by)

        if row["state"] == "pending" and not self._manners.pending_has_state_time:
            row["state_updated_at"] = None

        template["badges_count"] += 1
        self._enter(Entry(row, [Change(row["state"], at, by)], order.options))
        return row

    def _put_in_place(self, row: Row, old: Entry, at: float, by: By) -> None:
        row["replaces_badge_id"] = old.row["id"]
        old.row.update(replacement_badge_id=row["id"], updated_at=row["created_at"])
        old.history.append(Change("replaced", at, by))
        self._successors[old.row["id"]] = row["id"]

        if old.row["state"] == "accepted":
            # Its link to be accepted stays, as it does in Credly's own example.
            user = copy.deepcopy(old.row["user"])
            url = shapes.badge_url(row["id"])
            row.update(state="accepted", user=user, badge_url=url)

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

    def _find_twin(self, order: orders.Order, but: Entry | None = None) -> Entry | None:
        """Get the badge that keeps a new one out."""
        if self.templates[order.template_id]["allow_duplicate_badges"]:
            return None

        stands = self._manners.states_in_the_way
        others = (entry for entry in self._same(order) if entry is not but)
        return next(
            (one for one in others if one.row["state"] in stands and not one.replaced),
            None,
        )

    def _same(self, order: orders.Order) -> cabc.Iterator[Entry]:
        """Get the badges of the template whose earner Credly takes for the same."""
        emails = {order.email.casefold(), *self._emails_of(order.email)}
        keys = [orders.email_key(email) for email in sorted(emails)]

        if order.earner_id:
            keys.append(orders.earner_key(order.earner_id))

        for key in keys:
            yield from self._index[order.template_id, key]

    def _emails_of(self, email: str) -> list[str]:
        if (user_id := self._users.get(email.casefold())) is None:
            return []

        return [known for known, id in self._users.items() if id == user_id]

    def _enter(self, entry: Entry) -> None:
        row = entry.row
        template_id = row["badge_template"]["id"]
        self.entries[row["id"]] = entry
        self._index[template_id, orders.email_key(row["recipient_email"])].append(entry)

        if row["issuer_earner_id"]:
            self._index[template_id, orders.earner_key(row["issuer_earner_id"])].append(
                entry
            )

    def _note_second(
        self, order: orders.Order, now: dt.datetime, old: Entry | None
    ) -> None:
        who = orders.who(order.earner_id, order.email)
        allowed = 1

        if self.templates[order.template_id]["allow_duplicate_badges"]:
            found = [e for e in self._index[order.template_id, who] if e.asked_for]
            allowed = self._manners.badges_allowed
        else:
            found = list({e.row["id"]: e for e in self._same(order)}.values())

        in_force = [e for e in found if e is not old and e.in_force(now)]

        if len(in_force) >= allowed:
            self._note(f"second badge of template {order.template_id} for {who}")


def _renew(order: orders.Order, old: Row) -> orders.Order:
    """Let a badge be issued in the place of another as ``duplicate_behavior`` does."""
    email = order.email
    same = order.earner_id and order.earner_id == old["issuer_earner_id"]

    if not same or old["state"] != "pending":
        email = old["recipient_email"]

    issued_at = rules.read_moment(old["issued_at"])
    assert issued_at is not None
    return dataclasses.replace(order, email=email, issued_at=issued_at)


def _refuse_duplicate() -> Refusal:
    text = "already has this badge"
    errors = [("recipient_email", text)]
    return Refusal(422, f"Validation failed: User {text}", errors=errors)
