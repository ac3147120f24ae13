"""What a person or another process does at the simulator's own addresses: look at a
badge, read the record, and let it fail.
"""

from __future__ import annotations

import collections.abc as cabc
import copy
import dataclasses
import html
import json

from .organization import Organization
from .rules import Row
from .serving import Call
from .serving import json_reply
from .serving import Reply

_CONTROL = "/_simulator/"
_BADGES = "/badges/"


def answer(organization: Organization, call: Call) -> Reply | None:
    """Answer a request to one of these addresses. ``None`` to any other."""
    if call.path.startswith(_CONTROL):
        return _control(organization, call)

    if call.path.startswith(_BADGES):
        return _show_badge(organization, call.path.removeprefix(_BADGES))

    return None


def _control(organization: Organization, call: Call) -> Reply:
    command = call.path.removeprefix(_CONTROL)

    if (call.method, command) == ("GET", "record"):
        return json_reply(200, _report(organization))

    commands: dict[str, cabc.Callable[..., None]] = {
        "fail": organization.fail,
        "clear": organization.clear_faults,
        "revoke": organization.revoke_client,
        "restore": organization.restore_client,
        "reset": organization.reset,
        "rate-limit": organization.rate_limit,
    }

    if call.method != "POST" or command not in commands:
        return json_reply(404, {"error": "Unknown control endpoint."})

    try:
        commands[command](**json.loads(call.body or b"{}"))
    except (TypeError, ValueError) as error:
        return json_reply(400, {"error": str(error)})

    return json_reply(200, {"ok": True})


def _report(organization: Organization) -> Row:
    with organization.lock:
        return {
            "badges": organization.badges,
            "received": [dataclasses.asdict(one) for one in organization.received],
            "problems": list(organization.problems),
            "templates": copy.deepcopy(list(organization.book.templates.values())),
            "credentials": {
                "organization_id": organization.organization_id,
                "client_id": organization.client_id,
                "client_secret": organization.client_secret,
            },
        }


def _show_badge(organization: Organization, badge_id: str) -> Reply:
    """Show a badge to a browser, as Credly's site does."""
    for badge in organization.badges:
        if badge["id"] == badge_id:
            name = html.escape(badge["badge_template"]["name"])
            first, last = badge["issued_to_first_name"], badge["issued_to_last_name"]
            person = html.escape(f"{first} {last}")
            page = (
                '<!doctype html><html lang="en"><meta charset="utf-8">'
                f"<title>{name}</title><h1>{name}</h1><p>Issued to {person} by the"
                " simulator that stands in for Credly.</p></html>"
            )
            content = {"Content-Type": "text/html; charset=utf-8"}
            return Reply(200, page.encode(), content)

    return json_reply(404, {"error": "There is no such badge."})
