"""The section of the mappings: those of one page, and the rows that stand open."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import heapq
import operator
import re
import secrets
import typing as t

from flask import request

from .. import accounts
from ..catalog import clean
from ..catalog import Course
from ..i18n import gettext
from ..i18n import ngettext
from ..ledger import overview
from ..models import Mapping
from ..models import RemovedMapping
from ..models import Template
from ..options import EACH
from ..options import LOCALES
from ..options import MEMBER
from ..options import NEVER
from ..options import Options
from ..options import RENEW
from .courses import key_of
from .courses import KIND_NAMES
from .courses import list_courses
from .courses import name_anew
from .forms import MappingForm
from .guard import may_act
from .query import read_key
from .query import read_number
from .reading import read

MANY = 200
"""So many choices are searched, and not shown all at once."""

SHOWN = 50
"""So many of what was found are shown."""

A_PAGE = 20
"""So many mappings stand on a page."""

_BY_TITLE = operator.attrgetter("title")


@dataclasses.dataclass(frozen=True)
class EditRow:
    """A row that is being added or changed.

    :param key: Makes the ids of several open rows different.
    :param mapping_id: The mapping that is changed. ``None``: a new one.
    :param course: The chosen course: see :func:`.write_key`.
    :param course_text: What was searched for.
    :param focus: Which of the two lists gets the focus.
    """

    key: str
    mapping_id: int | None = None
    course: str = ""
    template: str = ""
    errors: tuple[str, ...] = ()
    course_text: str = ""
    template_text: str = ""
    focus: str = ""

    @classmethod
    def of(cls, wanted: str) -> EditRow:
        """Open a new row, or the one of a mapping's id."""
        if not wanted.isdecimal():
            return cls(secrets.token_hex(4))

        mapping = read(accounts.get_mapping, int(wanted[:9]))
        return cls.changing(mapping) if mapping else cls(secrets.token_hex(4))

    @classmethod
    def changing(cls, mapping: Mapping) -> EditRow:
        """Open the row of a mapping."""
        return cls(
            key=str(mapping.id),
            mapping_id=mapping.id,
            course=key_of(mapping),
            template=mapping.template_id,
        )

    @classmethod
    def sent(
        cls,
        form: MappingForm,
        mapping_id: int | None,
        *,
        errors: cabc.Sequence[str] = (),
    ) -> EditRow:
        """Open the row again as it was sent."""
        key = form.key.data or ""
        return cls(
            key=key if re.fullmatch("[0-9a-f]{1,16}", key) else secrets.token_hex(4),
            mapping_id=mapping_id,
            course=form.course.data or "",
            template=form.template.data or "",
            errors=tuple(errors),
            course_text=form.course_text.data or "",
            template_text=form.template_text.data or "",
            focus=searched(form),
        )


@dataclasses.dataclass
class Choices:
    """What one of the two lists of a row offers.

    :param shown: Some of what was found, and what is chosen.
    :param found: How many were found.
    :param searched: Whether there are so many that they can be searched.
    :param lost: The name of what the mapping has and the list does not offer any more.
    """

    shown: list[t.Any]
    found: int
    searched: bool
    lost: str = ""


