"""The mapping rows. Each is swapped by itself, so that others keep what was chosen."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import heapq
import logging
import operator
import re
import secrets
import typing as t

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..catalog import clean
from ..catalog import Course
from ..catalog import read_courses
from ..i18n import gettext
from ..i18n import gettext_noop
from ..issuing import notifier
from ..ledger import gates
from ..ledger import issuances
from ..ledger.transaction import end_hosts_transaction
from ..models import Batch
from ..models import Mapping
from ..models import RemovedMapping
from .answer import EXPIRED
from .answer import fragment
from .answer import go_to
from .answer import page
from .answer import say
from .answer import wants_fragment
from .community import here
from .forms import MappingForm
from .forms import TestForm
from .guard import actor
from .query import read_key
from .query import read_number
from .query import write_key
from .reading import read

logger = logging.getLogger("flask_credly")

KIND_NAMES = {
    "course": gettext_noop("Course"),
    "learning_path": gettext_noop("Learning path"),
}

GONE = gettext_noop("This mapping is not there any more.")
NO_UNDO = gettext_noop("This cannot be undone any more. Add the mapping again.")
NOT_CONNECTED = gettext_noop("Credly is not connected any more.")

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
            focus=_searched(form),
        )


@dataclasses.dataclass
class Choices:
    """What one of the two lists of a row offers.

    :param shown: Some of what was found, and what is chosen.
    :param found: How many were found.
    :param searched: Whether there are so many that they can be searched.
    :param twins: The names that more than one badge template has.
    :param lost: The name of what the mapping has and the list does not offer any more.
    """

    shown: list[t.Any]
    found: int
    searched: bool
    twins: cabc.Set[str] = frozenset()
    lost: str = ""


def section(rows: list[EditRow]) -> dict[str, t.Any]:
    """Gather what the section shows.

    :param rows: The rows that stand open.
    """
    mapped = read(accounts.mapped_courses)
    courses = list_courses()
    number = _page()
    start = (number - 1) * A_PAGE
    mappings = read(accounts.list_mappings, start=start, limit=A_PAGE)
    name_anew(mappings, courses)

    if not mapped and not rows:
        rows = [EditRow(secrets.token_hex(4))]

    return {
        "courses": courses,
        "deleted": _deleted(mappings, courses),
        "kind_names": KIND_NAMES,
        "templates": read(accounts.count_templates),
        "mappings": mappings,
        "twins": read(accounts.find_twins, [each.template for each in mappings]),
        "mapped": len(mapped),
        "mapping_page": number,
        "kept": _kept(),
        "mapping_pages": -(-len(mapped) // A_PAGE),
        "changing": {row.mapping_id: row for row in rows if row.mapping_id},
        "new_rows": [row for row in rows if row.mapping_id is None],
        **_choices(rows, courses, mapped),
        "undo": _removed(request.args.get("undo"), mapped),
    }


def _removed(
    id_: str | None, mapped: cabc.Collection[tuple[str, str]] = ()
) -> RemovedMapping | None:
    """Find what an undo brings back, if its course is not mapped again."""
    if (number := read_number(id_ or "")) is None:
        return None

    found = read(accounts.get_removed, number)
    return found if found and (found.kind, found.course_id) not in mapped else None


def _page() -> int:
    wanted = request.args.get("page", "")
    return max(1, int(wanted)) if wanted.isdecimal() and len(wanted) < 7 else 1


def _kept() -> dict[str, t.Any]:
    """Keep the page in an address."""
    return {"page": number} if (number := _page()) > 1 else {}


def _choices(
    rows: list[EditRow], courses: list[Course] | None, mapped: set[tuple[str, str]]
) -> dict[str, dict[str, Choices]]:
    """Gather what the lists of open rows offer."""
    of_courses = {row.key: _course_choices(row, courses, mapped) for row in rows}
    of_templates = {row.key: _template_choices(row) for row in rows}

    for row in rows:
        if row.mapping_id is None:
            continue

        mapping = read(accounts.get_mapping, row.mapping_id)

        if mapping and _deleted([mapping], courses):
            of_courses[row.key].lost = mapping.course_title

        if mapping and not mapping.template.active:
            of_templates[row.key].lost = mapping.template.name

    return {"course_choices": of_courses, "template_choices": of_templates}


def _course_choices(
    row: EditRow, courses: list[Course] | None, mapped: set[tuple[str, str]]
) -> Choices:
    # A host may have ten thousand.
    wanted = read_key(row.course)
    taken = mapped - {wanted}
    free = [each for each in courses or [] if (each.kind, each.id) not in taken]

    if len(free) <= MANY:
        return Choices(sorted(free, key=_BY_TITLE), len(free), searched=False)

    text = row.course_text.casefold()
    hits = [each for each in free if text in each.title.casefold()] if text else free
    shown = heapq.nsmallest(SHOWN, hits, key=_BY_TITLE)

    if row.course:
        found = (each for each in free if (each.kind, each.id) == wanted)
        shown = [*(each for each in found if each not in shown), *shown]

    return Choices(shown, len(hits), searched=True)


def _deleted(mappings: list[Mapping], courses: list[Course] | None) -> set[int]:
    """Find the mappings whose course the host has no longer."""
    if courses is None:
        return set()

    shown = {(each.kind, each.course_id): each.id for each in mappings}

    for course in courses:
        if not shown:
            break

        shown.pop((course.kind, course.id), None)

    return set(shown.values())


def _template_choices(row: EditRow) -> Choices:
    number = read(accounts.count_templates)

    if number <= MANY:
        every = read(accounts.list_templates)
        twins = read(accounts.find_twins, every)
        return Choices(every, number, searched=False, twins=twins)

    text = row.template_text
    shown = read(accounts.list_templates, text=text, limit=SHOWN)
    chosen = read(accounts.get_template, row.template) if row.template else None

    if chosen and chosen.active and chosen.id not in {each.id for each in shown}:
        shown = [chosen, *shown]

    found = read(accounts.count_templates, text)
    twins = read(accounts.find_twins, shown)
    return Choices(shown, found, searched=True, twins=twins)


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

    for course in courses or []:
        for row in wanted.get((course.kind, course.id), ()):
            row.course_title = course.title


def key(course: Course) -> str:
    """Name a course in a form."""
    return write_key(course.kind, course.id)


def key_of(mapping: Mapping | RemovedMapping) -> str:
    """Name a mapping's course in a form."""
    return write_key(mapping.kind, mapping.course_id)


