"""What the requests that write do: issue a badge, replace one, revoke one."""

from __future__ import annotations

import collections.abc as cabc
import json
import typing as t
import uuid

from . import orders
from .entry import Entry
from .organization import Organization
from .record import Kind
from .rules import Refusal
from .rules import Row
from .serving import Call
from .serving import data_reply
from .serving import Reply

Found = cabc.Mapping[str, str]

_BECAME = {"revoke": "revoked", "replace": "replaced"}


def issue(organization: Organization, call: Call, **found: str) -> Reply:
    return data_reply(_write(organization, call, "issue", found), 201)


def issue_many(organization: Organization, call: Call, **found: str) -> Reply:
    if organization.batch_status != 201:
        raise Refusal(organization.batch_status, "Not found")

    return _answer_many(organization, _write(organization, call, "batch", found))


def _answer_many(organization: Organization, rows: list[Row]) -> Reply:
    answer = organization.batch_answer

    if answer == "no list":
        return data_reply({"count": len(rows)}, 201)

    if answer == "other order":
        rows = rows[::-1]
    elif answer == "fewer":
        rows = rows[:-1]
    elif answer == "more":
        strange = {"id": str(uuid.uuid4()), "issuer_earner_id": "a stranger"}
        rows = [rows[0] | strange, *rows]
    elif answer == "no names":
        rows = [row | {"issuer_earner_id": None} for row in rows]

    return data_reply(rows, 201)


def replace(organization: Organization, call: Call, **found: str) -> Reply:
    row = _write(organization, call, "replace", found)
    return data_reply(row, organization.replace_status)


def revoke(organization: Organization, call: Call, **found: str) -> Reply:
    return data_reply(_write(organization, call, "revoke", found))


def _write(organization: Organization, call: Call, kind: Kind, found: Found) -> t.Any:
    last = find(organization, found["id"]).history[-1] if "id" in found else None
    body = _require_json(call)

    for name in orders.unknown_fields(body, kind):
        organization.record.note(call, f"unknown field {name!r}")

    if last and (last.state, last.by) == (_BECAME[kind], "request"):
        text = f"a badge was {last.state} that was so by a request"
        organization.record.note(call, text)

    return write(organization, kind, found, body, organization.clock())


def write(
    organization: Organization, kind: Kind, found: Found, body: object, at: float
) -> t.Any:
    """Write what a request asks for. Get the badge that it is answered with, or the
    badges.

    :param found: The parts of the path that was called.
    :param body: The decoded body.
    :param at: When it is written.
    :raises Refusal: If Credly would not do it.
    """
    if kind == "issue":
        return organization.book.issue(body, at, "request")

    if kind == "batch":
        if not (bodies := orders.read_batch(body)):
            raise Refusal(400, "The request body must have badges.")

        return organization.book.issue_many(bodies, at, "request")

    if kind == "replace":
        find(organization, found["id"])
        return organization.book.replace(found["id"], body, at, "request")

    return _revoke(organization, found["id"], body, at)


def _revoke(organization: Organization, badge_id: str, body: object, at: float) -> Row:
    entry = find(organization, badge_id)
    reason, told = orders.read_revocation(body)
    state = entry.row["state"]
    because = "Validation failed: This badge cannot be revoked because it"

    if entry.replaced:
        raise Refusal(422, f"{because} has been replaced.")

    if state in organization.states_not_revoked:
        raise Refusal(422, f"{because} is {state}.")

    if state != "revoked":
        organization.book.revoke(badge_id, at, "request", reason=reason, told=told)

    return entry.row


def what_is_written(
    organization: Organization, kind: Kind, found: Found, body: object
) -> list[str]:
    """Get all that a request would write, in words."""
    if kind in _BECAME:
        return [f"badge {found['id']}"]

    bodies = orders.read_batch(body) if kind == "batch" else [body]

    if kind not in ("issue", "batch"):
        return []

    subjects = map(orders.read_subject, bodies)
    return [_in_words(organization, *each) for each in subjects if each is not None]


def _in_words(organization: Organization, template_id: str, who: str) -> str:
    ended = organization.book.count_ended(template_id, who)
    again = f", who had {ended} before" if ended else ""
    return f"template {template_id} and {who}{again}"


def find(organization: Organization, badge_id: str) -> Entry:
    """Get a badge.

    :raises Refusal: If there is none with this id.
    """
    try:
        return organization.book.find(badge_id)
    except KeyError:
        raise Refusal(404, "Badge not found") from None


def _require_json(call: Call) -> object:
    try:
        body: object = json.loads(call.body)
    except ValueError:
        raise Refusal(400, "The request body is not valid JSON.") from None

    if b"\\u0000" in call.body:
        raise Refusal(400, "The request body contains a null byte.")

    return body
