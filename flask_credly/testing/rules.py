"""What Credly refuses, and in which words. Keeps no state."""

from __future__ import annotations

import calendar
import collections.abc as cabc
import datetime as dt
import re
import typing as t

Row = dict[str, t.Any]

STATES = ("active", "archived", "draft")
SCOPES = (
    "authorization_tokens",
    "badge_templates",
    "events",
    "invitations",
    "issued_badges",
    "memberships",
    "recommendations",
    "workforce",
)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:\.\d{1,6})?) ?(Z|[+-]\d\d:?\d\d)"
)


class Refusal(Exception):
    """An answer that is not a success.

    :param status: The HTTP status.
    :param message: The sentence in ``data.message``.
    :param errors: Pairs of attribute and message, for ``data.errors``.
    :param metadata: What ``metadata`` is, ``None`` if there is none.
    :param error_index: Which of several badges it is about, from 0.
    :param headers: Headers to send along.
    :param body: The body and its content type, if it is not the error envelope.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        errors: cabc.Sequence[tuple[str, str]] = (),
        metadata: Row | None = None,
        error_index: int | None = None,
        headers: cabc.Mapping[str, str] | None = None,
        body: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.metadata = metadata
        self.error_index: int | None = error_index
        self.headers: dict[str, str] = dict(headers or {})
        self.body = body

    def envelope(self, shape: str) -> Row:
        """Get the JSON body.

        :param shape: ``"message"`` leaves ``errors`` out; ``"list"`` and
            ``"string"`` say what its ``messages`` are.
        """
        data: Row = {"message": self.message}

        if self.errors and shape != "message":
            data["errors"] = [
                {
                    "attribute": attribute,
                    "attribute_label": label(attribute),
                    "messages": [text] if shape == "list" else text,
                }
                for attribute, text in self.errors
            ]

        if self.error_index is not None:
            data["error_index"] = self.error_index

        return {"data": data, "metadata": self.metadata}


def is_uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


def same_email(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def stamp(moment: dt.datetime) -> str:
    """Write a time as Credly does: UTC, milliseconds, ``Z``."""
    text = moment.astimezone(dt.UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def read_moment(text: str) -> dt.datetime | None:
    """Read a time with an explicit offset. ``None`` if it is anything else."""
    if (match := _MOMENT.fullmatch(text)) is None:
        return None

    day, time, offset = match.groups()

    try:
        return dt.datetime.fromisoformat(f"{day}T{time}{offset}")
    except ValueError:
        return None


def read_expiry(value: object) -> dt.datetime | None:
    """Read ``expires_at``, a time or a date. ``None`` if there is no such time."""
    if not isinstance(value, str):
        return None

    if re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        value += "T00:00:00Z"

    return read_moment(value)


def default_expiry(template: Row, issued_at: dt.datetime) -> dt.datetime | None:
    """Get when a badge of a template expires for which nothing else is said."""
    value = template["default_expires_at"]

    if template["default_expires_at_type"] != "months":
        return read_expiry(value)

    start = issued_at.astimezone(dt.UTC)
    years, month = divmod(start.month - 1 + int(value), 12)
    year, month = start.year + years, month + 1
    day = min(start.day, calendar.monthrange(year, month)[1])
    return start.replace(year=year, month=month, day=day)


def label(attribute: str) -> str:
    """Get the words for a field, as errors begin with."""
    return attribute.replace("_", " ").capitalize()
