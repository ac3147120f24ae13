"""A member's badges, in a page of the host's."""

from __future__ import annotations

import logging

from flask import after_this_request
from flask import has_request_context
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from ..catalog import read_tenant
from ..ledger import member
from ..state import get_state
from .community import here
from .rendering import render
from .respond import do_not_store

logger = logging.getLogger("flask_credly")


def badges(
    member_id: str,
    *,
    tenant: str | None = None,
    course_id: str | None = None,
    kind: str = "course",
    can_be_earned: bool = True,
    pictures: bool = True,
) -> Markup:
    """Render a member's badges, for a page that the host shows to that member alone.

    :param tenant: The community. ``None``: that of the request; where there is none,
        nothing is rendered.
    :param pictures: Whether the browser is to load the badges' pictures, from Credly.

    The others are as in :meth:`.Credly.badges_of`.
    """
    if has_request_context():
        after_this_request(do_not_store)

    found: list[member.MemberBadge] | None

    try:
        state = here() if tenant is None else get_state().of(read_tenant(tenant))
    except HTTPException:
        return Markup()  # there is no community here

    try:
        found = member.badges_of(
            state,
            member_id,
            course_id=course_id,
            kind=kind,
            can_be_earned=can_be_earned,
        )
    except SQLAlchemyError:
        # The page is also there for other things.
        logger.exception(
            "The badges of a member could not be read.",
            extra={"credly_event": "state_not_read"},
        )
        found = None

    return render(
        "credly/member/badges.html",
        badges=found,
        course_id=course_id,
        pictures=pictures,
    )
