"""The host's courses, and how they are named."""

from __future__ import annotations

import collections.abc as cabc
import logging

from .. import accounts
from ..catalog import Course
from ..catalog import read_courses
from ..i18n import gettext_noop
from ..ledger.transaction import end_hosts_transaction
from ..models import Batch
from ..models import Mapping
from ..models import RemovedMapping
from .community import here
from .query import write_key
from .reading import read

logger = logging.getLogger("flask_credly")

KIND_NAMES = {
    "course": gettext_noop("Course"),
    "learning_path": gettext_noop("Learning path"),
}


def list_courses() -> list[Course] | None:
    """List what can be mapped. ``None``: the host could not say."""
    try:
        return read_courses(here().list_courses())
    except Exception:
        logger.exception(
            "The @credly.courses hook failed.",
            extra={"credly_event": "hook_failed", "credly_hook": "courses"},
        )
        # Its failed statement would spoil those of the host's layout.
        end_hosts_transaction(failed=True)
        return None


def name_anew(
    rows: cabc.Iterable[Mapping | Batch], courses: list[Course] | None
) -> None:
    """Give rows that were read the titles of now: what is stored is the title of then,
    for a course that the host has no longer.
    """
    wanted: dict[tuple[str, str], list[Mapping | Batch]] = {}

    for row in rows:
        wanted.setdefault((row.kind, row.course_id), []).append(row)

    if not wanted:
        return

    ids = {id_ for _, id_ in wanted}

    # A host may have ten thousand.
    for course in [each for each in courses or [] if each.id in ids]:
        for row in wanted.get((course.kind, course.id), ()):
            row.course_title = course.title


def key(course: Course) -> str:
    """Name a course in a form."""
    return write_key(course.kind, course.id)


def key_of(mapping: Mapping | RemovedMapping) -> str:
    """Name a mapping's course in a form."""
    return write_key(mapping.kind, mapping.course_id)


def titles_by_course() -> dict[tuple[str, str], str]:
    """Get the titles of all courses for an export, by kind and id: the application's,
    else those of the mappings.
    """
    mapped = read(accounts.list_mappings)
    titles = {(each.kind, each.course_id): each.course_title for each in mapped}
    return titles | {(each.kind, each.id): each.title for each in list_courses() or []}
