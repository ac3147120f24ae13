"""What the host tells us: courses, members, completions."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import enum
import ipaddress
import itertools
import logging
import re
import socket
import typing as t
import unicodedata
import urllib.parse
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

    :param id: Your own id, which must never change. At most 191 characters. An integer
        is converted to a string.
    :param title: The title that admins see.
    :param kind: ``"course"`` or ``"learning_path"``, or an enumeration of these.
    :raises ValueError: If the kind is unknown, the title is not a string, or the id is
        not valid.
    """

    id: str
    title: str
    kind: Kind = "course"

    def __post_init__(self) -> None:
        kind = _plain(self.kind)

        if kind not in KINDS:
            raise ValueError(
                f"Course {self.id!r} has kind {self.kind!r}. It must be 'course'"
                " or 'learning_path'."
            )

        if not isinstance(self.title, str):
            raise ValueError(
                f"Course {self.id!r} has title {self.title!r}. It must be a string."
            )

        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "id", read_id(self.id, f"Course id {show(self.id)!r}"))
        object.__setattr__(self, "title", clean(self.title, 500) or self.id)


@dataclasses.dataclass(frozen=True)
class Member:
    """A member who completed a course, with the names to print on the badge.

    The constructor checks nothing, so that a missing name or address never breaks your
    request. The error log reports it instead.

    :param id: Your own id, which must never change. At most 191 characters.
    :param email: The address to which Credly sends the badge.
    :param first_name: First name as it appears on the badge.
    :param last_name: Last name as it appears on the badge.

    The other fields are optional and have at most 255 characters. Values that cannot be
    used are left out:

    :param middle_name: Middle name as it appears on the badge.
    :param locale: The language in which Credly writes to the member, such as ``"fr"``
        or ``"pt-BR"``. It is used if the mapping chooses the member's own language.
    :param country: The country's full name.
    :param state_or_province: The state or province of that country.
    """

    id: str
    email: str
    first_name: str
    last_name: str
    middle_name: str | None = dataclasses.field(default=None, kw_only=True)
    locale: str | None = dataclasses.field(default=None, kw_only=True)
    country: str | None = dataclasses.field(default=None, kw_only=True)
    state_or_province: str | None = dataclasses.field(default=None, kw_only=True)


@dataclasses.dataclass(frozen=True)
class UrlEvidence:
    """A web page that shows how a badge was earned. It is public on the badge's page.

    The constructor checks nothing. Evidence that cannot be used is left out and
    reported in the error log; the badge is issued without it.

    :param name: The text of the link. At most 255 characters.
    :param url: The page's address: ``https``, ASCII, at most 2,000 characters, without
        a user name, and not a private address.
    :param description: What the page shows. Cut off after 1,000 characters.
    """

    name: str
    url: str
    description: str = ""


@dataclasses.dataclass(frozen=True)
class IdEvidence:
    """The number or name of something that shows how a badge was earned, such as a
    certificate. It is public on the badge's page.

    The constructor checks nothing, as with :class:`UrlEvidence`.

    :param title: What it is. At most 255 characters.
    :param id: The number or name. At most 255 characters.
    :param description: More about it. Cut off after 1,000 characters.
    """

    title: str
    id: str = ""
    description: str = ""


@dataclasses.dataclass(frozen=True)
class PastCompletion:
    """A completion with evidence or an id. ``@credly.past_completions`` may yield it
    instead of a pair of a member and a time.

    :param member: Who completed the course.
    :param completed_at: An aware time.
    :param evidence: As in :data:`.course_completed`.
    :param completion_id: As in :data:`.course_completed`.
    """

    member: Member
    completed_at: dt.datetime
    evidence: cabc.Sequence[UrlEvidence | IdEvidence] = ()
    completion_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """One member's completion of one course, checked and ready for the ledger.

    :param extras: What else is known, fit for JSON: see :func:`read_extras`.
    :param completion_id: The host's own id of it.
    """

    member: Member
    course_id: str
    kind: Kind
    completed_at: dt.datetime
    tenant: str = DEFAULT_TENANT
    extras: dict[str, t.Any] | None = None
    completion_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Withdrawal:
    """A completion that does not count any more, checked and ready for the ledger."""

    member_id: str
    course_id: str
    kind: Kind
    withdrawn_at: dt.datetime
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
    text = clean(value, 320)
    return text if text.isprintable() else "".join(filter(str.isprintable, text))


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

    every = list(found)

    for each in every:
        if not isinstance(each, Course):
            raise TypeError(f"{wrong} of {type(each).__name__}.")

    # There may be ten thousand, and seldom two of one id.
    if len({each.id for each in every}) == len(every):
        return every

    courses: dict[tuple[Kind, str], Course] = {}

    for each in every:
        courses.setdefault((each.kind, each.id), each)

    return list(courses.values())