def section(rows: list[EditRow]) -> dict[str, t.Any]:
    """Gather what the section shows.

    :param rows: The rows that stand open.
    """
    mapped = read(overview.count_mappings)
    courses = list_courses()
    number = _page()
    start = (number - 1) * A_PAGE
    mappings = read(accounts.list_mappings, start=start, limit=A_PAGE)
    name_anew(mappings, courses)

    if not mapped and not rows and may_act():
        rows = [EditRow(secrets.token_hex(4))]

    return {
        "courses": courses,
        "deleted": find_deleted(mappings, courses),
        "summaries": {each.id: summarize(each) for each in mappings},
        "kind_names": KIND_NAMES,
        "mappings": mappings,
        "mapped": mapped,
        "mapping_page": number,
        "kept": kept(),
        "mapping_pages": -(-mapped // A_PAGE),
        "changing": {row.mapping_id: row for row in rows if row.mapping_id},
        "new_rows": [row for row in rows if row.mapping_id is None],
        **find_choices(rows, courses, [each.template for each in mappings]),
        "undo": _offered_undo(),
    }


def find_removed(id_: str | None) -> RemovedMapping | None:
    """Find what an undo brings back."""
    number = read_number(id_ or "")
    return None if number is None else read(accounts.get_removed, number)


def _offered_undo() -> RemovedMapping | None:
    found = find_removed(request.args.get("undo"))
    is_mapped = found and read(accounts.get_mapping_of, found.kind, found.course_id)
    return None if is_mapped else found


def _page() -> int:
    wanted = request.args.get("page", "")
    return max(1, int(wanted)) if wanted.isdecimal() and len(wanted) < 7 else 1


def kept() -> dict[str, t.Any]:
    """Keep the page in an address."""
    return {"page": number} if (number := _page()) > 1 else {}


def find_choices(
    rows: list[EditRow],
    courses: list[Course] | None,
    beside: cabc.Sequence[Template] = (),
) -> dict[str, t.Any]:
    """Gather what the lists of open rows offer.

    :param beside: Badge templates that are shown as well.
    """
    mapped = read(accounts.mapped_courses) if rows else set()
    number = read(accounts.count_templates)
    of_courses = {row.key: _course_choices(row, courses, mapped) for row in rows}
    of_templates = {
        row.key: template_choices(row.template, row.template_text, number)
        for row in rows
    }
    shown = [
        *beside,
        *(each for found in of_templates.values() for each in found.shown),
    ]
    twins = read(accounts.find_twins, shown)

    for row in rows:
        if row.mapping_id is None:
            continue

        mapping = read(accounts.get_mapping, row.mapping_id)

        if mapping and find_deleted([mapping], courses):
            of_courses[row.key].lost = mapping.course_title

        if mapping and not mapping.template.active:
            of_templates[row.key].lost = mapping.template.name

    return {
        "course_choices": of_courses,
        "template_choices": of_templates,
        "templates": number,
        "twins": twins,
    }


def _course_choices(
    row: EditRow, courses: list[Course] | None, mapped: set[tuple[str, str]]
) -> Choices:
    # A host may have ten thousand.
    wanted = read_key(row.course)
    taken = mapped - {wanted}
    ids = {id_ for _, id_ in taken}
    free = [
        each
        for each in courses or []
        if each.id not in ids or (each.kind, each.id) not in taken
    ]

    if len(free) <= MANY:
        return Choices(sorted(free, key=_BY_TITLE), len(free), searched=False)

    text = row.course_text.casefold()
    hits = [each for each in free if text in each.title.casefold()] if text else free
    shown = heapq.nsmallest(SHOWN, hits, key=_BY_TITLE)

    if row.course:
        found = (each for each in free if (each.kind, each.id) == wanted)
        shown = [*(each for each in found if each not in shown), *shown]

    return Choices(shown, len(hits), searched=True)


def find_deleted(mappings: list[Mapping], courses: list[Course] | None) -> set[int]:
    """Find the mappings whose course the host has no longer."""
    if courses is None:
        return set()

    shown = {(each.kind, each.course_id): each.id for each in mappings}

    for course in courses:
        if not shown:
            break

        shown.pop((course.kind, course.id), None)

    return set(shown.values())


def summarize(mapping: Mapping) -> list[str]:
    """Word the options of a mapping that are not as Credly does by itself."""
    options = Options.read(mapping.options)
    found: list[str] = []

    if options.locale == MEMBER:
        found.append(gettext("E-mail in the member's language"))
    elif options.locale:
        language = LOCALES.get(options.locale, options.locale)
        found.append(gettext("E-mail in %(language)s", language=language))

    if not options.mail:
        found.append(gettext("No e-mail from Credly"))

    if options.expires == NEVER:
        found.append(gettext("Never expires"))
    elif isinstance(options.expires, int):
        found.append(
            ngettext(
                "Expires after %(number)s month",
                "Expires after %(number)s months",
                options.expires,
            )
        )

    if options.evidence:
        found.append(gettext("With evidence"))

    if options.again == RENEW:
        found.append(gettext("Renewed on each completion"))
    elif options.again == EACH:
        found.append(gettext("Another badge on each completion"))

    if options.withdrawn:
        found.append(gettext("Revoked if the completion is withdrawn"))

    if options.group:
        found.append(gettext("Group tag: %(group)s", group=options.group))

    return found


def template_choices(template_id: str, text: str, number: int) -> Choices:
    """Get the active badge templates to choose from.

    :param template_id: The chosen one.
    :param text: What was searched for, where there are many.
    :param number: How many there are.
    """
    if number <= MANY:
        return Choices(read(accounts.list_templates), number, searched=False)

    shown = read(accounts.list_templates, text=text, limit=SHOWN)
    chosen = read(accounts.get_template, template_id) if template_id else None

    if chosen and chosen.active and chosen.id not in {each.id for each in shown}:
        shown = [chosen, *shown]

    found = read(accounts.count_templates, text) if text else number
    return Choices(shown, found, searched=True)


def searched(form: MappingForm) -> str:
    """Say which list is searched: by its button, or while somebody types."""
    return form.search.data or clean(request.args.get("search"), 20)
