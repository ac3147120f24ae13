"""What the host tells us: courses, members, completions."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

Kind = t.Literal["course", "learning_path"]

KINDS: tuple[Kind, ...] = ("course", "learning_path")


@dataclasses.dataclass(frozen=True)
class Course:
    """A course or learning path that can be mapped to a badge.

    :param id: The host's own id, stable for life. At most 191 characters.
    :param title: What the admin reads in the mapping rows.
    :param kind: ``"course"`` or ``"learning_path"``.
    :raises ValueError: If the kind is unknown, or the id is empty or too long.
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

        if not isinstance(self.id, str) or not 0 < len(self.id) <= 191:
            raise ValueError(
                f"Course id {self.id!r} must be a string of 1 to 191 characters."
            )


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

    return "".join(char for char in value if char.isprintable()).strip()[:length]