def read_completion(
    *,
    member: t.Any = None,
    course_id: t.Any = None,
    kind: t.Any = "course",
    completed_at: t.Any = None,
    evidence: t.Any = None,
    completion_id: t.Any = None,
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
            "unknown",
            "course_completed does not accept %s. The value was ignored.",
            names,
        )

    kind = _read_kind(kind)

    # Two of the text would be one member.
    if (given := id_of_member(member, raises)) in (None, "None"):
        raise ValueError(
            "member.id is None. member must be a flask_credly.Member or have the"
            " same fields. If it is a new database row, flush the session first."
        )

    member_id = read_id(given, "member.id")

    when = None if completed_at is None else read_time(completed_at)

    if when is None and completed_at is not None:
        _warn_once(
            "unusable",
            "completed_at is not valid (%s). The current time was used. Send an"
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
        kind=kind,
        completed_at=when or dt.datetime.now(dt.UTC),
        tenant=tenant,
        extras=read_extras(member, evidence, raises),
        completion_id=_read_completion_id(completion_id),
    )


def read_withdrawal(
    *,
    member_id: t.Any = None,
    course_id: t.Any = None,
    kind: t.Any = "course",
    withdrawn_at: t.Any = None,
    tenant: str = DEFAULT_TENANT,
    **unknown: t.Any,
) -> Withdrawal:
    """Check what the host says of a completion that was withdrawn.

    :raises ValueError: An id, the kind or the time cannot be used: that of now could
        take a badge away which was earned since.
    """
    if unknown:
        names = ", ".join(clean(name, 50) for name in sorted(unknown))
        _warn_once(
            "unknown of withdrawn",
            "completion_withdrawn does not accept %s. The value was ignored.",
            names,
        )

    when = None if withdrawn_at is None else read_time(withdrawn_at, "withdrawn_at")

    if when is None and withdrawn_at is not None:
        raise ValueError("withdrawn_at must be an aware time or omitted.")

    return Withdrawal(
        member_id=read_id(member_id, "member_id"),
        course_id=read_id(course_id, "course_id"),
        kind=_read_kind(kind),
        withdrawn_at=when or dt.datetime.now(dt.UTC),
        tenant=tenant,
    )


def _read_kind(value: t.Any) -> Kind:
    kind = _plain(value)

    if kind not in KINDS:
        raise ValueError(
            f"kind must be 'course' or 'learning_path', not {show(kind)!r}."
        )

    return t.cast(Kind, kind)


def _read_completion_id(value: t.Any) -> str | None:
    if value is None:
        return None

    try:
        # MariaDB and MySQL would take it for the one without the blank.
        return read_id(value, "completion_id").rstrip(" ") or None
    except ValueError as e:
        _warn_once("completion_id", "%s The value was ignored.", e)
        return None


DETAILS = ("middle_name", "locale", "country", "state_or_province")
"""What a host may say of a member besides the address and names."""

MAX_EVIDENCE = 5


def read_extras(
    member: t.Any,
    evidence: t.Any = None,
    raises: tuple[type[Exception], ...] = (),
) -> dict[str, t.Any] | None:
    """Gather what the host says besides what each badge needs, fit for JSON: what is
    in :data:`DETAILS`, the ``evidence`` as Credly takes it, and what was ``left_out``
    of that, by number and reason. ``None``: it says nothing.

    :param member: The details are those of a :class:`Member` or of a mapping. Another
        object may have fields of these names that mean something else.
    """
    extras: dict[str, t.Any] = {}

    if isinstance(member, (Member, cabc.Mapping)):
        extras |= read_details(member, raises)

    if evidence is not None:
        found, left_out = _read_evidence(evidence, raises)
        extras |= {"evidence": found} if found else {}
        extras |= {"left_out": left_out} if left_out else {}

    return extras or None


def read_details(
    member: t.Any, raises: tuple[type[Exception], ...] = ()
) -> dict[str, str]:
    """Read what is in :data:`DETAILS`, without what is missing or cannot be used."""
    if type(member) is Member:
        given = {name: getattr(member, name) for name in DETAILS}
    else:
        given = {name: _field(member, name, raises) for name in DETAILS}

    return {
        name: text
        for name, value in given.items()
        if value is not None and (text := _short(value, 255))
    }


def _short(value: object, length: int) -> str:
    """Make text of the host fit for a row, or empty where it is too long: what was cut
    off would be something else.
    """
    text = clean(value, length + 1)
    return text if len(text) <= length else ""


