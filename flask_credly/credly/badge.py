"""What Credly says of a badge: in the answer to a request for one, in a list, or asked
for by its id. It is read here and nowhere else.
"""

from __future__ import annotations

import datetime as dt
import re
import typing as t

from ..links import read_link
from . import answers

STATES = ("pending", "accepted", "rejected", "revoked")
"""All states of a badge: one that was rejected or revoked since was issued, too."""


class Badge(t.NamedTuple):
    """A badge as Credly shows it. ``None``: it does not say.

    :param state: "pending", "accepted", "rejected" or "revoked".
    :param earner_id: The ``issuer_earner_id``. ``None``: it was given by hand, or by a
        system that sends none.
    :param issued_at: As Credly writes it.
    :param state_at: When the state became what it is. Credly does not say so of a badge
        that is pending.
    :param accept_url: Where the earner accepts it: on a host of Credly's, by https.
    :param page_url: Its page, likewise.
    :param says_expiry: Whether it says until when the badge holds: for ever, where
        there is no ``expires_at``.
    :param replaced_by: The badge that was issued in its place.
    :param replaces: The badge in whose place it was issued.
    """

    id: str
    state: str = "pending"
    earner_id: str | None = None
    email: str | None = None
    issued_at: str | None = None
    template_id: str | None = None
    state_at: dt.datetime | None = None
    accept_url: str | None = None
    page_url: str | None = None
    expires_at: dt.datetime | None = None
    says_expiry: bool = False
    public: bool | None = None
    replaced_by: str | None = None
    replaces: str | None = None
    first_name: str | None = None
    last_name: str | None = None

    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= dt.datetime.now(
            dt.UTC
        )


def read(row: t.Any, own_host: str | None = None) -> Badge | None:
    """Read a badge. ``None`` if it is none, or of a state that is not known.

    :param own_host: The API's host, where that is not Credly's: what stands in its
        place, such as a simulator.
    """
    if (
        not isinstance(row, dict)
        or not answers.is_uuid(row.get("id"))
        or row.get("state") not in STATES
    ):
        return None

    public = row.get("public")
    return Badge(
        id=row["id"].lower(),
        state=row["state"],
        earner_id=_text(row.get("issuer_earner_id")),
        email=_text(row.get("recipient_email")),
        issued_at=_text(row.get("issued_at")) or _text(row.get("issued_at_date")),
        template_id=_id(row.get("badge_template")),
        state_at=read_time(row.get("state_updated_at")),
        accept_url=read_link(row.get("accept_badge_url"), own_host),
        page_url=read_link(row.get("badge_url"), own_host),
        expires_at=read_time(row.get("expires_at")),
        says_expiry="expires_at" in row,
        public=public if isinstance(public, bool) else None,
        replaced_by=_uuid(row.get("replacement_badge_id")),
        replaces=_uuid(row.get("replaces_badge_id")),
        first_name=_text(row.get("issued_to_first_name")),
        last_name=_text(row.get("issued_to_last_name")),
    )


def read_time(value: t.Any) -> dt.datetime | None:
    """Read a time as Credly writes it: aware, in UTC."""
    if not isinstance(value, str):
        return None

    text = value.strip()[:50]

    # Credly's own sample has a blank before the offset.
    if " " in text:
        text = re.sub(r" +(UTC$|(?=[+-]\d))", "", text)

    try:
        at = dt.datetime.fromisoformat(text)

        if at.tzinfo is not dt.UTC:
            at = at.astimezone(dt.UTC) if at.tzinfo else at.replace(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        return None

    # Of no use, and not every database takes it.
    return at if 1970 <= at.year < 9000 else None


def _text(value: t.Any) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None

    # Half of a pair of surrogates cannot be written anywhere.
    return value if value.isascii() else value.encode(errors="replace").decode()


def _id(row: t.Any) -> str | None:
    return _uuid(row.get("id")) if isinstance(row, dict) else None


def _uuid(value: t.Any) -> str | None:
    return value.lower() if answers.is_uuid(value) else None
