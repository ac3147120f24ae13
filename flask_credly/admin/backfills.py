"""Issuing badges to members who completed a course before it was mapped."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import logging

from flask import request
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import gettext_noop
from ..issuing import backfill
from ..issuing import notifier
from ..ledger import backfills
from .community import here
from .courses import list_courses
from .courses import name_anew
from .forms import NO_DATE
from .guard import actor
from .guard import may_act
from .guard import may_revoke
from .mappings import gone
from .query import number
from .reading import read
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import wants_fragment
from .window import how_far

logger = logging.getLogger("flask_credly")

GONE = gettext_noop("This run no longer exists.")

SECONDS = 5.0
"""For how long the page counts: a host may have more completions than that."""


def confirm_backfill(mapping_id: int) -> ResponseReturnValue:
    """Show what a backfill would do."""
    state = here()
    mapping = read(accounts.get_mapping, mapping_id)

    if mapping is None or state.past_completions is None:
        return gone()

    given, since, wrong = _since(request.args)
    found = None
    name_anew([mapping], list_courses())

    try:
        course = accounts.course_of(mapping)
        found = backfill.preview(state, course, since, seconds=SECONDS)
    except backfill.HookFailed:
        pass  # and is in the log
    except Exception:
        logger.exception(
            "The @credly.past_completions hook failed.",
            extra={"credly_event": "hook_failed", "credly_hook": "past_completions"},
        )

    return page(
        "credly/backfill.html",
        mapping=mapping,
        preview=found,
        given=given,
        since_error=wrong,
        today=dt.datetime.now(dt.UTC).date().isoformat(),
    )


def _since(
    values: cabc.Mapping[str, str],
) -> tuple[str, dt.datetime | None, str | None]:
    """Read the day of the first completions that count: as it was typed, as a time, and
    what is wrong with it.
    """
    given = values.get("since", "").strip()

    try:
        day = dt.date.fromisoformat(given) if given else None
    except ValueError:
        return given, None, gettext(NO_DATE)

    since = None if day is None else dt.datetime.combine(day, dt.time(), dt.UTC)
    return given, since, None


def start_backfill(mapping_id: int) -> ResponseReturnValue:
    """Begin."""
    state = here()

    if state.past_completions is None:
        return gone()

    _, since, wrong = _since(request.form)

    if wrong:
        flash(wrong, wrong=True)
        return go_to("credly.confirm_backfill", mapping_id=mapping_id)

    by = actor()
    run_id = backfills.start(state.engine, state.tenant, mapping_id, since, by=by)

    if run_id is None:
        return gone()

    notifier.ask_for_backfill(state)
    return go_to("credly.show_backfill", run_id=run_id)


def show_backfill(run_id: int) -> ResponseReturnValue:
    """Show how far a backfill is."""
    connected = read(accounts.get)
    found = read(backfills.progress, run_id)

    if connected is None or found is None:
        return gone(GONE)

    name_anew([found.run], list_courses())
    context = how_far(
        connected,
        found,
        found.to_issue,
        can_stop=may_act() and found.run.state in ("recording", "recorded"),
    )
    context["can_take_back"] = bool(found.to_issue) and may_revoke()

    if not wants_fragment():
        return page("credly/backfilling.html", **context)

    return fragment(
        "credly/_progress.html",
        **context,
        tell=number("said") != context["quarter"],
    )


def stop_backfill(run_id: int) -> ResponseReturnValue:
    """Stop, and finish what is on its way."""
    state = here()
    backfills.stop(state.engine, state.tenant, run_id, by=actor())
    found = read(backfills.progress, run_id)

    if found is None:
        return gone(GONE)

    flash(gettext("Stopped. Queued badges are skipped."))
    return go_to("credly.show_backfill", run_id=run_id)
