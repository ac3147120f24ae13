"""The mapping rows. Each is swapped by itself, so that others keep what was chosen."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import typing as t

from flask import Response
from flask.typing import ResponseReturnValue

from .. import connection
from ..catalog import Course
from ..catalog import KINDS
from ..models import Mapping
from ..settings import get_state
from .answer import EXPIRED
from .answer import fragment
from .answer import go_to
from .answer import say
from .answer import wants_fragment
from .forms import Button
from .forms import MappingForm

logger = logging.getLogger("flask_credly")

KIND_NAMES = {"course": "Course", "learning_path": "Learning path"}


@dataclasses.dataclass(frozen=True)
class EditRow:
    """A row that is being added or changed.

    :param key: Makes the ids of several open rows different.
    :param mapping_id: The mapping that is changed. ``None``: a new one.
    :param course: The chosen course, as ``kind:id``.
    """

    key: str
    mapping_id: int | None = None
    course: str = ""
    template: str = ""
    errors: tuple[str, ...] = ()

    @classmethod
    def of(cls, wanted: str) -> EditRow:
        """Open a new row, or the one of a mapping's id."""
        if not wanted.isdecimal():
            return cls(secrets.token_hex(4))

        mapping = connection.get_mapping(get_state().session, int(wanted[:9]))
        return cls.changing(mapping) if mapping else cls(secrets.token_hex(4))

    @classmethod
    def changing(cls, mapping: Mapping) -> EditRow:
        """Open the row of a mapping."""
        return cls(
            key=str(mapping.id),
            mapping_id=mapping.id,
            course=f"{mapping.kind}:{mapping.course_id}",
            template=mapping.template_id,
        )


def section(rows: list[EditRow]) -> dict[str, t.Any]:
    """Gather what the section shows.

    :param rows: The rows that stand open.
    """
    session = get_state().session
    mappings = connection.list_mappings(session)

    if not mappings and not rows:
        rows = [EditRow(secrets.token_hex(4))]

    return {
        **_choices(mappings),
        "mappings": mappings,
        "changing": {row.mapping_id: row for row in rows if row.mapping_id},
        "new_rows": [row for row in rows if row.mapping_id is None],
        "mapping_form": MappingForm(formdata=None),
    }


def _choices(mappings: list[Mapping]) -> dict[str, t.Any]:
    courses = _courses()
    return {
        "courses": courses,
        "course_keys": None if courses is None else {key(each) for each in courses},
        "kinds": KINDS,
        "kind_names": KIND_NAMES,
        "mapped": {f"{each.kind}:{each.course_id}" for each in mappings},
        "templates": connection.list_templates(get_state().session),
    }


def _courses() -> list[Course] | None:
    """List what can be mapped. ``None``: the host could not say."""
    try:
        return sorted(get_state().list_courses(), key=lambda each: each.title)
    except Exception:
        logger.exception("The @credly.courses hook failed.")
        return None


def key(course: Course) -> str:
    """Name a course in a form."""
    return f"{course.kind}:{course.id}"


def new() -> ResponseReturnValue:
    """Open one more row."""
    if not wants_fragment():
        return go_to("credly.show", mapping="new")

    return _edit_row(EditRow(secrets.token_hex(4)))


def edit_mapping(mapping_id: int) -> ResponseReturnValue:
    """Open the row of a mapping."""
    if not wants_fragment():
        return go_to("credly.show", mapping=mapping_id)

    mapping = connection.get_mapping(get_state().session, mapping_id)
    return _edit_row(EditRow.changing(mapping)) if mapping else _gone()


def row(mapping_id: int) -> ResponseReturnValue:
    """Close the row of a mapping."""
    if not wants_fragment():
        return go_to("credly.show")

    mapping = connection.get_mapping(get_state().session, mapping_id)
    return _text_row(mapping) if mapping else _gone()


def add() -> ResponseReturnValue:
    """Save a new mapping."""
    form = MappingForm()
    valid = form.is_valid()
    return _save(form, None, valid)


def change(mapping_id: int) -> ResponseReturnValue:
    """Save a changed mapping."""
    form = MappingForm()
    valid = form.is_valid()
    return _save(form, mapping_id, valid)


def add_expired() -> ResponseReturnValue:
    """Show the row again with a fresh token."""
    return _again(MappingForm(), None, [EXPIRED])


def change_expired(mapping_id: int) -> ResponseReturnValue:
    """Show the row again with a fresh token."""
    return _again(MappingForm(), mapping_id, [EXPIRED])


def remove_mapping(mapping_id: int) -> ResponseReturnValue:
    """Remove a mapping, and offer to take that back."""
    Button().is_valid()
    removed = connection.remove_mapping(get_state(), mapping_id)

    if removed is None:
        return _gone()

    said = f"Mapping removed: {removed.course_title}. Badges already issued are kept."

    if not wants_fragment():
        say(said)
        return go_to("credly.show")

    return fragment(
        "credly/_mapping_removed.html",
        mapping=removed,
        said=said,
        mapping_form=MappingForm(formdata=None),
    )


def _save(form: MappingForm, mapping_id: int | None, valid: bool) -> Response:
    if not valid:
        errors = [text for texts in form.errors.values() for text in texts]
        return _again(form, mapping_id, errors)

    chosen = {key(each): each for each in _courses() or []}.get(form.course.data)

    if chosen is None:
        return _again(form, mapping_id, ["This course or learning path is gone."])

    state = get_state()

    try:
        if mapping_id is None:
            mapping = connection.add_mapping(
                state, chosen, form.template.data, undo=form.undo.data == "1"
            )
        else:
            mapping = connection.change_mapping(
                state, mapping_id, chosen, form.template.data
            )
    except connection.AlreadyMapped as e:
        error = f"This course or learning path is already mapped to {e.badge_name}."
        return _again(form, mapping_id, [error])
    except connection.UnknownTemplate:
        error = "This badge template is no longer active in Credly. Select another."
        return _again(form, mapping_id, [error])
    except (connection.NotConnected, connection.UnknownMapping):
        return _gone()

    said = f"Mapping saved: {mapping.course_title} to {mapping.template.name}."

    if wants_fragment():
        return _text_row(mapping, said)

    say(said)
    return go_to("credly.show")


def _again(form: MappingForm, mapping_id: int | None, errors: list[str]) -> Response:
    edited = EditRow(
        key=str(mapping_id or secrets.token_hex(4)),
        mapping_id=mapping_id,
        course=form.course.data or "",
        template=form.template.data or "",
        errors=tuple(errors),
    )

    if wants_fragment():
        return _edit_row(edited, 422)

    from .window import show_with

    return show_with([edited], 422)


def _edit_row(edited: EditRow, status: int = 200) -> Response:
    return fragment(
        "credly/_mapping_edit.html",
        status,
        row=edited,
        focus_new=True,
        mapping_form=MappingForm(formdata=None),
        **_choices(connection.list_mappings(get_state().session)),
    )


def _text_row(mapping: Mapping, said: str = "") -> Response:
    courses = _courses()
    return fragment(
        "credly/_mapping_row.html",
        mapping=mapping,
        said=said,
        focus=True,
        button=Button(),
        course_keys=None if courses is None else {key(each) for each in courses},
        kind_names=KIND_NAMES,
    )


def _gone() -> Response:
    """Answer for a mapping, or a whole integration, that was removed elsewhere."""
    say("This mapping is not there any more.")

    if connection.get(get_state().session) is None:
        say("Credly is not connected any more.")

    return go_to("credly.show")