def new() -> ResponseReturnValue:
    """Open one more row."""
    if not wants_fragment():
        return go_to("credly.show", mapping="new")

    return _edit_row(EditRow(secrets.token_hex(4)))


def edit_mapping(mapping_id: int) -> ResponseReturnValue:
    """Open the row of a mapping."""
    if not wants_fragment():
        return go_to("credly.show", mapping=mapping_id)

    mapping = read(accounts.get_mapping, mapping_id)
    return _edit_row(EditRow.changing(mapping)) if mapping else gone()


def row(mapping_id: int) -> ResponseReturnValue:
    """Close the row of a mapping."""
    if not wants_fragment():
        return _to_list()

    mapping = read(accounts.get_mapping, mapping_id)
    return _text_row(mapping) if mapping else gone()


def add() -> ResponseReturnValue:
    """Save a new mapping."""
    form = MappingForm.sent()

    if not form.undo.data:
        return _save(form, None)

    # What comes back stands in the database, and not in the form.
    if (removed := _removed(form.undo.data)) is None:
        say(gettext(NO_UNDO), wrong=True)
        return _to_list()

    form.course.data = key_of(removed)
    form.template.data = removed.template_id
    return _save(form, None)


def change(mapping_id: int) -> ResponseReturnValue:
    """Save a changed mapping."""
    return _save(MappingForm.sent(), mapping_id)


def add_expired() -> ResponseReturnValue:
    """Show the row again with a fresh token."""
    return _again(MappingForm.sent(), None, [gettext(EXPIRED)])


def change_expired(mapping_id: int) -> ResponseReturnValue:
    """Show the row again with a fresh token."""
    return _again(MappingForm.sent(), mapping_id, [gettext(EXPIRED)])


def remove_mapping(mapping_id: int) -> ResponseReturnValue:
    """Remove a mapping, and offer to take that back."""
    removed = accounts.remove_mapping(here(), mapping_id, by=actor())

    if removed is None:
        return gone()

    name_anew([removed], list_courses())
    said = gettext(
        "Mapping removed: %(course)s. Badges already issued are kept.",
        course=removed.course_title,
    )

    if not wants_fragment():
        say(said)
        return _to_list(undo=str(removed.id))

    return fragment(
        "credly/_mapping_removed.html",
        mapping=removed,
        said=said,
    )


def ask_test(mapping_id: int) -> ResponseReturnValue:
    """Ask who shall get a test badge."""
    return _test_page(mapping_id, TestForm())


