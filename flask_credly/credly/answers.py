"""Reads answers of any shape: Credly's errors are barely documented, and whatever
stands between may answer in its place.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import email.utils
import json
import re
import typing as t

import requests

from .. import catalog
from ..errors import AlreadyHeld
from ..errors import InTrouble
from ..errors import OutcomeUnknown
from ..errors import RateLimited
from ..errors import Refused
from ..errors import Unauthorized
from ..errors import Unavailable
from .masking import mask

DETAIL_LENGTH = 300
"""Characters of Credly's own words that are kept."""

_SAYS_NO = frozenset(range(400, 500)) - {408, 425}

FOREIGN = "The response did not come from Credly. Check for a proxy or firewall."

DEFAULT_RETRY_AFTER = 60.0
"""Seconds to pause after a 429 that does not say. Credly publishes no limits."""


def clean(text: str, length: int = DETAIL_LENGTH) -> str:
    """Make foreign text fit for one line of a log: no control characters, no line
    breaks, not longer than ``length``.
    """
    text = catalog.clean(text, length + 1)
    return text if len(text) <= length else text[: length - 1] + "…"


def read_json(response: requests.Response) -> t.Any:
    """Read the body as JSON. ``None`` if it is not."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def data_of(body: t.Any) -> t.Any:
    """Get ``data`` from Credly's envelope. ``None`` if there is none."""
    return body.get("data") if isinstance(body, dict) else None


def is_uuid(value: t.Any) -> t.TypeGuard[str]:
    """Whether the value is a UUID in its usual written form."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


# By itself, and not by uuid: it is asked three times for each of a million badges.
_UUID = re.compile("[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def is_foreign(response: requests.Response) -> bool:
    """Whether something in Credly's place seems to have answered: a proxy, a firewall,
    the login page of a network. Such an answer says nothing about what was asked.

    Credly's errors are JSON, in its envelope or as OAuth has them. A refused token may
    also be told in the header alone.
    """
    body = read_json(response)

    if isinstance(body, dict) and ("data" in body or "errors" in body):
        return False

    if isinstance(body, dict) and any(
        isinstance(body.get(key), str) for key in ("error", "error_description")
    ):
        return False

    challenge = response.headers.get("WWW-Authenticate", "")
    return bool(response.content) or not re.match(r"\s*Bearer\b", challenge, re.I)


def explain(response: requests.Response, *, hide: cabc.Iterable[str] = ()) -> str:
    """Find the words for an error in an answer of any shape.

    :param hide: What was sent and may not be shown: the answer may repeat it.
    """
    body = read_json(response)
    found = _find_message(body) if isinstance(body, dict) else None
    status = f"HTTP {response.status_code}"

    # Nobody doubts that a 429 means a limit, whosever it is.
    if response.status_code in _SAYS_NO - {429} and is_foreign(response):
        return f"{status}. {FOREIGN}"

    if not found:
        return f"Credly answered {status}."

    # Before it is cut: half of a secret would not be known again.
    return f"{clean(mask(found, hide))} ({status})"


def _index(response: requests.Response) -> int | None:
    # As clients in production read it; Credly's page says nothing of it.
    data = data_of(read_json(response))
    index = data.get("error_index") if isinstance(data, dict) else None
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def _says_duplicate(response: requests.Response) -> bool:
    # Wherever it says so: a message may be about several errors and name none.
    text = json.dumps(read_json(response), ensure_ascii=False)
    return "already has this badge" in " ".join(text.lower().split())


def _find_message(body: dict[str, t.Any]) -> str | None:
    data = body.get("data")

    if isinstance(data, dict):
        if isinstance(data.get("message"), str) and data["message"].strip():
            return t.cast(str, data["message"])

        if texts := list(_field_messages(data.get("errors"))):
            return "; ".join(texts)

    for key in ("error_description", "message", "error"):
        if isinstance(body.get(key), str) and body[key].strip():
            return t.cast(str, body[key])

    return None


def _field_messages(errors: t.Any) -> cabc.Iterator[str]:
    for error in errors if isinstance(errors, list) else []:
        if not isinstance(error, dict):
            continue

        messages = error.get("messages")
        label = error.get("attribute_label") or error.get("attribute")

        for text in messages if isinstance(messages, list) else [messages]:
            if isinstance(text, str):
                yield f"{label}: {text}" if isinstance(label, str) else text


def retry_after(
    response: requests.Response, default: float = DEFAULT_RETRY_AFTER
) -> float:
    """Read ``Retry-After``, seconds or a date, clamped to 1 second to 1 hour.

    :param default: Where it does not say.
    """
    value = response.headers.get("Retry-After", "").strip()

    if re.fullmatch(r"-?\d{1,12}(\.\d*)?", value):
        seconds = float(value)
    else:
        try:
            until = email.utils.parsedate_to_datetime(value)

            if until.tzinfo is None:
                until = until.replace(tzinfo=dt.UTC)

            seconds = (until - dt.datetime.now(dt.UTC)).total_seconds()
        except (ValueError, OverflowError):
            return default

    return min(max(seconds, 1.0), 3600.0)


def raise_for_status(
    response: requests.Response, *, hide: cabc.Iterable[str] = ()
) -> None:
    """Turn every answer but 200 and 201 into the error that says what to do.

    :param hide: What was sent and may not be shown.
    :raises Unauthorized: 401.
    :raises RateLimited: 429.
    :raises Unavailable: 503 to a question.
    :raises InTrouble: 503 to anything else.
    :raises AlreadyHeld: 409 or 422 that says the member has this badge.
    :raises Refused: Any other 4xx in Credly's own words.
    :raises OutcomeUnknown: Everything else: 5xx, a redirect, a strange 2xx, a page of
        something in between.
    """
    status = response.status_code

    if status in (200, 201):
        return

    detail = explain(response, hide=hide)
    foreign = status < 500 and is_foreign(response)

    if status == 401:
        raise Unauthorized(detail, status=status, foreign=foreign)

    if status == 429:
        raise RateLimited(detail, retry_after=retry_after(response))

    if status == 503:
        wait = retry_after(response, 0)

        if response.request.method == "GET":
            raise Unavailable(detail, status=status, retry_after=wait)

        raise InTrouble(detail, retry_after=wait)

    if status in (409, 422) and not foreign and _says_duplicate(response):
        raise AlreadyHeld(detail, status=status, index=_index(response))

    if status in _SAYS_NO and not foreign:
        raise Refused(detail, status=status, index=_index(response))

    raise OutcomeUnknown(detail, status=status, foreign=foreign)
