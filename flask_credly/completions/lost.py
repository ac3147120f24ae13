"""What could not be recorded: each is logged, and completions are counted."""

from __future__ import annotations

import logging
import typing as t

import sqlalchemy as sa
from flask import current_app
from flask import Flask
from flask import has_app_context
from sqlalchemy import orm

from .. import interruption
from ..catalog import DEFAULT_TENANT
from ..catalog import id_of_member
from ..catalog import show
from ..issuing import unrecorded
from ..state import AppState
from ..state import Community
from . import host_transaction
from .reading import tenant_of

logger = logging.getLogger("flask_credly")


def note_lost(
    app: Flask | None, given: dict[str, t.Any], *, ended: bool = False
) -> None:
    """Say that a completion was not recorded, and count it: every one passes here.

    :param app: ``None`` where it is not known: then it cannot be counted.
    :param given: What was sent.
    :param ended: Whether the host's transaction is over.
    """
    try:
        # The host's request goes on. Here is all that is needed to do it again, but
        # for the member's name and address.
        member_id = show(id_of_member(given.get("member")))
        course, kind = show(given.get("course_id")), show(given.get("kind", "course"))
        when = show(given.get("completed_at", "now"))
        logger.exception(
            "A completion was not recorded: member %r, %s %r, completed at %s. Send it"
            " again after fixing the cause.",
            member_id,
            kind,
            course,
            when,
            extra={
                "credly_event": "completion_lost",
                "credly_member": member_id,
                "credly_kind": kind,
                "credly_course": course,
                "credly_completed_at": when,
            },
        )
    finally:
        if app is not None:
            state = app.extensions["credly"].of(_tenant_or_empty(app, given))
            _count(state, given.get("session"), ended=ended)


def note_lost_withdrawal(given: dict[str, t.Any]) -> None:
    """Say that a withdrawn completion was not recorded: its badge stays.

    :param given: What was sent.
    """
    member_id = show(given.get("member_id"))
    course, kind = show(given.get("course_id")), show(given.get("kind", "course"))
    when = show(given.get("withdrawn_at", "now"))
    logger.exception(
        "A withdrawal was not recorded: member %r, %s %r, withdrawn at %s. Send it"
        " again after fixing the cause.",
        member_id,
        kind,
        course,
        when,
        extra={
            "credly_event": "withdrawal_lost",
            "credly_member": member_id,
            "credly_kind": kind,
            "credly_course": course,
            "credly_withdrawn_at": when,
            "credly_tenant": show(given.get("tenant") or ""),
        },
    )


def _tenant_or_empty(app: Flask, given: dict[str, t.Any]) -> str:
    """Get whose completion it is. Empty: that is not known."""
    state: AppState = app.extensions["credly"]

    # There is but one, that has to know.
    if not state.has_tenants:
        return DEFAULT_TENANT

    try:
        return tenant_of(state, given.get("tenant"))
    except Exception as e:
        # What is wrong with it may be why the completion was not recorded.
        logger.debug("The community could not be determined (%s).", type(e).__name__)
        return ""


def _count(state: Community, session: t.Any, *, ended: bool) -> None:
    """Count one completion that could not be recorded. Raises nothing but what the host
    throws in, once it is counted.

    If the host has written in its open transaction, the completion counts once that is
    committed: what the host takes back is not missing.

    :param session: The host's, if it named one.
    :param ended: Whether the host's transaction is over.
    """
    try:
        try:
            waits = not ended and _waits(state, session)
        except BaseException:
            unrecorded.note(state)
            raise

        if not waits:
            unrecorded.note(state)
    except BaseException as e:
        if found := interruption.find(e):
            raise found from None

        logger.exception(
            "An unrecorded completion could not be counted.",
            extra={"credly_event": "completion_not_counted"},
        )


def _waits(state: Community, session: t.Any) -> bool:
    """Have it counted with the host's commit, if there will be one."""
    here = has_app_context() and current_app._get_current_object() is state.app  # type: ignore[attr-defined]

    if not here:
        return False

    host = state.session if session is None else session
    try:
        host = host() if isinstance(host, orm.scoped_session) else host

        joined = host_transaction.to_join(host, state.engine)
    except sa.exc.PendingRollbackError:
        return True  # for a commit that cannot come
    except Exception as e:
        if interruption.find(e):
            raise

        # It is broken, or no session at all: then it counts.
        logger.debug("The host's transaction could not be watched.", exc_info=True)
        return False

    if joined is None:
        return False

    host_transaction.follow(
        host,
        joined.connection,
        on_commit=lambda: _count(state, None, ended=True),
        on_rollback=lambda: None,
    )
    return True