def send_test(mapping_id: int) -> ResponseReturnValue:
    """Issue a badge of a mapping that counts for no member."""
    form = TestForm.sent()

    if not form.validate():
        return _test_page(mapping_id, form, 422)

    state = here()
    added = issuances.add_test(
        state.engine,
        state.tenant,
        mapping_id,
        email=form.email.data,
        first_name=form.first_name.data,
        last_name=form.last_name.data,
        by=actor(),
    )

    if added is None:
        return gone()

    notifier.notify(state)
    gate = gates.read(state.engine, state.tenant)

    if gate is not None and gate.is_open:
        say(gettext("The test badge is on its way. Its status stands below."))
    else:
        say(gettext("Issuing is paused. The test badge waits until it goes on."))

    return go_to("credly.badges", id=added)


def test_expired(mapping_id: int) -> ResponseReturnValue:
    """Show the form again with a fresh token and what was typed."""
    return _test_page(mapping_id, TestForm.sent(), 422, gettext(EXPIRED))


def _test_page(
    mapping_id: int, form: TestForm, status: int = 200, problem: str | None = None
) -> Response:
    mapping = read(accounts.get_mapping, mapping_id)

    if mapping is None:
        return gone()

    name_anew([mapping], list_courses())
    return page("credly/test.html", status, mapping=mapping, form=form, problem=problem)


def _save(form: MappingForm, mapping_id: int | None) -> Response:
    if _searched(form):
        return _show_again(EditRow.sent(form, mapping_id), 200)

    if not form.validate():
        errors = [text for texts in form.errors.values() for text in texts]
        return _again(form, mapping_id, errors)

    chosen = {key(each): each for each in list_courses() or []}.get(form.course.data)

    if chosen is None:
        error = gettext("This course or learning path is gone.")
        return _again(form, mapping_id, [error])

    state = here()

    try:
        if mapping_id is None:
            mapping = accounts.add_mapping(
                state,
                chosen,
                form.template.data,
                undo=bool(form.undo.data),
                by=actor(),
            )
        else:
            mapping = accounts.change_mapping(
                state, mapping_id, chosen, form.template.data, by=actor()
            )
    except accounts.AlreadyMapped as e:
        error = gettext(
            "This course or learning path is already mapped to %(badge)s.",
            badge=e.badge_name,
        )
        return _again(form, mapping_id, [error])
    except accounts.UnknownTemplate:
        error = gettext(
            "This badge template is no longer active in Credly. Select another."
        )
        return _again(form, mapping_id, [error])
    except (accounts.NotConnected, accounts.UnknownMapping):
        return gone()

    said = gettext(
        "Mapping saved: %(course)s to %(badge)s.",
        course=mapping.course_title,
        badge=mapping.template.name,
    )

    if wants_fragment():
        return _text_row(mapping, said)

    say(said)
    return _to_list()


def _searched(form: MappingForm) -> str:
    """Say which list is searched: by its button, or while somebody types."""
    return form.search.data or clean(request.args.get("search"), 20)


def _to_list(**values: str) -> Response:
    """Go to the page of the list that the form stood on."""
    return go_to("credly.show", **_kept(), **values)


def _again(form: MappingForm, mapping_id: int | None, errors: list[str]) -> Response:
    return _show_again(EditRow.sent(form, mapping_id, errors=errors), 422)


def _show_again(edited: EditRow, status: int) -> Response:
    if wants_fragment():
        return _edit_row(edited, status)

    from .window import show_with

    return show_with([edited], status)


def _edit_row(edited: EditRow, status: int = 200) -> Response:
    mapped = read(accounts.mapped_courses)
    return fragment(
        "credly/_mapping_edit.html",
        status,
        row=edited,
        focus_new=not edited.focus,
        **_choices([edited], list_courses(), mapped),
    )


def _text_row(mapping: Mapping, said: str = "") -> Response:
    courses = list_courses()
    name_anew([mapping], courses)
    return fragment(
        "credly/_mapping_row.html",
        mapping=mapping,
        said=said,
        focus=True,
        deleted=_deleted([mapping], courses),
        twins=read(accounts.find_twins, [mapping.template]),
        kind_names=KIND_NAMES,
    )


def gone(what: str = GONE) -> Response:
    """Answer for a mapping, or a whole integration, that was removed elsewhere."""
    if read(accounts.get) is None:
        what = NOT_CONNECTED

    say(gettext(what), wrong=True)
    return go_to("credly.show")
