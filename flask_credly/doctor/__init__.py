"""Checks everything that has to be right, and says what mends what is wrong.

It changes nothing but the cached access token, and prints neither secrets nor anything
of a member.
"""

from __future__ import annotations

import collections.abc as cabc
import logging

from ..issuing import trouble
from ..state import Community
from .account import check_comparison
from .account import check_connection
from .account import check_poll
from .account import check_secret
from .account import check_templates
from .account import check_token
from .application import check_hooks
from .application import check_key
from .application import check_pages
from .application import check_settings
from .badges import check_failed
from .badges import check_removal
from .badges import check_unrecorded
from .badges import check_waiting
from .database import check_clock
from .database import check_database
from .database import check_tables
from .finding import Case
from .finding import error
from .finding import Finding
from .finding import Shared
from .finding import skipped
from .queue import check_jobs
from .queue import check_queue
from .queue import check_redis
from .queue import check_workers

__all__ = ["examine", "examine_several", "Finding"]

logger = logging.getLogger("flask_credly")


def examine(state: Community) -> dict[str, Finding]:
    """Make all checks of an application and one community of it, and get what came of
    each by its name. The names stay the same from release to release. Raises nothing: a
    check that cannot be made says so.

    Asks Credly for one page of badge templates, where the connection is in force.
    """
    case = Case(state, Shared([state]))
    _examine(case, [case])
    return case.found


def examine_several(
    state: Community, communities: list[Community]
) -> tuple[dict[str, Finding], dict[str, dict[str, Finding]]]:
    """Make the checks of an application, and for each community, if there is one, those
    that concern its account.
    """
    shared = Shared(communities)
    application = Case(state, shared)
    accounts = [Case(each, shared) for each in communities]
    _examine(application, accounts)
    return application.found, {each.state.tenant: each.found for each in accounts}


def _examine(application: Case, accounts: list[Case]) -> None:
    for name, check, needed in _CHECKS:
        for case in accounts if name in _OF_ACCOUNT else [application]:
            failed = application.failed | case.failed

            if missing := [each for each in needed if each in failed]:
                case.found[name] = skipped(f"Not checked: see {missing[0]}.")
            else:
                case.found[name] = _make(case, name, check)

            # What hangs on it cannot be checked either.
            if case.found[name].status == "error" or missing:
                case.failed.add(name)


def _make(
    case: Case,
    name: str,
    check: cabc.Callable[[Case], Finding],
) -> Finding:
    try:
        return check(case)
    except Exception as e:
        from redis import RedisError

        # Its text may hold an address with a password.
        logger.debug("The check %r failed.", name, exc_info=True)

        if isinstance(e, RedisError):
            found = trouble.explain(e, case.state.settings)
            return error(found.what, found.remedy)

        return error(
            f"The check failed ({type(e).__name__}).",
            "Set the logger flask_credly to DEBUG for the traceback.",
        )


_Check = tuple[str, cabc.Callable[[Case], Finding], tuple[str, ...]]

_CHECKS: tuple[_Check, ...] = (
    ("settings", check_settings, ()),
    ("key", check_key, ()),
    ("pages", check_pages, ()),
    ("database", check_database, ()),
    ("tables", check_tables, ("database",)),
    ("hooks", check_hooks, ("database",)),
    ("redis", check_redis, ()),
    ("workers", check_workers, ("redis",)),
    ("queue", check_queue, ("redis", "tables")),
    ("jobs", check_jobs, ("redis",)),
    ("secret", check_secret, ("tables",)),
    ("connection", check_connection, ("tables", "secret")),
    ("token", check_token, ("tables", "secret", "connection")),
    ("clock", check_clock, ("database",)),
    ("templates", check_templates, ("tables",)),
    ("poll", check_poll, ("tables", "connection")),
    ("comparison", check_comparison, ("tables", "connection")),
    ("waiting", check_waiting, ("tables",)),
    ("removal", check_removal, ("tables",)),
    ("failed", check_failed, ("tables",)),
    ("unrecorded", check_unrecorded, ()),
)
"""Each with those that it depends on."""

_OF_ACCOUNT = {
    *("secret", "connection", "token", "templates", "poll"),
    "comparison",
    *("waiting", "failed", "unrecorded"),
}
"""Those that concern one community's account, and not the application."""
