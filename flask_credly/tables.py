"""The tables of the extension, without classes: what a web process needs to record a
completion, and to show them to the host.

A column that cannot be null and comes later has a default in the database, too: a
filled table takes it, and processes of the version before need not know it. Truth
values are written "0" and "1", which every database takes.

What the columns mean is said in :mod:`flask_credly.models`.
"""

from __future__ import annotations

import datetime as dt
import json
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

# The names are part of the contract with a host's migrations.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}

METADATA = sa.MetaData(naming_convention=NAMING)
"""Ours, and not the host's."""


class UTCDateTime(sa.types.TypeDecorator[dt.datetime]):
    """An aware time in UTC on every database, also where the column knows no zone.

    :raises ValueError: When a naive time is bound.
    """

    impl = sa.DateTime(timezone=True).with_variant(
        mysql.DATETIME(fsp=6), "mysql", "mariadb"
    )
    cache_ok = True

    def process_bind_param(
        self, value: dt.datetime | None, dialect: sa.Dialect
    ) -> dt.datetime | None:
        if value is None:
            return None

        if value.tzinfo is None:
            raise ValueError("A time must have a time zone.")

        value = value.astimezone(dt.UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(
        self, value: dt.datetime | None, dialect: sa.Dialect
    ) -> dt.datetime | None:
        if value is None:
            return None

        if value.tzinfo is None:
            return value.replace(tzinfo=dt.UTC)

        return value.astimezone(dt.UTC)


class _Json(sa.types.TypeDecorator[t.Any]):
    """JSON as Python writes and reads it, whatever functions for that the host has
    given its engine or its driver.
    """

    # An absent value is the database's null, and not the JSON that says so.
    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> t.Callable[[t.Any], str | None]:
        return lambda value: None if value is None else json.dumps(value)

    def column_expression(
        self, column: sa.ColumnElement[t.Any]
    ) -> sa.ColumnElement[t.Any]:
        # The drivers of PostgreSQL read this type by themselves.
        return sa.type_coerce(sa.cast(column, sa.Text), self)

    def result_processor(
        self, dialect: sa.Dialect, coltype: object
    ) -> t.Callable[[t.Any], t.Any]:
        return lambda value: None if value is None else json.loads(value)

    def coerce_compared_value(
        self, op: t.Any, value: object
    ) -> sa.types.TypeEngine[t.Any]:
        # An index into it is none of its values.
        return self.impl_instance.coerce_compared_value(op, value)


def _id(length: int) -> sa.String:
    # MariaDB and MySQL compare without regard to case by default: two members
    # whose ids differ only in case would share one badge.
    return sa.String(length).with_variant(
        mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb"
    )


# Whatever the database's defaults are: names are in any script, and what is taken back
# has to go.
_OPTIONS: dict[str, t.Any] = {
    f"{dialect}_{name}": value
    for dialect in ("mysql", "mariadb")
    for name, value in (("charset", "utf8mb4"), ("engine", "InnoDB"))
}

IssuanceState = t.Literal[
    "none", "issued", "held", "failed", "cancelled", "revoked", "replaced"
]
"""What is true of a badge, as far as we know. ``none``: nothing was issued yet.
``held``: the member has the badge from elsewhere.
"""

BadgeState = t.Literal["pending", "accepted", "rejected", "revoked"]
"""What has become of a badge, as Credly calls it."""

Action = t.Literal["issue", "revoke", "replace", "check"]
"""What is being done about a badge."""

Reason = t.Literal[
    "unmapped",
    "stopped",
    "removed",
    "erased",
    "perhaps issued",
    "crashed",
    "dropped",
    "awaits revocation",
    "not revoked",
    "no duplicates",
    "withdrawn",
    "withdrawn first",
    "awaits approval",
]
"""Why a row is as it is, where that was not Credly's answer: see
:data:`flask_credly.ledger.reasons.REASONS` for the words.
"""

INSTALLATION = sa.Table(
    "credly_installation",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", _id(32), nullable=False),
    sa.Column("restored_at", UTCDateTime),
    sa.Column("is_copy", sa.Boolean, default=False, server_default="0", nullable=False),
    **_OPTIONS,
)

ACCOUNT = sa.Table(
    "credly_account",
    METADATA,
    sa.Column("tenant", _id(191), primary_key=True),
    sa.Column("organization_id", _id(36), nullable=False),
    sa.Column("client_id", sa.String(255), nullable=False),
    sa.Column("client_secret", sa.Text, nullable=False),
    sa.Column("generation", _id(32), nullable=False),
    sa.Column("connected_at", UTCDateTime, nullable=False),
    sa.Column("checked_at", UTCDateTime),
    sa.Column("templates_synced_at", UTCDateTime),
    sa.Column("templates_failed_at", UTCDateTime),
    sa.Column("served_at", UTCDateTime),
    sa.Column("expired", sa.Boolean, default=False, server_default="0", nullable=False),
    sa.Column(
        "switched_off", sa.Boolean, default=False, server_default="0", nullable=False
    ),
    sa.Column("paused_until", UTCDateTime),
    sa.Column("keyless_until", UTCDateTime),
    sa.Column("pause_reason", sa.String(20)),
    sa.Column("failures", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("limited_at", UTCDateTime),
    sa.Column("pace_held_until", UTCDateTime),
    sa.Column("batch_refused_at", UTCDateTime),
    sa.Column("next_request_at", UTCDateTime),
    sa.Column("polled_at", UTCDateTime),
    sa.Column("poll_due_at", UTCDateTime),
    sa.Column("poll_watermark", UTCDateTime),
    sa.Column("poll_page", sa.Integer),
    sa.Column("poll_newest", UTCDateTime),
    sa.Column(
        "poll_unsorted", sa.Boolean, default=False, server_default="0", nullable=False
    ),
    sa.Column("survey_due_at", UTCDateTime),
    sa.Column("survey_next", sa.Text),
    sa.Column("survey_next_at", UTCDateTime),
    sa.Column(
        "survey_pages", sa.Integer, default=0, server_default="0", nullable=False
    ),
    sa.Column("surveyed_at", UTCDateTime),
    sa.Column("compare_due_at", UTCDateTime),
    sa.Column("withdrawals", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("withdrawals_since", UTCDateTime),
    sa.Column("token", sa.Text),
    sa.Column(
        "token_version", sa.Integer, default=0, server_default="0", nullable=False
    ),
    sa.Column("token_expires_at", UTCDateTime),
    sa.Column("token_fetch_until", UTCDateTime),
    **_OPTIONS,
)

TEMPLATE = sa.Table(
    "credly_template",
    METADATA,
    sa.Column(
        "tenant", sa.ForeignKey(ACCOUNT.c.tenant, ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("id", _id(36), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("image_url", sa.String(2000)),
    sa.Column(
        "allows_duplicates",
        sa.Boolean,
        default=False,
        server_default="0",
        nullable=False,
    ),
    sa.Column("active", sa.Boolean, default=True, server_default="1", nullable=False),
    **_OPTIONS,
)

MAPPING = sa.Table(
    "credly_mapping",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", _id(191), nullable=False),
    sa.Column("kind", _id(20), nullable=False),
    sa.Column("course_id", _id(191), nullable=False),
    sa.Column("course_title", sa.String(500), nullable=False),
    sa.Column("template_id", _id(36), nullable=False),
    sa.Column("created_at", UTCDateTime),
    sa.Column("options", _Json),
    sa.Column("again", _id(10)),
    sa.UniqueConstraint("tenant", "kind", "course_id"),
    sa.ForeignKeyConstraint(
        ["tenant", "template_id"],
        [TEMPLATE.c.tenant, TEMPLATE.c.id],
        ondelete="CASCADE",
    ),
    sa.Index(None, "tenant", "template_id"),
    **_OPTIONS,
)

REMOVED_MAPPING = sa.Table(
    "credly_removed_mapping",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column(
        "tenant",
        sa.ForeignKey(ACCOUNT.c.tenant, ondelete="CASCADE"),
        index=True,
        nullable=False,
    ),
    sa.Column("kind", _id(20), nullable=False),
    sa.Column("course_id", _id(191), nullable=False),
    sa.Column("template_id", _id(36), nullable=False),
    sa.Column("options", _Json),
    sa.Column("removed_at", UTCDateTime, nullable=False),
    **_OPTIONS,
)

ISSUANCE = sa.Table(
    "credly_issuance",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", _id(191), nullable=False),
    sa.Column("member_id", _id(191), nullable=False),
    sa.Column("kind", _id(20), nullable=False),
    sa.Column("course_id", _id(191), nullable=False),
    sa.Column("cycle", sa.Integer, default=1, server_default="1", nullable=False),
    sa.Column("organization_id", _id(36), nullable=False),
    sa.Column("template_id", _id(36), nullable=False),
    sa.Column("badge_name", sa.String(255), nullable=False),
    sa.Column("email", sa.String(320), nullable=False),
    sa.Column("first_name", sa.String(255), nullable=False),
    sa.Column("last_name", sa.String(255), nullable=False),
    sa.Column("completed_at", UTCDateTime, nullable=False),
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sa.Column("state", _id(10), server_default="none", nullable=False),
    sa.Column("action", _id(10)),
    sa.Column("reason", _id(20)),
    sa.Column("due_at", UTCDateTime),
    sa.Column("bulk", sa.Boolean, default=False, server_default="0", nullable=False),
    sa.Column("batch_id", sa.Integer),
    sa.Column("lease", _id(32), index=True),
    sa.Column("attempts", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column(
        "outcome_unknown", sa.Boolean, default=False, server_default="0", nullable=False
    ),
    sa.Column("issued_at", UTCDateTime),
    sa.Column(
        "duplicate", sa.Boolean, default=False, server_default="0", nullable=False
    ),
    sa.Column("unsettled_until", UTCDateTime),
    sa.Column("crashes", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("look_ups", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("settled_at", UTCDateTime),
    sa.Column("badge_id", _id(36)),
    sa.Column("options", _Json),
    sa.Column("completion_id", _id(191)),
    sa.Column("extras", _Json),
    sa.Column("badge_state", _id(10)),
    sa.Column("badge_state_at", UTCDateTime),
    sa.Column("badge_told", _id(10)),
    sa.Column("checked_at", UTCDateTime),
    sa.Column("accept_url", sa.String(500)),
    sa.Column("page_url", sa.String(500)),
    sa.Column("expires_at", UTCDateTime),
    sa.Column("public", sa.Boolean),
    sa.Column("replaced_by", _id(36)),
    sa.Column("missed_at", UTCDateTime),
    sa.Column("missing_at", UTCDateTime),
    sa.Column("replaces", _id(36)),
    sa.Column("renewal", sa.Boolean, default=False, server_default="0", nullable=False),
    sa.Column("revocation_reason", sa.String(500)),
    sa.Column("tell", sa.Boolean),
    sa.Column("withdrawn_at", UTCDateTime),
    sa.Column("error", sa.String(500)),
    sa.Column("test", sa.Boolean, default=False, server_default="0", nullable=False),
    sa.Column("erased_at", UTCDateTime),
    # One organization's badge is not another's: a sandbox's row is in nobody's way.
    sa.UniqueConstraint(
        *("tenant", "member_id", "kind", "course_id", "organization_id", "cycle"),
        # Made of its columns it would be too long for PostgreSQL.
        name="uq_credly_issuance_completion",
    ),
    # Also between two workers that look for theirs at the same moment.
    sa.UniqueConstraint("badge_id"),
    # For the pages, which go by id within a filter.
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "tenant", "state", "id"),
    sa.Index(None, "tenant", "badge_state", "id"),
    sa.Index(None, "tenant", "kind", "course_id", "id"),
    # For claim and sweep. What has no action is not due.
    sa.Index(None, "action", "tenant", "bulk", "due_at", "id"),
    sa.Index(None, "tenant", "batch_id", "state"),
    **_OPTIONS,
)

TO_CHECK = sa.Table(
    "credly_to_check",
    METADATA,
    sa.Column(
        "issuance_id",
        sa.ForeignKey(ISSUANCE.c.id, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column(
        "tenant",
        sa.ForeignKey(ACCOUNT.c.tenant, ondelete="CASCADE"),
        index=True,
        nullable=False,
    ),
    sa.Column("asked_at", UTCDateTime, nullable=False),
    sa.Column("due_at", UTCDateTime),
    **_OPTIONS,
)

BATCH = sa.Table(
    "credly_batch",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", _id(191), index=True, nullable=False),
    sa.Column("kind", _id(20), nullable=False),
    sa.Column("course_id", _id(191), nullable=False),
    sa.Column("course_title", sa.String(500), nullable=False),
    sa.Column("since", UTCDateTime),
    sa.Column("started_at", UTCDateTime, nullable=False),
    sa.Column("state", _id(10), nullable=False),
    sa.Column("due_at", UTCDateTime, index=True),
    sa.Column("lease", _id(32)),
    sa.Column("completed", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("incomplete", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("healing", sa.Boolean, default=False, server_default="0", nullable=False),
    sa.Column("found", _Json),
    sa.Column("verb", _id(10), server_default="backfill", nullable=False),
    sa.Column("undoes", sa.Integer),
    sa.Column("until", UTCDateTime),
    sa.Column("wanted", _Json),
    sa.Column("last_id", sa.Integer),
    sa.Column("reached", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("number", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("reason", sa.String(500)),
    sa.Column("tell_pending", sa.Boolean),
    sa.Column("tell_accepted", sa.Boolean),
    **_OPTIONS,
)

BATCH_ROW = sa.Table(
    "credly_batch_row",
    METADATA,
    sa.Column(
        "batch_id",
        sa.ForeignKey(BATCH.c.id, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    sa.Column(
        "issuance_id",
        sa.ForeignKey(ISSUANCE.c.id, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
        index=True,
    ),
    sa.Column("tenant", _id(191), nullable=False),
    sa.Column("outcome", _id(20), nullable=False),
    sa.Index(None, "tenant", "batch_id", "outcome", "issuance_id"),
    **_OPTIONS,
)

DIFFERENCE_ROW = sa.Table(
    "credly_difference",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", _id(191), nullable=False),
    sa.Column(
        "batch_id",
        sa.ForeignKey(BATCH.c.id, ondelete="CASCADE"),
        index=True,
        nullable=False,
    ),
    sa.Column("found_at", UTCDateTime, nullable=False),
    sa.Column("bucket", _id(20), nullable=False),
    sa.Column("issuance_id", sa.Integer, index=True),
    sa.Column("badge_id", _id(36)),
    sa.Column("kind", _id(20)),
    sa.Column("course_id", _id(191)),
    sa.Column("member_id", _id(191)),
    sa.Column("completed_at", UTCDateTime),
    sa.Column("state", _id(10)),
    sa.Column("badge_state", _id(10)),
    sa.Column("outcome", _id(10)),
    sa.Index(None, "tenant", "batch_id", "bucket", "id"),
    sa.Index(None, "tenant", "member_id"),
    **_OPTIONS,
)

UNRECORDED = sa.Table(
    "credly_unrecorded",
    METADATA,
    sa.Column("tenant", _id(191), primary_key=True),
    sa.Column("number", sa.Integer, default=0, server_default="0", nullable=False),
    sa.Column("since", UTCDateTime),
    **_OPTIONS,
)

ATTEMPT = sa.Table(
    "credly_attempt",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", _id(191), nullable=False),
    sa.Column(
        "issuance_id",
        sa.ForeignKey(ISSUANCE.c.id, ondelete="CASCADE"),
        index=True,
        nullable=False,
    ),
    sa.Column("action", _id(10), server_default="issue", nullable=False),
    sa.Column("lease", _id(32), nullable=False),
    sa.Column("started_at", UTCDateTime, nullable=False),
    sa.Column("finished_at", UTCDateTime),
    sa.Column("answer", sa.String(20)),
    sa.Column("status", sa.Integer),
    sa.Column("detail", sa.String(500)),
    **_OPTIONS,
)

LOG_ENTRY = sa.Table(
    "credly_log_entry",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", _id(191), nullable=False),
    sa.Column("at", UTCDateTime, nullable=False),
    sa.Column("error", _id(50), nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("issuance_id", sa.Integer, index=True),
    # For the page, which goes by id, also within a kind of error.
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "tenant", "error", "id"),
    **_OPTIONS,
)

AUDIT_ENTRY = sa.Table(
    "credly_audit",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", _id(191), nullable=False),
    sa.Column("at", UTCDateTime, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("action", _id(30), nullable=False),
    sa.Column("target", sa.String(800), nullable=False),
    sa.Column("outcome", _id(10), nullable=False),
    sa.Index(None, "tenant", "id"),
    sa.Index(None, "tenant", "at"),
    **_OPTIONS,
)


def copy_tables(metadata: sa.MetaData) -> None:
    """Copy our tables into the host's metadata. Does nothing for those that are
    there already, so that several apps can share one ``db``.

    :raises RuntimeError: If the host has a table of its own under a name of ours.
    """
    for table in METADATA.sorted_tables:
        if table.name in metadata.tables and not _is_ours(table, metadata):
            raise RuntimeError(
                f"This app already has a table named {table.name!r}, a name that"
                " Flask-Credly uses. Rename it."
            )

    for table in METADATA.sorted_tables:
        if table.name not in metadata.tables:
            _copy_table(table, metadata)


def _is_ours(table: sa.Table, metadata: sa.MetaData) -> bool:
    # One of an earlier version, that the host has read from its database, may lack
    # columns that came later. Those can be null, or have a default.
    there = metadata.tables[table.name].columns
    return all(
        column.name in there
        for column in table.columns
        if not column.nullable and column.server_default is None
    )


def _copy_table(table: sa.Table, metadata: sa.MetaData) -> None:
    # Our statements name no schema: the tables are not put into the host's either.
    schema, metadata.schema = metadata.schema, None

    try:
        copy = table.to_metadata(metadata)
    finally:
        metadata.schema = schema

    names = {_columns(index): index.name for index in table.indexes}

    for index in copy.indexes:
        # Those of one column are made anew, by the host's naming convention.
        index.name = names[_columns(index)]

    for column in copy.columns:
        # Alembic would write "flask_credly.tables.UTCDateTime()" into the host's
        # migration, without the import.
        if isinstance(column.type, sa.types.TypeDecorator):
            column.type = column.type.impl_instance


def _columns(index: sa.Index) -> tuple[str, ...]:
    return tuple(column.name for column in index.columns)
