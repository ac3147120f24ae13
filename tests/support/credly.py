"""What Credly is asked, and what it answers."""

from __future__ import annotations

import datetime as dt
import typing as t

from flask_credly.credly import BadgeRequest

API = "https://api.credly.com/v1"


ORGANIZATION = "11111111-2222-4333-8444-555555555555"


TEMPLATE = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"


BADGE = "99999999-8888-4777-8666-555555555555"


REQUEST = BadgeRequest(
    template_id=TEMPLATE,
    earner_id="e" * 40,
    email="ada+badge@example.org",
    first_name="Ada",
    last_name="Example",
    issued_at=dt.datetime(2026, 11, 1, 9, 30, tzinfo=dt.UTC),
)


def issued(**changes: t.Any) -> dict[str, t.Any]:
    badge = {
        "id": BADGE,
        "state": "pending",
        "recipient_email": REQUEST.email,
        "issuer_earner_id": REQUEST.earner_id,
        "badge_template": {"id": TEMPLATE},
        "user": {},
    }
    return {"data": {**badge, **changes}, "metadata": {}}


def listed(*rows: dict[str, t.Any], pages: int = 1) -> dict[str, t.Any]:
    return {"data": [row["data"] for row in rows], "metadata": {"total_pages": pages}}
