"""Our tables as a host had them before badges for earlier completions came, with rows
in them. Frozen: an upgrade has to keep these rows.
"""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

KEY = "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA="
"""What the Client Secret is sealed with."""

ORGANIZATION_ID = "0a0a0a0a-0000-4000-8000-000000000001"
CLIENT_ID = "an example id"
CLIENT_SECRET = "an example secret"
TEMPLATE_ID = "0a0a0a0a-0000-4000-8000-000000000002"

TIME = sa.DateTime(timezone=True).with_variant(
    mysql.DATETIME(fsp=6), "mysql", "mariadb"
)
UTF8: dict[str, t.Any] = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(length: int) -> sa.String:
    return sa.String(length).with_variant(
        mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb"
    )


sa.Table(
    "credly_connection",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("organization_id", _id(36), nullable=False),
    sa.Column("client_id", sa.String(255), nullable=False),
    sa.Column("client_secret", sa.Text, nullable=False),
    sa.Column("generation", _id(32), nullable=False),
    sa.Column("connected_at", TIME, nullable=False),
    sa.Column("checked_at", TIME),
    sa.Column("templates_synced_at", TIME),
    sa.Column("templates_failed_at", TIME),
    sa.Column("expired", sa.Boolean, nullable=False),
    sa.Column("switched_off", sa.Boolean, nullable=False),
    sa.Column("paused_until", TIME),
    sa.Column("pause_reason", sa.String(20)),
    sa.Column("token", sa.Text),
    sa.Column("token_version", sa.Integer, nullable=False),
    sa.Column("token_expires_at", TIME),
    sa.Column("token_fetch_until", TIME),
    **UTF8,
)
sa.Table(
    "credly_installation",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", _id(32), nullable=False),
    **UTF8,
)
sa.Table(
    "credly_issuance",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("member_id", _id(191), nullable=False),
    sa.Column("kind", _id(20), nullable=False),
    sa.Column("course_id", _id(191), nullable=False),
    sa.Column("organization_id", _id(36), nullable=False),
    sa.Column("template_id", _id(36), nullable=False),
    sa.Column("badge_name", sa.String(255), nullable=False),
    sa.Column("email", sa.String(320), nullable=False),
    sa.Column("first_name", sa.String(255), nullable=False),
    sa.Column("last_name", sa.String(255), nullable=False),
    sa.Column("completed_at", TIME, nullable=False),
    sa.Column("recorded_at", TIME, nullable=False),
    sa.Column("state", _id(10), nullable=False),
    sa.Column("due_at", TIME, index=True),
    sa.Column("lease", _id(32), index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("maybe_issued", sa.Boolean, nullable=False),
    sa.Column("deaths", sa.Integer, nullable=False),
    sa.Column("look_ups", sa.Integer, nullable=False),
    sa.Column("settled_at", TIME),
    sa.Column("badge_id", sa.String(36)),
    sa.Column("error", sa.String(500)),
    sa.Column("test", sa.Boolean, nullable=False),
    sa.UniqueConstraint("member_id", "kind", "course_id"),
    sa.Index(None, "kind", "course_id", "id"),
    sa.Index(None, "state", "id"),
    **UTF8,
)
sa.Table(
    "credly_attempt",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "issuance_id",
        sa.Integer,
        sa.ForeignKey("credly_issuance.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("lease", _id(32), nullable=False),
    sa.Column("started_at", TIME, nullable=False),
    sa.Column("finished_at", TIME),
    sa.Column("answer", sa.String(20)),
    sa.Column("status", sa.Integer),
    sa.Column("detail", sa.String(500)),
    **UTF8,
)
sa.Table(
    "credly_log_entry",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "connection_id",
        sa.Integer,
        sa.ForeignKey("credly_connection.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("at", TIME, nullable=False),
    sa.Column("error", sa.String(50), nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("issuance_id", sa.Integer, index=True),
    **UTF8,
)
sa.Table(
    "credly_template",
    metadata,
    sa.Column("id", _id(36), primary_key=True),
    sa.Column(
        "connection_id",
        sa.Integer,
        sa.ForeignKey("credly_connection.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("image_url", sa.String(2000)),
    sa.Column("allows_duplicates", sa.Boolean, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    **UTF8,
)
sa.Table(
    "credly_mapping",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "connection_id",
        sa.Integer,
        sa.ForeignKey("credly_connection.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("kind", _id(20), nullable=False),
    sa.Column("course_id", _id(191), nullable=False),
    sa.Column("course_title", sa.String(500), nullable=False),
    sa.Column(
        "template_id",
        _id(36),
        sa.ForeignKey("credly_template.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.UniqueConstraint("kind", "course_id"),
    **UTF8,
)

_NOW = dt.datetime(2026, 10, 1, 12, tzinfo=dt.UTC)


def _issuance(number: int, state: str, **values: t.Any) -> dict[str, t.Any]:
    return {
        "member_id": f"{number}",
        "kind": "course",
        "course_id": "py-101",
        "organization_id": ORGANIZATION_ID,
        "template_id": TEMPLATE_ID,
        "badge_name": "Python Badge",
        "email": f"member-{number}@example.org",
        "first_name": "Ada",
        "last_name": "Example",
        "completed_at": _NOW,
        "recorded_at": _NOW,
        "state": state,
        "due_at": None,
        "lease": None,
        "attempts": 0,
        "maybe_issued": False,
        "deaths": 0,
        "look_ups": 0,
        "settled_at": None,
        "badge_id": None,
        "error": None,
        "test": False,
        **values,
    }


NEW_ISSUANCE = _issuance(9, "pending", due_at=_NOW)
"""What a process of that version writes that runs on while the tables are upgraded."""

# Without the numbers that the database gives: from 1 on.
ROWS: dict[str, list[dict[str, t.Any]]] = {
    "credly_installation": [{"id": 1, "key": "0123456789abcdef0123456789abcdef"}],
    "credly_connection": [
        {
            "id": 1,
            "organization_id": ORGANIZATION_ID,
            "client_id": CLIENT_ID,
            "client_secret": (
                "gAAAAABrBZzLz-oKZy6Fm6Fxsxv_PTPCwYZ69PmDEEXXqg9jpY390IExXtzuv6ACJZmvd5"
                "l73auEFl5VBjfdx-s5NoerCDc1F0RtyONc-FJkI-X39HuBpVwHXjC-z5fA9c79JTz8Nh7E"
                "ofCh6Whd2xoeg5KnuP9oUwv_XPZcqbDwhoeIsiiaeNC7E2vjhCv48V43B5l01zbxoVRviR"
                "3ggKskWQ9_-DsKymELwuO5dNgQpBAjCccBWVk="
            ),
            "generation": "fedcba9876543210fedcba9876543210",
            "connected_at": _NOW,
            "checked_at": _NOW,
            "templates_synced_at": _NOW,
            "expired": False,
            "switched_off": False,
            "token_version": 3,
        }
    ],
    "credly_template": [
        {
            "id": TEMPLATE_ID,
            "connection_id": 1,
            "name": "Python Badge",
            "image_url": None,
            "allows_duplicates": False,
            "active": True,
        }
    ],
    "credly_mapping": [
        {
            "connection_id": 1,
            "kind": "course",
            "course_id": "py-101",
            "course_title": "Python 101",
            "template_id": TEMPLATE_ID,
        }
    ],
    "credly_issuance": [
        _issuance(1, "issued", attempts=1, settled_at=_NOW, badge_id="a badge"),
        _issuance(2, "pending", due_at=_NOW),
        # Its worker died with the request on its way.
        _issuance(
            3, "sending", due_at=_NOW, lease="a lease", attempts=1, maybe_issued=True
        ),
        _issuance(4, "failed", attempts=2, settled_at=_NOW, error="Archived."),
        _issuance(5, "cancelled", settled_at=_NOW),
        _issuance(6, "held"),
    ],
    "credly_attempt": [
        {
            "issuance_id": issuance,
            "lease": "a lease",
            "started_at": _NOW,
            "finished_at": finished_at,
            "answer": answer,
            "status": status,
            "detail": None,
        }
        for issuance, finished_at, answer, status in (
            (1, _NOW, "issued", 201),
            (3, None, None, None),
            (4, _NOW, "refused", 422),
            (4, _NOW, "refused", 422),
        )
    ],
    "credly_log_entry": [
        {
            "connection_id": 1,
            "at": _NOW,
            "error": "Badge issuance failed",
            "details": "Archived.",
            "issuance_id": 4,
        }
    ],
}
