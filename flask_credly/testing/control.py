"""What a person or another process does at the simulator's own addresses: look at a
badge, read the record, and let it fail.
"""

from __future__ import annotations

import copy
import dataclasses
import html
import json

from . import rules
from .organization import Organization
from .rules import Refusal
from .rules import Row
from .serving import Call
from .serving import json_reply
from .serving import Reply

_CONTROL = "/_simulator/"
_BADGES = "/badges/"
COMMANDS = {
    "fail": "fail",
    "clear": "clear_faults",
    "revoke": "revoke_client",
    "restore": "restore_client",
    "reset": "reset",
    "rate-limit": "rate_limit",
    "accept": "accept",
    "reject": "reject",
    "make-public": "make_public",
    "make-private": "make_private",
    "revoke-badge": "revoke_badge",
    "replace-badge": "replace_badge",
    "change-template": "change_template",
}


def answer(organizations: list[Organization], call: Call) -> Reply | None:
    """Answer a request to one of these addresses. ``None`` to any other."""
    if call.path.startswith(_CONTROL):
        return _control(organizations, call)

    if call.path.startswith(_BADGES):
        return _show_badge(organizations, call.path.removeprefix(_BADGES))

    return None


def _control(organizations: list[Organization], call: Call) -> Reply:
    command = call.path.removeprefix(_CONTROL)

    try:
        if (call.method, command) == ("GET", "record"):
            organization, _ = _pick(organizations, dict(call.query))
            return json_reply(200, _report(organization, organizations))

        if call.method != "POST" or command not in COMMANDS:
            return json_reply(404, {"error": "Unknown control endpoint."})

        given = json.loads(call.body or b"{}")
        organization, options = _pick(organizations, given)
        getattr(organization, COMMANDS[command])(**options)
    except Refusal as refusal:
        return json_reply(400, {"error": refusal.message})
    except KeyError as error:
        return json_reply(400, {"error": f"There is no {error}."})
    except (TypeError, ValueError) as error:
        return json_reply(400, {"error": str(error)})

    return json_reply(200, {"ok": True})


def _pick(organizations: list[Organization], options: Row) -> tuple[Organization, Row]:
    """Take out the organization that is meant: the first, if none is named."""
    options = dict(options)
    id = options.pop("organization_id", organizations[0].organization_id)

    for each in organizations:
        if each.organization_id == id:
            return each, options

    raise ValueError(f"There is no organization {id}.")


def _report(organization: Organization, organizations: list[Organization]) -> Row:
    with organization.lock:
        return {
            "now": rules.stamp(organization.now()),
            "badges": organization.badges,
            "received": [dataclasses.asdict(one) for one in organization.received],
            "mails": [dataclasses.asdict(one) for one in organization.mails],
            "problems": list(organization.problems),
            "faults": organization.list_faults(),
            "has_client": organization.has_client,
            "templates": copy.deepcopy(list(organization.book.templates.values())),
            "credentials": _credentials(organization),
            "organizations": [_credentials(each) for each in organizations],
        }


def _credentials(organization: Organization) -> Row:
    return {
        "organization_id": organization.organization_id,
        "client_id": organization.client_id,
        "client_secret": organization.client_secret,
    }


def _show_badge(organizations: list[Organization], badge_id: str) -> Reply:
    """Show a badge to a browser, as Credly's site does."""
    for badge in (badge for each in organizations for badge in each.badges):
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
