"""The member's address and names, as the badge needs them."""

from __future__ import annotations

import dataclasses
import logging
import typing as t

from ..catalog import clean
from ..catalog import clean_email
from ..catalog import DETAILS
from ..catalog import Member
from ..catalog import read_details
from ..models import Issuance
from ..state import Community

if t.TYPE_CHECKING:
    from ..ledger.claim import Row

logger = logging.getLogger("flask_credly")


def missing(row: Row | Issuance | Member, *, with_address: bool = True) -> str | None:
    """Say what Credly would refuse the request for, worded for the admin.

    :param with_address: Whether the request has an address: one that replaces a badge
        has none.
    """
    named = {"first name": row.first_name, "last name": row.last_name}

    if with_address:
        named = {"e-mail address": row.email, **named}

    empty = [name for name, value in named.items() if not value.strip()]
    return f"The member's profile has no {' and no '.join(empty)}." if empty else None


def refresh(state: Community, row: Row) -> Row:
    """Load the profile as it is now, where the host gives the hook, and save it."""
    from ..ledger import claim

    if (member := load(state, row)) is None:
        return row

    now = named(member)
    fresh = dataclasses.replace(
        row,
        email=now["email"],
        first_name=now["first_name"],
        last_name=now["last_name"],
        extras=_with_details(row, member),
    )

    if fresh != row:
        claim.update_member(state.engine, fresh)

    return fresh


def named(member: Issuance | Member) -> dict[str, str]:
    """Get a member's address and names as they are stored."""
    return {
        "email": clean_email(member.email),
        "first_name": clean(member.first_name, 255),
        "last_name": clean(member.last_name, 255),
    }


def _with_details(row: Row, member: Member) -> dict[str, t.Any] | None:
    """Get what else is known, with the member's details of now. What the hook leaves
    out stays as it was sent: the signal may have known more.
    """
    said = [name for name in DETAILS if getattr(member, name) is not None]
    kept = {k: v for k, v in (row.extras or {}).items() if k not in said}
    now = read_details(member)
    return {**kept, **{name: now[name] for name in said if name in now}} or None


def load(state: Community, row: Row | Issuance) -> Member | None:
    """Ask the host for a row's member as of now. ``None``: it has no hook, does not
    know the member, or the hook failed, which the log tells.
    """
    if state.load_member is None:
        return None

    try:
        return ask(state, row)
    except (Exception, SystemExit):
        note_failure(row)
        return None
    finally:
        # What the hook read must not stay open while Credly is asked.
        state.session.remove()


def ask(state: Community, row: Row | Issuance) -> Member | None:
    """Call the host's hook for a row's member. It may raise anything.

    :raises TypeError: It gave something else than a member.
    """
    member = state.load_member(row.member_id) if state.load_member else None

    if member is not None and not isinstance(member, Member):
        raise TypeError(
            f"It must return a Member or None, not {type(member).__name__}."
        )

    return member


def note_failure(row: Row | Issuance) -> None:
    """Log that the hook failed. Called where the exception is handled."""
    logger.exception(
        "The @credly.member hook failed for badge %d.",
        row.id,
        extra={
            "credly_event": "hook_failed",
            "credly_hook": "member",
            "credly_issuance": row.id,
        },
    )
