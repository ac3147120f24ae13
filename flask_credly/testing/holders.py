"""Who has badges of which template, as Credly tells earners apart."""

from __future__ import annotations

import collections
import collections.abc as cabc

from . import orders
from .entry import Entry
from .rules import Row


class Holders:
    """The badges by template and earner. Its caller holds the lock.

    :param users: Credly's users: the id of each by address, in small letters.
    """

    def __init__(self, users: cabc.Mapping[str, str]) -> None:
        self._users = users
        self._entries: collections.defaultdict[tuple[str, str], list[Entry]] = (
            collections.defaultdict(list)
        )

    def add(self, entry: Entry) -> None:
        for key in _keys(entry.row):
            self._entries[key].append(entry)

    def remove(self, gone: Entry) -> None:
        for key in _keys(gone.row):
            self._entries[key] = [one for one in self._entries[key] if one is not gone]

    def clear(self) -> None:
        self._entries.clear()

    def same(self, order: orders.Order) -> list[Entry]:
        """Get the badges of the template whose earner Credly takes for the same: by
        address, user or ``issuer_earner_id``.
        """
        emails = {order.email.casefold(), *self._emails_of(order.email)}
        keys = [orders.email_key(email) for email in sorted(emails)]

        if order.earner_id:
            keys.append(orders.earner_key(order.earner_id))

        found = (
            entry for key in keys for entry in self._entries[order.template_id, key]
        )
        return list({entry.row["id"]: entry for entry in found}.values())

    def named(self, template_id: str, who: str) -> list[Entry]:
        """Get the badges of a template that an earner of a name has, see
        :func:`.orders.who`.
        """
        return list(self._entries[template_id, who])

    def owns(self, row: Row, email: str) -> bool:
        """Whether a badge belongs to the user who has this address."""
        one, other = row["recipient_email"].casefold(), email.casefold()
        return one == other or one in self._emails_of(other)

    def _emails_of(self, email: str) -> list[str]:
        if (user_id := self._users.get(email.casefold())) is None:
            return []

        return [known for known, id in self._users.items() if id == user_id]


def _keys(row: Row) -> list[tuple[str, str]]:
    template_id, earner_id = row["badge_template"]["id"], row["issuer_earner_id"]
    keys = [(template_id, orders.email_key(row["recipient_email"]))]

    if earner_id:
        keys.append((template_id, orders.earner_key(earner_id)))

    return keys
