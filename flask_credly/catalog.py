"""What the host tells us: courses, members, completions."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t
import uuid

Kind = t.Literal["course", "learning_path"]

KINDS: tuple[Kind, ...] = ("course", "learning_path")

FUTURE = dt.timedelta(minutes=5)
"""How far ahead a completion's time may be: another machine's clock, not a mistake."""


@dataclasses.dataclass(frozen=True)
class Course:
    """A course or learning path that can be mapped to a badge.

    :param id: The host's own id, stable for life. At most 191 characters.
    :param title: What the admin reads in the mapping rows.
    :param kind: ``"course"`` or ``"learning_path"``.
    :raises ValueError: If the kind is unknown, the title is no string, or the id cannot
        be one. An integer id is taken as a string.
    """

    id: str
    title: str
    kind: Kind = "course"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"Course {self.id!r} has kind {self.kind!r};"
                " it must be 'course' or 'learning_path'."
            )

        if not isinstance(self.title, str):
            raise ValueError(
                f"Course {self.id!r} has title {self.title!r}; it must be a string."
            )

        object.__setattr__(self, "id", read_id(self.id, f"Course id {self.id!r}"))
        object.__setattr__(self, "title", clean(self.title, 500) or self.id)


@dataclasses.dataclass(frozen=True)
class Member:
    """Who completed a course, as the badge shall name them.

    Nothing is checked here: a member with a missing name or address must not
    break the host's request. It is reported in the error log instead.

    :param id: The host's own id, stable for life. At most 191 characters.
    :param email: Where Credly sends the badge.
    :param first_name: First name as it appears on the badge.
    :param last_name: Last name as it appears on the badge.
    """

    id: str
    email: str
    first_name: str
    last_name: str


@dataclasses.dataclass(frozen=True)
class Completion:
    """One member's completion of one course, checked and ready for the ledger."""

    member: Member
    course_id: str
    kind: Kind
    completed_at: dt.datetime


def clean(value: object, length: int) -> str:
    """Make text of the host fit for a row. What is missing or broken becomes empty: it
    is for the admin to see and not for the host's request.
    """
    if not isinstance(value, str):
        return ""

    if not value.isprintable():
        value = "".join(char for char in value if char.isprintable())

    return value.strip()[:length]


def read_courses(found: t.Any) -> list[Course]:
    """Check what the host says can be mapped. What it names twice counts once.

    :raises TypeError: It is something else than courses.
    """
    wrong = (
        "@credly.courses must return a list of flask_credly.Course objects, such as"
        " [Course(id='py-101', title='Python 101')], not"
    )

    if not isinstance(found, cabc.Iterable):
        raise TypeError(f"{wrong} {type(found).__name__}.")

    courses: dict[tuple[Kind, str], Course] = {}

    for each in found:
        if not isinstance(each, Course):
            raise TypeError(f"{wrong} of {type(each).__name__}.")

        courses.setdefault((each.kind, each.id), each)

    return list(courses.values())


def read_completion(
    *,
    member: t.Any = None,
    course_id: t.Any = None,
    kind: t.Any = "course",
    completed_at: dt.datetime | None = None,
    **unknown: t.Any,
) -> Completion:
    """Check what the host says of a completion.

    :raises TypeError: An argument is missing, unknown or of the wrong type.
    :raises ValueError: A value cannot be used.
    """
    if unknown:
        names = ", ".join(clean(name, 50) for name in sorted(unknown))
        raise TypeError(f"course_completed does not take {names}.")

    if not isinstance(member, Member):
        raise TypeError("member must be a flask_credly.Member.")

    if kind not in KINDS:
        raise ValueError(f"kind must be 'course' or 'learning_path', not {kind!r}.")

    now = dt.datetime.now(dt.UTC)
    completed_at = now if completed_at is None else completed_at

    if not isinstance(completed_at, dt.datetime) or completed_at.tzinfo is None:
        raise ValueError(
            "completed_at must be an aware time, such as datetime.now(UTC), not"
            f" {completed_at!r}."
        )

    if completed_at > now + FUTURE:
        raise ValueError(f"completed_at is in the future: {completed_at}.")

    member_id = read_id(member.id, "member.id")

    # Two of them would be one member.
    if member_id == "None":
        raise ValueError(
            "member.id is 'None': of a row that has no id yet? Flush the session first."
        )

    return Completion(
        member=Member(
            id=member_id,
            email=clean(member.email, 320),
            first_name=clean(member.first_name, 255),
            last_name=clean(member.last_name, 255),
        ),
        course_id=read_id(course_id, "course_id"),
        kind=t.cast(Kind, kind),
        completed_at=completed_at,
    )


def read_id(value: t.Any, name: str) -> str:
    """Check an id of the host's.

    :param name: What the error calls it.
    :raises ValueError: If it cannot be one.
    """
    # An integer key is the commonest slip, and harmless.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)

    if isinstance(value, uuid.UUID):
        raise ValueError(f"{name} must be a string, not a UUID: write str(…).")

    if not isinstance(value, str) or not 0 < len(value) <= 191 or "\x00" in value:
        raise ValueError(f"{name} must be a string of 1 to 191 characters.")

    return value