WHY_LEFT_OUT = {
    "many": f"only {MAX_EVIDENCE} are sent",
    "type": "it is not a UrlEvidence or an IdEvidence",
    "name": "its name or title is missing or too long",
    "id": "its id is too long",
    "url": "its address does not begin with https:// or is not ASCII",
    "long": "its address is longer than 2,000 characters",
    "user": "its address contains a user name",
    "host": "its address is private",
}
"""Why evidence is not sent, by what :func:`read_extras` calls it."""


def _read_evidence(
    evidence: t.Any, raises: tuple[type[Exception], ...]
) -> tuple[list[dict[str, str]], list[tuple[int, str]]]:
    found: list[dict[str, str]] = []
    left_out: list[tuple[int, str]] = []
    given: list[t.Any] = [evidence]

    try:
        if isinstance(evidence, cabc.Iterable) and not isinstance(evidence, str):
            given = list(itertools.islice(evidence, MAX_EVIDENCE + 1))
    except Exception as e:
        # It may ask the host's database.
        if isinstance(e, raises) or interruption.find(e):
            raise

    for number, each in enumerate(given, 1):
        if number > MAX_EVIDENCE:
            left_out.append((number, "many"))
            break

        read = _read_one(each)

        if isinstance(read, str):
            left_out.append((number, read))
        else:
            found.append({name: text for name, text in read.items() if text})

    return found, left_out


def _read_one(evidence: object) -> dict[str, str] | str:
    """Read one piece of evidence as Credly takes it, or say what is wrong with it."""
    if isinstance(evidence, UrlEvidence):
        name, url = _short(evidence.name, 255), evidence.url
        described = {"description": clean(evidence.description, 1000)}

        if not name:
            return "name"

        if wrong := _whats_wrong(url):
            return wrong

        return {"type": "UrlEvidence", "name": name, "value": url} | described

    if isinstance(evidence, IdEvidence):
        title, id_ = _short(evidence.title, 255), _short(evidence.id, 255)

        if not title:
            return "name"

        if evidence.id and not id_:
            return "id"

        described = {"description": clean(evidence.description, 1000)}
        return {"type": "IdEvidence", "title": title, "id": id_} | described

    return "type"


def _whats_wrong(url: object) -> str | None:
    """Say why an address cannot stand on a public page. ``None``: it can."""
    if not isinstance(url, str):
        return "url"

    if len(url) > 2000:
        return "long"

    # Without what one reader of addresses takes for its host and another does not.
    if not re.fullmatch(r"https://[!#-;=?-\[\]_a-z~]+", url, re.I):
        return "url"

    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return "url"

    if "@" in parts.netloc:
        return "user"

    if not host:
        return "url"

    return None if _is_public(host) else "host"


def _is_public(host: str) -> bool:
    """Whether a host may be one of the internet's, as far as its name says."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address

    try:
        # Also "127.1", which browsers know.
        ip = ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            return True

    return (getattr(ip, "ipv4_mapped", None) or ip).is_global


def id_of_member(member: t.Any, raises: tuple[type[Exception], ...] = ()) -> object:
    """Get the id of a :class:`Member`, or of what has the same fields: an object, or a
    mapping. ``None`` where there is none.

    :param raises: As for :func:`read_completion`.
    """
    return _field(member, "id", raises)


def _field(member: t.Any, name: str, raises: tuple[type[Exception], ...]) -> object:
    try:
        # First what it is nearly always: the question for a mapping takes longer.
        if not isinstance(member, Member) and isinstance(member, cabc.Mapping):
            return member.get(name)

        return getattr(member, name, None)
    except Exception as e:
        # It may ask the host's database, and take long.
        if isinstance(e, raises) or interruption.find(e):
            raise

        # Of a property of the host's. What it says may name the member.
        _warn_once("field", "member.%s could not be read: %s.", name, type(e).__name__)
        return None


def read_time(value: t.Any, name: str = "completed_at") -> dt.datetime | None:
    """Read a time as the host gives it, also without a time zone, as a date or in ISO
    8601. One that is ahead becomes the present time.

    :param name: What a warning calls it.
    :return: ``None`` if it cannot be read.
    """
    try:
        found = _to_datetime(value)

        if found.utcoffset() is None:
            _warn_once(
                f"naive {name}",
                "%s has no time zone. UTC was assumed. Send an aware time, such"
                " as datetime.now(UTC).",
                name,
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
            f"future {name}",
            "%s is in the future (%s). The current time was used. Check whether a"
            " local time was marked as UTC.",
            name,
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
        or not value.isascii()
        and any("\ud800" <= char <= "\udfff" for char in value)
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
        raise ValueError("tenant must not end with a space.")

    return tenant
