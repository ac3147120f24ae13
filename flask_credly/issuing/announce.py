"""Tells the host, by signals and in the log, what became of its badges."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import logging
import typing as t

import blinker
from flask import has_request_context

from .. import keys
from .. import signals
from ..errors import CredlyError
from ..ledger import gates
from ..ledger import issuances
from ..ledger import polls
from ..ledger.polls import Became
from ..ledger.transaction import in_session
from ..models import Issuance
from ..state import Community

if t.TYPE_CHECKING:
    from ..credly import Badge
    from ..ledger.claim import Row

logger = logging.getLogger("flask_credly")


def issued(state: Community, row: Row, badge: Badge | None) -> None:
    """Say that a member has the badge."""
    badge_id = badge.id if badge else None
    _send(signals.badge_issued, state, **_names(row), badge_id=badge_id)

    # It may have been issued long ago, and be found only now.
    if badge and badge.state != "pending":
        found = Became(
            issuance_id=row.id,
            **_names(row),
            badge_id=badge.id,
            state=badge.state,
            at=badge.state_at,
        )
        became(state, found)


def adopted(state: Community, row_id: int, badge_id: str) -> None:
    """Say that a member has a badge that was issued before, and that the ledger did not
    know of.
    """
    row = in_session(state.engine, issuances.get, state.tenant, row_id)

    if row is not None and not row.test:
        _send(signals.badge_issued, state, **_names(row), badge_id=badge_id)


def became(state: Community, found: Became) -> None:
    """Say what has become of a badge."""
    payload = dataclasses.asdict(found)

    if found.state != "replaced":
        del payload["replaced_by"]

    _send(_BECAME[payload.pop("state")], state, **payload)


def what_became(
    state: Community,
    ids: cabc.Collection[int] = (),
    badge_ids: cabc.Collection[str] = (),
) -> None:
    """Say what has become of some badges, and note that it was said.

    :param ids: Of rows.
    :param badge_ids: Credly's, of rows that were not told of yet.
    """
    found = list(polls.to_tell(state.engine, state.tenant, ids, badge_ids))

    for each in found:
        became(state, each)

    polls.note_told(state.engine, state.tenant, found)


_BECAME = {
    "accepted": signals.badge_accepted,
    "rejected": signals.badge_rejected,
    "revoked": signals.badge_revoked,
    "replaced": signals.badge_replaced,
}


def failed(state: Community, row: Row, error: str) -> None:
    """Say that a badge was given up."""
    # The detail may hold the member's address, and the admin finds it by this number.
    logger.warning(
        "Badge %d failed. The error log has the details.",
        row.id,
        extra={"credly_event": "badge_failed", "credly_issuance": row.id},
    )
    _send(signals.badge_failed, state, **_names(row), error=error)


def paused(
    state: Community, until: dt.datetime, reason: gates.Reason, error: CredlyError
) -> None:
    """Say that issuing stops for a while."""
    logger.warning(
        "Issuing is paused until %s: %s",
        until.isoformat(),
        error,
        extra={
            "credly_event": "issuance_paused",
            "credly_reason": reason,
            "credly_until": until.isoformat(),
        },
    )
    _send(signals.issuance_paused, state, until=until, reason=reason)


def expired(state: Community, generation: str, error: CredlyError) -> None:
    """Close the gate until an admin reconnects, and say so, once an outage."""
    if not gates.expire(state.engine, state.tenant, generation):
        return

    logger.warning(
        "The connection to Credly has expired: %s",
        error,
        extra={"credly_event": "connection_expired"},
    )
    _send(signals.issuance_paused, state, until=None, reason="expired")


def keyless(
    state: Community, generation: str, seconds: float, *, again: bool = False
) -> None:
    """Say that this process cannot decrypt the Client Secret.

    :param seconds: How long it will, or until it says so again.
    :param again: Whether this process has said so, and it stands in its log.
    """
    remedy = keys.remedy(state.app.config)

    if not again:
        logger.error(
            "This process cannot decrypt the stored Client Secret, so it issues"
            " no badges. %s If the key is lost, enter the Client Secret again.",
            remedy,
            extra={"credly_event": "key_missing"},
        )

    if gates.note_keyless(state.engine, state.tenant, generation, seconds, remedy):
        _send(signals.issuance_paused, state, until=None, reason="key missing")


def _names(row: Row | Issuance) -> dict[str, str]:
    return {
        "member_id": row.member_id,
        "course_id": row.course_id,
        "kind": row.kind,
        "template_id": row.template_id,
    }


def _send(signal: blinker.NamedSignal, state: Community, **payload: t.Any) -> None:
    if state.has_tenants:
        payload["tenant"] = state.tenant

    try:
        signal.send(state.app, **payload)
    except Exception:
        logger.exception(
            "A receiver of %r failed.",
            signal,
            extra={"credly_event": "receiver_failed", "credly_signal": signal.name},
        )
    finally:
        # What a receiver has read, or failed to write, shall not be in the way of what
        # follows. In a request the session is the host's own.
        if not has_request_context():
            state.session.remove()
