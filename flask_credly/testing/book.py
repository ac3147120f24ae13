"""What one organization has at the simulated Credly: its templates and its badges."""

from __future__ import annotations

import collections.abc as cabc
import copy
import dataclasses
import datetime as dt
import itertools
import typing as t
import uuid

from . import orders
from . import rules
from . import shapes
from .agenda import Agenda
from .entry import By
from .entry import Change
from .entry import Entry
from .entry import Mail
from .entry import MailKind
from .holders import Holders
from .manners import Manners
from .rules import Refusal
from .rules import Row

NOTICE = dt.timedelta(days=60)
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
        self.holders: Holders = Holders(users)
        self._note = note
        self._manners = manners
        self._successors: dict[str, str] = {}
        self.mails: list[Mail] = []
        self._numbers = itertools.count()
        self.agenda: Agenda = Agenda(clock)

    def clear(self) -> None:
        """Forget the badges and the mails."""
        self.entries.clear()
        self.holders.clear()
        self._successors.clear()
        self.agenda.clear()
        self.mails.clear()

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
        self.agenda.settle()
        return self.entries[badge_id]

    def select(
        self,
        email: str | None,
        earner_id: str | None,
        template_id: str | None,
        in_force: bool,
    ) -> list[Row]:
        """Copy the badges that fit, in the order issued."""
        self.agenda.settle()
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

    def written(self, until: float) -> list[Entry]:
        """Get the badges that were written by a time, in the order issued."""
        return [entry for entry in self.entries.values() if entry.booked_at <= until]

    def accept(self, badge_id: str) -> None:
        row = self._change(badge_id, "accepted", "earner", self._clock())
        email = row["recipient_email"].casefold()
        user_id = self._users.setdefault(email, str(uuid.uuid4()))
        row["user"] = {"id": user_id, "first_name": row["issued_to_first_name"]}
        row["public"] = self._manners.accepted_is_public
        row["badge_url"] = shapes.badge_url(badge_id)

    def reject(self, badge_id: str) -> None:
        self._change(badge_id, "rejected", "earner", self._clock())

    def revoke(
        self, badge_id: str, at: float, by: By, *, reason: str, told: bool
    ) -> None:
        row = self._change(badge_id, "revoked", by, at, reason=reason, told=told)
        row["revocation_reason"] = reason

        if told:
            self._mail("revoked", row, at)

    def set_public(self, badge_id: str, public: bool) -> None:
        entry = self.find(badge_id)

        if entry.row["state"] != "accepted" or entry.replaced:
            raise ValueError("Only a badge that is accepted is public or private.")

        now = rules.stamp(self._now())
        entry.row.update(public=public, updated_at=now)

    def delete(self, badge_id: str) -> None:
        self.holders.remove(self.find(badge_id))
        del self.entries[badge_id]

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
        row.update(state=state, state_updated_at=text, updated_at=text, public=False)
        row.pop("accept_badge_url", None)
        row.pop("badge_url", None)
        entry.history.append(Change(state, at, by, **more))
        return row

    def count_ended(self, template_id: str, who: str) -> int:
        """Count an earner's badges that requests issued and that are not in force."""
        now = self._now()
        named = self.holders.named(template_id, who)
        return sum(one.asked_for and not one.in_force(now) for one in named)

    # Issuing and replacing

    def issue(self, body: object, at: float, by: By) -> Row:
        """Write a badge. Get it.

        :param body: The decoded body of the request.
        :param at: When it is written.
        :param by: Who does.
        :raises Refusal: If Credly would not issue it.
        """
        self.agenda.settle()
        now = dt.datetime.fromtimestamp(at, dt.UTC)
        order = orders.read_order(body, self.templates, now)
        twin = self._find_twin(order, now)
        old = None

        if twin is not None and order.behavior == "replace":
            order, old = _renew(order, twin.row), twin
            self._refuse_second(order, now, old)
        elif twin is not None and order.behavior != "allow":
            raise _refuse_duplicate()

        return self._add(order, at, by, old)

    def issue_many(self, bodies: list[object], at: float, by: By) -> list[Row]:
        """Write several badges, or none if one of them is refused. Get them.

        :param bodies: The decoded body of each.
        :raises Refusal: Of the first that Credly would not issue.
        """
        self.agenda.settle()
        earlier: list[orders.Order] = []

        for index, body in enumerate(bodies):
            try:
                earlier.append(self._check(body, at, earlier))
            except Refusal as refusal:
                if self._manners.batch_keeps_first:
                    for each in bodies[:index]:
                        self.issue(each, at, by)

                if self._manners.batch_names_error:
                    refusal.error_index = index

                raise

        return [self.issue(each, at, by) for each in bodies]

    def _check(
        self, body: object, at: float, earlier: list[orders.Order]
    ) -> orders.Order:
        """Check one of several badges, those before it being as good as issued."""
        now = dt.datetime.fromtimestamp(at, dt.UTC)
        order = orders.read_order(body, self.templates, now)

        if self.templates[order.template_id]["allow_duplicate_badges"]:
            return order

        twin = self._find_twin(order, now) or any(
            each.template_id == order.template_id
            and (
                rules.same_email(each.email, order.email)
                or (each.earner_id and each.earner_id == order.earner_id)
            )
            for each in earlier
        )

        if twin and order.behavior != "allow":
            raise _refuse_duplicate()

        return order

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

        self._refuse_second(order, now, old)
        return self._add(order, at, by, old)

    def _refuse_second(self, order: orders.Order, now: dt.datetime, old: Entry) -> None:
        if self._manners.replace_may_double:
            return

        if self._find_twin(order, now, old) is not None:
            raise _refuse_duplicate()

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
        history = [Change(row["state"], at, by)]
        entry = Entry(next(self._numbers), row, history, order.options)
        self.entries[row["id"]] = entry
        self.holders.add(entry)
        self._plan_notice(entry)

        if not row["suppress_badge_notification_email"]:
            message = order.options.get("notification_message")
            self._mail("replaced" if old else "issued", row, at, message)

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
            public = old.row["public"]
            row.update(state="accepted", user=user, badge_url=url, public=public)

    def _plan_notice(self, entry: Entry) -> None:
        """Let its earner be told before it expires, if the template says so then."""
        if (until := entry.expires_at) is None:
            return

        def notify(at: float) -> None:
            row = entry.row
            alive = self.entries.get(row["id"]) is entry
            template = self.templates.get(row["badge_template"]["id"], {})

            if (
                alive
                and entry.in_force(dt.datetime.fromtimestamp(at, dt.UTC))
                and template.get("send_expiring_badge_notifications")
                and not row["suppress_badge_notification_email"]
            ):
                self._mail("expiring", row, at)

        if (at := (until - NOTICE).timestamp()) > entry.booked_at:
            self.agenda.add(at, notify)

    def _mail(
        self, kind: MailKind, row: Row, at: float, message: str | None = None
    ) -> None:
        to, locale = row["recipient_email"], row["locale"]
        self.mails.append(Mail(kind, to, locale, row["id"], at, message))

    def _find_twin(
        self, order: orders.Order, now: dt.datetime, but: Entry | None = None
    ) -> Entry | None:
        """Get the badge that keeps a new one out."""
        if self.templates[order.template_id]["allow_duplicate_badges"]:
            return None

        for entry in self.holders.same(order):
            if entry is not but and self._stands(entry, now):
                return entry

        return None

    def _stands(self, entry: Entry, now: dt.datetime) -> bool:
        if entry.replaced or entry.row["state"] not in self._manners.states_in_the_way:
            return False

        return self._manners.expired_is_in_the_way or not entry.expired(now)

    def _note_second(
        self, order: orders.Order, now: dt.datetime, old: Entry | None
    ) -> None:
        if self.templates[order.template_id]["allow_duplicate_badges"]:
            named = self.holders.named(order.template_id, order.who)
            found = [one for one in named if one.asked_for]
            allowed = self._manners.badges_allowed
        else:
            found, allowed = self.holders.same(order), 1

        in_force = [one for one in found if one is not old and one.in_force(now)]

        if len(in_force) >= allowed:
            text = f"second badge of template {order.template_id} for {order.who}"
            self._note(text)


def _renew(order: orders.Order, old: Row) -> orders.Order:
    """Let a badge be issued in the place of another as ``duplicate_behavior`` does."""
    email = order.email
    same = order.earner_id and order.earner_id == old["issuer_earner_id"]

    if not same or old["state"] != "pending":
        email = old["recipient_email"]

    issued_at = rules.read_moment(old["issued_at"])
    assert issued_at is not None
    options = order.options | {"recipient_email": email}
    return dataclasses.replace(order, email=email, issued_at=issued_at, options=options)


def _refuse_duplicate() -> Refusal:
    text = "already has this badge"
    errors = [("recipient_email", text)]
    return Refusal(422, f"Validation failed: User {text}", errors=errors)
