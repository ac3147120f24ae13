"""Whose badge is it that Credly shows? One table decides, and the documentation prints
it.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import re
import typing as t

from ..credly import Badge
from ..credly import BadgeRequest
from ..credly import same_text

Earner = t.Literal["ours", "another's", "none"]
Time = t.Literal["same", "other", "not said"]

Owner = t.Literal[
    "this row", "another row", "another member", "given by hand", "nobody here"
]
"""``nobody here``: it does not concern the row, and Credly would not refuse the row's
badge because of it.
"""

STANDING = ("pending", "accepted")
"""States of a badge because of which Credly may refuse another one."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table. ``None``: either.

    :param earner: Whose ``issuer_earner_id`` the badge carries.
    :param same_address: Whether it was sent to the member's address.
    :param standing: Whether it is pending or accepted.
    :param known: Whether another row of the ledger has this badge.
    :param allows_duplicates: Whether Credly would issue the template twice.
    :param time: Whether its ``issued_at`` is the one that the row's request has.
    :param restored: Whether the database was restored: badges of this installation may
        be missing in it.
    """

    owner: Owner
    earner: Earner | None = None
    same_address: bool | None = None
    standing: bool | None = None
    known: bool | None = None
    allows_duplicates: bool | None = None
    time: Time | None = None
    restored: bool | None = None


# The first that fits decides.
CASES: tuple[Case, ...] = (
    Case("this row", earner="ours", known=False, time="same"),
    Case("nobody here", standing=False),
    Case("another row", earner="ours", known=True),
    # Credly keeps one badge for a member there, whatever its time.
    Case("this row", earner="ours", known=False, allows_duplicates=False),
    Case("this row", earner="ours", known=False, time="not said"),
    # Who knows of which row it was: it is this member's, and no row has it.
    Case("this row", earner="ours", known=False, time="other", restored=True),
    Case("nobody here", earner="ours", known=False, time="other", restored=False),
    Case("another member", earner="another's", same_address=True),
    Case("nobody here", earner="another's", same_address=False),
    Case("given by hand", earner="none", same_address=True),
    Case("nobody here", earner="none", same_address=False),
)


def owner_of(
    shown: Badge,
    asked: BadgeRequest,
    *,
    known: bool,
    allows_duplicates: bool,
    restored: bool,
) -> Owner:
    """Decide whose badge it is, among badges of the template that is asked for.

    :param asked: The row's request.
    """
    earner: Earner = "none"

    if shown.earner_id:
        ours = same_text(shown.earner_id, asked.earner_id)
        earner = "ours" if ours else "another's"

    facts: dict[str, object] = {
        "earner": earner,
        "same_address": same_text(shown.email, asked.email),
        "standing": shown.state in STANDING,
        "known": known,
        "allows_duplicates": allows_duplicates,
        "time": compare_times(shown.issued_at, asked.issued_at),
        "restored": restored,
    }
    return next(
        case.owner
        for case in CASES
        if all(getattr(case, name) in (None, is_) for name, is_ in facts.items())
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """What Credly's list says about a row.

    :param badge: The row's badge.
    :param in_the_way: Whose badge it is because of which Credly refuses the row's,
        where the template allows no duplicates.
    """

    badge: Badge | None = None
    in_the_way: Owner | None = None


def look_through(
    shown: cabc.Iterable[Badge],
    asked: BadgeRequest,
    *,
    known: cabc.Container[str],
    allows_duplicates: bool,
    restored: bool,
) -> Found:
    """Find the row's badge in a list of Credly's.

    :param known: Ids of badges that other rows have.
    """
    owners = [
        (
            owner_of(
                each,
                asked,
                known=each.id in known,
                allows_duplicates=allows_duplicates,
                restored=restored,
            ),
            each,
        )
        for each in shown
    ]
    mine = [each for owner, each in owners if owner == "this row"]

    if mine:
        best = min(mine, key=lambda each: _rank(each, asked))
        return Found(badge=best)

    # What has expired is not what the member has by another course.
    others = {
        owner
        for owner, each in owners
        if owner != "another row" or not each.has_expired()
    }

    for owner in ("another row", "another member", "given by hand"):
        if owner in others:
            return Found(in_the_way=owner)

    return Found()


def is_of(shown: Badge, asked: BadgeRequest) -> bool:
    """Whether a badge that took another's place is the one that is asked for."""
    names = (
        (shown.first_name, asked.first_name),
        (shown.last_name, asked.last_name),
    )
    return (
        same_text(shown.earner_id, asked.earner_id)
        and all(is_ is None or same_text(is_, name) for is_, name in names)
        and shown.template_id == asked.template_id
        and compare_times(shown.issued_at, asked.issued_at) != "other"
    )


def is_theirs(shown: Badge, asked: BadgeRequest) -> bool:
    """Whether a badge is the member's, as far as it says."""
    if shown.earner_id:
        return same_text(shown.earner_id, asked.earner_id)

    return shown.email is None or same_text(shown.email, asked.email)


def has_ended(shown: cabc.Iterable[Badge], asked: BadgeRequest) -> bool:
    """Whether the member had the badge, and it is in force no more."""
    theirs = [each for each in shown if same_text(each.earner_id, asked.earner_id)]
    return bool(theirs) and all(
        each.state not in STANDING or each.has_expired() for each in theirs
    )


def _rank(shown: Badge, asked: BadgeRequest) -> tuple[bool, bool]:
    return (
        compare_times(shown.issued_at, asked.issued_at) != "same",
        shown.state not in STANDING,
    )


def compare_times(shown: str | None, sent: dt.datetime) -> Time:
    """Compare a badge's ``issued_at``, as Credly writes it, with what was sent: to the
    second, or to the day where Credly gives no more than that.
    """
    if (at := _read(shown)) is None:
        return "not said"

    sent = sent.astimezone(dt.UTC).replace(microsecond=0)

    if (day := day_of(shown)) is not None:  # in a zone that is not said
        return "same" if abs((day - sent.date()).days) <= 1 else "other"

    if at.tzinfo is None:
        at = at.replace(tzinfo=dt.UTC)

    return "same" if abs((at - sent).total_seconds()) < 1 else "other"


def day_of(shown: str | None) -> dt.date | None:
    """Get the day of a badge's ``issued_at``, where Credly gives no more than that."""
    at = _read(shown)
    return at.date() if at is not None and at.time() == dt.time() else None


def _read(shown: str | None) -> dt.datetime | None:
    # Credly's own sample has a blank before the offset.
    text = (shown or "").strip()

    if " " in text:
        text = re.sub(r" +(UTC$|(?=[+-]\d))", "", text)

    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return None


def explain(owner: Owner | None, *, test: bool) -> str | None:
    """Say why a badge is held, worded for the admin.

    :param test: The admin's own try is nobody's, and has no course.
    """
    if owner is None:
        return None

    return THERE if test else IN_THE_WAY[owner]


THERE = (
    "Credly did not issue the test badge because this e-mail address already has it."
    " Use another address, or revoke the earlier badge."
)

IN_THE_WAY: dict[Owner, str] = {
    "another row": "The member already has this badge from another course.",
    "another member": (
        "Another member already has this badge under the same e-mail address."
    ),
    "given by hand": (
        "This e-mail address already has this badge. It was issued in Credly, not"
        " by this site."
    ),
}

NOT_LISTED = (
    "Credly reports that the member already has this badge, but does not show"
    " which one."
)
