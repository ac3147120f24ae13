"""What Credly's templates, badges and organizations look like."""

from __future__ import annotations

import copy
import datetime as dt
import re
import uuid

from . import orders
from . import rules
from .rules import Row


def template_row(
    *,
    id: str,
    name: str,
    state: str,
    allow_duplicate_badges: bool,
    image: bool,
    expires: int | dt.datetime | None,
    notify_expiring: bool,
    organization: Row,
    now: dt.datetime,
    unknown_keys: bool,
) -> Row:
    """Make a row of the template list.

    :param expires: After how many months a badge expires, or when.
    :param notify_expiring: Whether its earner is told before.
    :param unknown_keys: Add keys that no client can know.
    """
    picture = {"id": str(uuid.uuid4()), "url": f"https://images.credly.com/{id}.png"}
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    row: Row = {
        "id": id,
        "name": name,
        "description": f"Awarded for {name}.",
        "state": state,
        "public": True,
        "visibility": "public",
        "image": picture if image else None,
        "image_url": picture["url"] if image else None,
        "url": f"https://badges.example.org/badges/{id}",
        "vanity_slug": slug,
        "global_activity_url": None,
        "level": None,
        "cost": None,
        "time_to_earn": None,
        "type_category": None,
        "skills": [],
        "reporting_tags": [],
        "allow_duplicate_badges": allow_duplicate_badges,
        "lock_badge_state": False,
        "recipient_type": "User",
        "badges_count": 0,
        "get_issue_count": 0,
        "certification": False,
        "criteria_url": None,
        "criteria_url_name": None,
        "printing_disabled": False,
        "record_to_blockchain": False,
        "send_expiring_badge_notifications": notify_expiring,
        **expiry_keys(expires),
        "show_badge_lmi": True,
        "show_skill_tag_links": True,
        "alignments": [],
        "recommendations": [],
        "required_badge_templates": [],
        "badge_template_activities": [],
        "owner": organization,
        "state_updated_at": rules.stamp(now),
        "created_at": rules.stamp(now),
        "updated_at": rules.stamp(now),
    }

    if unknown_keys:
        row["added_without_notice"] = {"nested": [1, None, True]}

    return row


def expiry_keys(expires: int | dt.datetime | None) -> Row:
    """Write when badges expire by default. Credly's keys are known, but not what is in
    them where it is not null: that is our reading.

    :param expires: After how many months, or when.
    """
    value: object = expires
    kind = day = None

    if isinstance(expires, dt.datetime):
        value, kind = rules.stamp(expires), "date"
        day = str(value)[:10]
    elif expires is not None:
        kind = "months"

    return {
        "default_expires_at": value,
        "default_expires_at_date": day,
        "default_expires_at_type": kind,
    }


def organization_row(id: str, name: str) -> Row:
    """Make the organization as it appears as owner and issuer."""
    return {
        "type": "Organization",
        "id": id,
        "name": name,
        "url": f"https://badges.example.org/organizations/{id}",
        "vanity_url": "https://badges.example.org/org/example-academy",
        "vanity_slug": "example-academy",
        "verified": False,
        "viewable": True,
        "enable_blockchain": False,
    }


def shown_template(template: Row) -> Row:
    """Get a template as the list shows it: a draft has no image."""
    if template["state"] != "draft":
        return template

    return template | {"image": None, "image_url": None}


def badge_row(order: orders.Order, template: Row, now: dt.datetime) -> Row:
    """Make a new badge, pending."""
    id = str(uuid.uuid4())
    expires = order.until(template)
    embedded = copy.deepcopy(shown_template(template))
    embedded.pop("reporting_tags")

    return {
        "id": id,
        "state": "pending",
        "issued_to": f"{order.first_name} {order.last_name}",
        "issued_to_first_name": order.first_name,
        "issued_to_middle_name": order.options.get("issued_to_middle_name"),
        "issued_to_last_name": order.last_name,
        "issuer_earner_id": order.earner_id,
        "recipient_email": order.email,
        "locale": order.options.get("locale") or "en",
        "public": False,
        "suppress_badge_notification_email": bool(
            order.options.get("suppress_badge_notification_email")
        ),
        **issued_keys(rules.stamp(order.issued_at)),
        "expires_at": rules.stamp(expires) if expires else None,
        "expires_at_date": rules.stamp(expires)[:10] if expires else None,
        "created_at": rules.stamp(now),
        "updated_at": rules.stamp(now),
        "state_updated_at": rules.stamp(now),
        "replacement_badge_id": None,
        "replaces_badge_id": None,
        "revocation_reason": None,
        "country": order.options.get("country_name"),
        "country_code": None,
        "state_or_province": order.options.get("state_or_province"),
        "image": embedded["image"] or {},
        "image_url": embedded["image_url"],
        "alignments": [],
        "evidence": order.options.get("evidence") or [],
        "badge_template": embedded,
        "issuer": {
            "summary": f"issued by {template['owner']['name']}",
            "entities": [
                {"label": "Issued by", "primary": True, "entity": template["owner"]}
            ],
        },
        "created_by": {"type": "OauthApplication", "name": "Simulated application"},
        "user": {},
        "printing_enabled": True,
        "print_method": "standard",
        "accept_badge_url": f"https://www.credly.com/badges/{id}/accept",
    }


_MINIMAL = (
    "id",
    "state",
    "state_updated_at",
    "issued_at",
    "created_at",
    "updated_at",
    "expires_at",
    "issued_to",
    "issued_to_first_name",
    "issued_to_last_name",
    "issuer_earner_id",
    "recipient_email",
    "public",
    "badge_url",
)


def shown_badge(row: Row, form: str) -> Row:
    """Get a badge as the search shows it.

    :param form: ``"default"`` or ``"minimal"``.
    """
    if form == "default":
        return row

    return {
        **{name: row[name] for name in _MINIMAL if name in row},
        "badge_template": {
            name: row["badge_template"][name] for name in ("id", "name")
        },
        "user": {name: row["user"][name] for name in ("id",) if name in row["user"]},
    }


def badge_url(badge_id: str) -> str:
    """Get the address of a badge that was accepted."""
    return f"https://www.credly.com/badges/{badge_id}"


def issued_keys(text: str) -> Row:
    return {"issued_at": text, "issued_at_date": text[:10]}
