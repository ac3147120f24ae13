"""What the host tells us: courses, members, completions."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import enum
import logging
import typing as t
import unicodedata
import uuid

from . import interruption

logger = logging.getLogger("flask_credly")

Kind = t.Literal["course", "learning_path"]

KINDS: tuple[Kind, ...] = ("course", "learning_path")

FUTURE = dt.timedelta(minutes=5)
"""How far ahead a completion's time may be: another machine's clock, not a mistake."""


DEFAULT_TENANT = "default"
"""The one community of a host that has no ``@credly.tenant``."""


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

        object.__setattr__(self, "id", read_id(self.id, f"Course id {show(self.id)!r}"))
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
    tenant: str = DEFAULT_TENANT


_SPELLING = "\u200c\u200d\u180e"
"""Invisible, but Persian, the scripts of India and Mongolian spell with them."""


def clean(value: object, length: int) -> str:
    """Make text of the host fit for a row: any white space becomes one space, and what
    no script needs is dropped. What is missing or broken becomes empty: it is for the
    admin to see and not for the host's request.
    """
    if not isinstance(value, str):
        return ""

    # Before it is looked through: it may be of any length.
    value = " ".join(value[: 16 * length].split())

    if not value.isprintable():
        value = "".join(filter(_is_text, value))

    return value[:length].strip() if value.strip(_SPELLING + " ") else ""


def clean_email(value: object) -> str:
    """Make an address of the host's fit for a row. Nothing invisible belongs in it."""
    return "".join(char for char in clean(value, 320) if char.isprintable())


def _is_text(char: str) -> bool:
    if char in _SPELLING:
        return True

    # Private use and unassigned ones stay: names are written with characters that are
    # newer than this Python.
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs") and (
        ord(char) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(char) <= 0xFDEF
    )


def show(value: object, length: int = 200) -> str:
    """Get something that the host gave for a record or an error, on one line. What an
    object says of itself may name a person, or raise: it is shown by its type.
    """
    try:
        if isinstance(value, str):
            return clean(str.__str__(value), length)

        if isinstance(value, (type(None), bool, int, float, uuid.UUID, dt.date)):
            return clean(str(value), length)
    except Exception as e:
        return f"<{clean(type(e).__name__, 50)}>"

    return f"<{clean(type(value).__name__, 50)}>"


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
    completed_at: t.Any = None,
    tenant: str = DEFAULT_TENANT,
    raises: tuple[type[Exception], ...] = (),
    **unknown: t.Any,
) -> Completion:
    """Check what the host says of a completion. It is refused only where nothing can be
    made of it; what is a slip is put right, with one warning in each process.

    :param raises: Errors of the member's own properties that are not a slip.
    :raises ValueError: An id or the kind cannot be used.
    """
    if unknown:
        names = ", ".join(clean(name, 50) for name in sorted(unknown))
        _warn_once(
            "unknown", "course_completed does not take %s. It was left out.", names
        )

    kind = _plain(kind)

    if kind not in KINDS:
        raise ValueError(
            f"kind must be 'course' or 'learning_path', not {show(kind)!r}."
        )

    # Two of the text would be one member.
    if (given := id_of_member(member, raises)) in (None, "None"):
        raise ValueError(
            "member must be a flask_credly.Member, or have its fields, and its id is"
            " None. Is it of a row that has no id yet? Flush the session first."
        )

    member_id = read_id(given, "member.id")

    when = None if completed_at is None else read_time(completed_at)

    if when is None and completed_at is not None:
        _warn_once(
            "unusable",
            "completed_at is %s, and cannot be used: the present time is taken. Send an"
            " aware time, such as datetime.now(UTC).",
            show(completed_at),
        )

    return Completion(
        member=Member(
            id=member_id,
            email=clean_email(_field(member, "email", raises)),
            first_name=clean(_field(member, "first_name", raises), 255),
            last_name=clean(_field(member, "last_name", raises), 255),
        ),
        course_id=read_id(course_id, "course_id"),
        kind=t.cast(Kind, kind),
        completed_at=when or dt.datetime.now(dt.UTC),
        tenant=tenant,
    )


def id_of_member(member: t.Any, raises: tuple[type[Exception], ...] = ()) -> object:
    """Get the id of a :class:`Member`, or of what has the same fields: an object, or a
    mapping. ``None`` where there is none.

    :param raises: As for :func:`read_completion`.
    """
    return _field(member, "id", raises)


def _field(member: t.Any, name: str, raises: tuple[type[Exception], ...]) -> object:
    try:
        if isinstance(member, cabc.Mapping):
            return member.get(name)

        return getattr(member, name, None)
    except Exception as e:
        # It may ask the host's database, and take long.
        if isinstance(e, raises) or interruption.find(e):
            raise

        # Of a property of the host's. What it says may name the member.
        _warn_once("field", "member.%s cannot be read: %s.", name, type(e).__name__)
        return None


def read_time(value: t.Any) -> dt.datetime | None:
    """Read the time of a completion as the host gives it, also without a time zone, as
    a date or in ISO 8601. One that is ahead becomes the present time.

    :return: ``None`` if it cannot be read.
    """
    try:
        found = _to_datetime(value)

        if found.utcoffset() is None:
            _warn_once(
                "naive",
                "completed_at has no time zone: it is taken as UTC. Send an aware time,"
                " such as datetime.now(UTC).",
            )
            found = found.replace(tzinfo=dt.UTC)

        found = found.astimezone(dt.UTC)
    except Exception:  # also of a time zone of the host's
        return None

    # Of a column that was never set, it may be of the year 1.
    if found.year < 1970:
        return None

    now = dt.datetime.now(dt.UTC)

    if found > now + FUTURE:
        _warn_once(
            "future",
            "completed_at is in the future (%s): the present time is taken. Is it a"
            " local time that was marked as UTC?",
            found,
        )
        return now

    return found


def _to_datetime(value: t.Any) -> dt.datetime:
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value[:50].strip())

    if isinstance(value, dt.datetime):
        return value

    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)

    raise TypeError


def _plain(value: t.Any) -> t.Any:
    """Get the value of an enumeration, and a plain string or integer of a subclass."""
    if isinstance(value, enum.Enum):
        value = value.value

    if isinstance(value, str):
        return str.__str__(value)

    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)

    return value


_warned: set[str] = set()


def _warn_once(what: str, message: str, *args: object) -> None:
    # One for each: a busy host would fill its log with the same.
    if what not in _warned:
        _warned.add(what)
        logger.warning(message, *args, extra={"credly_event": "completion_adjusted"})


def read_id(value: t.Any, name: str) -> str:
    """Check an id of the host's. An integer or a UUID is taken as a string.

    :param name: What the error calls it.
    :raises ValueError: If it cannot be one.
    """
    value = _plain(value)

    if isinstance(value, uuid.UUID) or type(value) is int:
        try:
            value = str(value)
        except ValueError:  # of more digits than Python writes
            value = ""

    if (
        not isinstance(value, str)
        or not 0 < len(value) <= 191
        or "\x00" in value
        # Half of a pair, which no database takes.
        or any("\ud800" <= char <= "\udfff" for char in value)
    ):
        raise ValueError(f"{name} must be a string of 1 to 191 characters.")

    return value


def read_tenant(value: t.Any) -> str:
    """Check the name of a community.

    :raises ValueError: If it cannot be one.
    """
    tenant = read_id(value, "tenant")

    # MariaDB and MySQL would take it for the one without the blank.
    if tenant.endswith(" "):
        raise ValueError("tenant must not end in a blank.")

    return tenant
