"""Our tables, on our own base, copied into the host's metadata.

Copying keeps them importable and typed, lets two apps share one ``db``, and shows
them to ``db.create_all()`` and Flask-Migrate. Ids of the host's courses and members
are strings without foreign keys: the host's tables stay the host's.
"""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql

# The names are part of the contract with a host's migrations.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(orm.DeclarativeBase):
    """Base of the extension's models. Its metadata is not the host's.

    A column that cannot be null and comes later has a default in the database, too: a
    filled table takes it, and processes of the version before need not know it. Truth
    values are written "0" and "1", which every database takes.
    """

    metadata = sa.MetaData(naming_convention=NAMING)

    # Whatever the database's default is: names are in any script.
    __table_args__: t.Any = {
        "mysql_charset": "utf8mb4",
        "mariadb_charset": "utf8mb4",
    }


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


# An absent value is the database's null, and not the JSON that says so.
_JSON = sa.JSON(none_as_null=True)


def _id(length: int) -> sa.String:
    # MariaDB and MySQL compare without regard to case by default: two members
    # whose ids differ only in case would share one badge.
    return sa.String(length).with_variant(
        mysql.VARCHAR(length, collation="utf8mb4_bin"), "mysql", "mariadb"
    )


def _tenant_column(**more: t.Any) -> orm.Mapped[str]:
    return orm.mapped_column(_id(191), **more)


class Installation(Base):
    """The name this installation uses towards Credly. Survives Remove, so that the
    ``issuer_earner_id`` of a member stays the same for life.
    """

    __tablename__ = "credly_installation"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    key: orm.Mapped[str] = orm.mapped_column(_id(32))
    restored_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When the database was said to come from a backup or a copy: it may lack what was
    issued since, so that each badge is looked up before its first request.
    """
    is_copy: orm.Mapped[bool] = orm.mapped_column(default=False, server_default="0")
    """The original is in use elsewhere: nothing is issued from here."""


class Account(Base):
    """A community's connection to a Credly organization, and the gates that stop it.

    There is one a tenant, and its tenant is its key: every other row says by it whose
    it is.
    """

    __tablename__ = "credly_account"

    tenant: orm.Mapped[str] = _tenant_column(primary_key=True)
    organization_id: orm.Mapped[str] = orm.mapped_column(_id(36))
    client_id: orm.Mapped[str] = orm.mapped_column(sa.String(255))
    client_secret: orm.Mapped[str] = orm.mapped_column(sa.Text)
    """Sealed: see :mod:`flask_credly.keys`."""
    generation: orm.Mapped[str] = orm.mapped_column(_id(32))
    """New with every set of credentials. A worker that still uses older ones can
    then not pass a verdict on these.
    """
    connected_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    checked_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly last accepted or refused these credentials, apart from badges."""
    templates_synced_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    templates_failed_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When the list could not be loaded. Null once it was."""
    served_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When a worker last began to issue for it: the next is whose turn is longest ago.
    """

    expired: orm.Mapped[bool] = orm.mapped_column(default=False, server_default="0")
    switched_off: orm.Mapped[bool] = orm.mapped_column(
        default=False, server_default="0"
    )
    """The admin has paused issuing. Completions are still recorded."""
    paused_until: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Until when nothing is sent. Kept after that time, until a request succeeds:
    it tells the next drain to begin with a single probe.
    """
    keyless_until: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Until when a worker is taken to be there that cannot decrypt the Client Secret.
    It says so again and again. Others may have the key, so this closes no gate.
    """
    pause_reason: orm.Mapped[str | None] = orm.mapped_column(sa.String(20))
    """``"rate limit"`` or ``"unavailable"``."""
    failures: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Pauses one after the other because Credly was unavailable."""
    limited_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly last asked for a pause."""

    pace_held_until: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Until when one worker alone sends requests, as Credly has asked for a pause not
    long ago. Moved ahead while it does.
    """

    batch_refused_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly last did not take a request for several badges as it should."""

    next_request_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When the next badge may be asked for, where ``CREDLY_MAX_PER_SECOND`` is set."""

    polled_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When it was last known what became of the badges, as far as Credly says."""
    poll_due_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly is to be asked for that once more. Moved ahead while a worker does.
    Null: once a badge is issued.
    """
    poll_watermark: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Up to which change, by Credly's clock, all is read."""
    poll_page: orm.Mapped[int | None]
    """Up to which page a list is read that is being read. Null: none is."""
    poll_newest: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """What becomes the watermark at its end."""
    poll_unsorted: orm.Mapped[bool] = orm.mapped_column(
        default=False, server_default="0"
    )
    """The list did not have the latest change first: only the survey knows all."""
    survey_due_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When all badges are to be read once more. Moved ahead while a worker does. Null:
    a day after the first badge was issued.
    """
    survey_next: orm.Mapped[str | None] = orm.mapped_column(sa.Text)
    """What is asked for next, where that has been begun."""
    survey_next_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly said what is next."""
    survey_pages: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Pages that were read so far."""
    surveyed_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When all badges were last read to the end."""
    compare_due_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When a worker compares all badges with Credly once more. Null: within a week of
    the first survey.
    """

    withdrawals: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Badges that were revoked because their completion was withdrawn, in an hour."""
    withdrawals_since: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When that hour began."""

    token: orm.Mapped[str | None] = orm.mapped_column(sa.Text)
    """Sealed."""
    token_version: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    token_expires_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    token_fetch_until: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Until when one worker has the right to fetch the next token."""


class Template(Base):
    """Our copy of one of the organization's badge templates."""

    __tablename__ = "credly_template"

    tenant: orm.Mapped[str] = orm.mapped_column(
        sa.ForeignKey(Account.tenant, ondelete="CASCADE"), primary_key=True
    )
    id: orm.Mapped[str] = orm.mapped_column(_id(36), primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(255))
    image_url: orm.Mapped[str | None] = orm.mapped_column(sa.String(2000))
    allows_duplicates: orm.Mapped[bool] = orm.mapped_column(
        default=False, server_default="0"
    )
    active: orm.Mapped[bool] = orm.mapped_column(default=True, server_default="1")
    """Whether Credly listed it as active at the last sync."""


class Mapping(Base):
    """One course or learning path and the badge its members get."""

    __tablename__ = "credly_mapping"
    __table_args__ = (
        sa.UniqueConstraint("tenant", "kind", "course_id"),
        sa.ForeignKeyConstraint(
            ["tenant", "template_id"],
            [Template.tenant, Template.id],
            ondelete="CASCADE",
        ),
        sa.Index(None, "tenant", "template_id"),
        Base.__table_args__,
    )

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = _tenant_column()
    kind: orm.Mapped[str] = orm.mapped_column(_id(20))
    course_id: orm.Mapped[str] = orm.mapped_column(_id(191))
    course_title: orm.Mapped[str] = orm.mapped_column(sa.String(500))
    """As it was when mapped: shown when the host no longer has the course."""
    template_id: orm.Mapped[str] = orm.mapped_column(_id(36))

    created_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When this course was mapped. Null: not known."""
    options: orm.Mapped[dict[str, t.Any] | None] = orm.mapped_column(_JSON)
    """How its badges are issued, where that is not as Credly does by itself."""
    again: orm.Mapped[str | None] = orm.mapped_column(_id(10))
    """What stands among the options of a further completion: each completion asks."""

    template: orm.Mapped[Template] = orm.relationship(lazy="joined", innerjoin=True)


class RemovedMapping(Base):
    """A mapping that was removed a short time ago: what an undo brings back."""

    __tablename__ = "credly_removed_mapping"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    """Of the mapping, as it was."""
    tenant: orm.Mapped[str] = orm.mapped_column(
        sa.ForeignKey(Account.tenant, ondelete="CASCADE"), index=True
    )
    kind: orm.Mapped[str] = orm.mapped_column(_id(20))
    course_id: orm.Mapped[str] = orm.mapped_column(_id(191))
    template_id: orm.Mapped[str] = orm.mapped_column(_id(36))
    options: orm.Mapped[dict[str, t.Any] | None] = orm.mapped_column(_JSON)
    removed_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)


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


class Issuance(Base):
    """One badge for one member and one course: the ledger's row, and the job.

    What is true of the badge is its ``state``; what is being done about it, its
    ``action``, to which ``due_at``, ``lease``, ``attempts``, ``outcome_unknown`` and
    their like belong. Written by :mod:`flask_credly.ledger.transitions` alone.

    Has no foreign key to the account: it outlives Remove, so that a reconnect does not
    issue everything again.
    """

    __tablename__ = "credly_issuance"
    __table_args__ = (
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
        Base.__table_args__,
    )

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = _tenant_column()
    member_id: orm.Mapped[str] = orm.mapped_column(_id(191))
    kind: orm.Mapped[str] = orm.mapped_column(_id(20))
    course_id: orm.Mapped[str] = orm.mapped_column(_id(191))
    cycle: orm.Mapped[int] = orm.mapped_column(default=1, server_default="1")
    """Which of the member's badges for this course it is, where each completion may
    give another.
    """

    organization_id: orm.Mapped[str] = orm.mapped_column(_id(36))
    template_id: orm.Mapped[str] = orm.mapped_column(_id(36))
    badge_name: orm.Mapped[str] = orm.mapped_column(sa.String(255))
    email: orm.Mapped[str] = orm.mapped_column(sa.String(320))
    first_name: orm.Mapped[str] = orm.mapped_column(sa.String(255))
    last_name: orm.Mapped[str] = orm.mapped_column(sa.String(255))
    completed_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    recorded_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)

    state: orm.Mapped[str] = orm.mapped_column(_id(10), server_default="none")
    """One of :data:`IssuanceState`."""
    action: orm.Mapped[str | None] = orm.mapped_column(_id(10))
    """One of :data:`Action`. Null: nothing is to be done."""
    reason: orm.Mapped[str | None] = orm.mapped_column(_id(20))
    """One of :data:`Reason`."""
    due_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When a worker may take the row: the time of the next try, the end of the lease
    while one has it, null without an action. What claim and sweep look at.
    """
    bulk: orm.Mapped[bool] = orm.mapped_column(default=False, server_default="0")
    """Recorded by a backfill: gives way to completions that come in."""
    batch_id: orm.Mapped[int | None]
    """The :class:`Batch` that it was recorded by."""
    lease: orm.Mapped[str | None] = orm.mapped_column(_id(32), index=True)
    """The fencing token of the worker that holds the row."""
    attempts: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Requests of the action that count: at most two."""
    outcome_unknown: orm.Mapped[bool] = orm.mapped_column(
        default=False, server_default="0"
    )
    """A request went out and its outcome is not known: look before the next."""
    issued_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """The time that the first request has sent, and each later one sends: the badge is
    known by it. Null: none was begun.
    """
    duplicate: orm.Mapped[bool] = orm.mapped_column(default=False, server_default="0")
    """Credly has refused a request as a duplicate, and has not listed the badge yet."""
    unsettled_until: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Until when the last request may be on its way, or not show in Credly's lists: the
    end of the lease under which it was begun.
    """
    crashes: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Workers that have died while they held the row."""
    look_ups: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Look-ups that had no clear answer."""
    settled_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When the state became what it is, where nothing is to be done."""
    badge_id: orm.Mapped[str | None] = orm.mapped_column(_id(36))
    """Credly's id of the issued badge. It belongs to one row."""
    options: orm.Mapped[dict[str, t.Any] | None] = orm.mapped_column(_JSON)
    """The mapping's, as they were when it was recorded."""
    completion_id: orm.Mapped[str | None] = orm.mapped_column(_id(191))
    """The host's own id of the completion."""
    extras: orm.Mapped[dict[str, t.Any] | None] = orm.mapped_column(_JSON)
    """What else the host says of the member and the completion: see
    :func:`flask_credly.catalog.read_extras`.
    """

    # What Credly says of the badge.
    badge_state: orm.Mapped[str | None] = orm.mapped_column(_id(10))
    """One of :data:`BadgeState`. Null: not known."""
    badge_state_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Since when, by Credly's clock. It does not say so of one that is pending."""
    badge_told: orm.Mapped[str | None] = orm.mapped_column(_id(10))
    """The state of which the host was told."""
    checked_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly last said so."""
    accept_url: orm.Mapped[str | None] = orm.mapped_column(sa.String(500))
    page_url: orm.Mapped[str | None] = orm.mapped_column(sa.String(500))
    expires_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    public: orm.Mapped[bool | None]
    replaced_by: orm.Mapped[str | None] = orm.mapped_column(_id(36))
    """Credly's id of the badge that was issued in its place."""
    missed_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly, asked for the badge by its id, first said that there is none. Null:
    it has not, or has shown it since.
    """
    missing_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When it said so again, long enough after to be believed."""
    replaces: orm.Mapped[str | None] = orm.mapped_column(_id(36))
    """Credly's id of the badge in whose place this one is issued."""
    renewal: orm.Mapped[bool] = orm.mapped_column(default=False, server_default="0")
    """Replaces the badge of the member's last completion, if there is one. Where that
    one is in force no more, a new one is issued. Otherwise an admin corrects it.
    """
    revocation_reason: orm.Mapped[str | None] = orm.mapped_column(sa.String(500))
    """Why an admin has it revoked, in words that the member may read."""
    tell: orm.Mapped[bool | None]
    """Whether Credly is to tell the member of the revocation."""
    withdrawn_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When the host says that the completion was withdrawn. Null: it stands."""
    error: orm.Mapped[str | None] = orm.mapped_column(sa.String(500))
    """What went wrong with the last try, worded for the admin."""
    test: orm.Mapped[bool] = orm.mapped_column(default=False, server_default="0")
    """The admin's own try of a mapping: no member's badge."""
    erased_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When it was made to name nobody: it is never tried again."""


class ToCheck(Base):
    """A badge that an admin wants to know more of: a worker asks Credly for it."""

    __tablename__ = "credly_to_check"

    issuance_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(Issuance.id, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    tenant: orm.Mapped[str] = orm.mapped_column(
        sa.ForeignKey(Account.tenant, ondelete="CASCADE"), index=True
    )
    asked_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    """When the admin last asked."""
    due_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When Credly is to be asked. Null: it was."""


class Batch(Base):
    """Many badges at once: one run that records the past completions of a course, one
    that takes badges back, one that retries all that failed, or one that compares all
    badges with Credly.
    """

    __tablename__ = "credly_batch"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = orm.mapped_column(
        sa.ForeignKey(Account.tenant, ondelete="CASCADE"), index=True
    )
    kind: orm.Mapped[str] = orm.mapped_column(_id(20))
    course_id: orm.Mapped[str] = orm.mapped_column(_id(191))
    course_title: orm.Mapped[str] = orm.mapped_column(sa.String(500))
    since: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Only completions from then on. Null: all."""
    started_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    state: orm.Mapped[str] = orm.mapped_column(_id(10))
    """Of a backfill: ``"recording"``, ``"recorded"``, ``"stopped"`` or ``"failed"``. Of
    an undo: ``"choosing"``, ``"revoking"``, ``"stopping"``, ``"stopped"`` or
    ``"done"``. Of a retry: ``"retrying"``, ``"stopped"`` or ``"retried"``. Of a
    comparison: ``"comparing"``, ``"compared"``, ``"repairing"``, ``"partial"`` where
    something could not be read to its end, ``"stopped"`` or ``"failed"``.
    """
    due_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime, index=True)
    """When a worker may take it up: moved ahead while one records, null at the end."""
    lease: orm.Mapped[str | None] = orm.mapped_column(_id(32))
    """The token of the worker that records."""
    completed: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Completions read from the host, badges queued again, or read at Credly so far."""
    incomplete: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """Those of members without an address or name."""
    healing: orm.Mapped[bool] = orm.mapped_column(default=False, server_default="0")
    """Begun by no person. A backfill adds only what the ledger has never had then."""
    found: orm.Mapped[dict[str, t.Any] | None] = orm.mapped_column(_JSON)
    """What a comparison has come to: see :class:`.comparisons.Found`."""

    verb: orm.Mapped[str] = orm.mapped_column(_id(10), server_default="backfill")
    """``"backfill"``, ``"compare"``, ``"retry"`` or ``"undo"``. What follows is of an
    undo, and ``last_id``, ``reached`` and ``number`` also of a retry.
    """
    undoes: orm.Mapped[int | None]
    """The backfill whose badges are taken back."""
    until: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Only badges that were recorded before then, and from ``since`` on. Null: all."""
    wanted: orm.Mapped[dict[str, t.Any] | None] = orm.mapped_column(_JSON)
    """What else the badges page was filtered by, until the badges are chosen."""
    last_id: orm.Mapped[int | None]
    """The last row that there was when the admin saw how many there are."""
    reached: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """The last row that was looked at to choose."""
    number: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    """How many badges the admin has confirmed."""
    reason: orm.Mapped[str | None] = orm.mapped_column(sa.String(500))
    """Why, in words that the members may read."""
    tell_pending: orm.Mapped[bool | None]
    """Whether Credly is to tell those who have not accepted the badge."""
    tell_accepted: orm.Mapped[bool | None]
    """Whether Credly is to tell those who have."""


class BatchRow(Base):
    """A badge that an undo has chosen, and what came of it."""

    __tablename__ = "credly_batch_row"
    __table_args__ = (
        sa.Index(None, "tenant", "batch_id", "outcome", "issuance_id"),
        Base.__table_args__,
    )

    batch_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(Batch.id, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    issuance_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(Issuance.id, ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
        index=True,
    )
    tenant: orm.Mapped[str] = _tenant_column()
    outcome: orm.Mapped[str] = orm.mapped_column(_id(20))
    """One of :data:`flask_credly.ledger.undos.Outcome`."""

    issuance: orm.Mapped[Issuance] = orm.relationship(lazy="raise", viewonly=True)


class DifferenceRow(Base):
    """A badge about which a comparison has found that not all agree: as few as are
    shown and repaired at once.
    """

    __tablename__ = "credly_difference"
    __table_args__ = (
        sa.Index(None, "tenant", "batch_id", "bucket", "id"),
        sa.Index(None, "tenant", "member_id"),
        Base.__table_args__,
    )

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = _tenant_column()
    batch_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(Batch.id, ondelete="CASCADE"), index=True
    )
    found_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    bucket: orm.Mapped[str] = orm.mapped_column(_id(20))
    """How they differ: see :data:`flask_credly.ledger.comparisons.Bucket`."""
    issuance_id: orm.Mapped[int | None] = orm.mapped_column(index=True)
    """Its row. Of a badge that has none: another row of the same member."""
    badge_id: orm.Mapped[str | None] = orm.mapped_column(_id(36))
    """Credly's id of the badge."""
    kind: orm.Mapped[str | None] = orm.mapped_column(_id(20))
    """With the two that follow: the completion, where no row has it."""
    course_id: orm.Mapped[str | None] = orm.mapped_column(_id(191))
    member_id: orm.Mapped[str | None] = orm.mapped_column(_id(191))
    completed_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    state: orm.Mapped[str | None] = orm.mapped_column(_id(10))
    """The row's, as it was compared: what has changed since is not repaired."""
    badge_state: orm.Mapped[str | None] = orm.mapped_column(_id(10))
    outcome: orm.Mapped[str | None] = orm.mapped_column(_id(10))
    """Why a repair has left it: ``"changed"`` since, or ``"no course"`` is known."""


class Unrecorded(Base):
    """A community's count of completions that could not be recorded."""

    __tablename__ = "credly_unrecorded"

    tenant: orm.Mapped[str] = _tenant_column(primary_key=True)
    """Empty: of which community is not known."""
    number: orm.Mapped[int] = orm.mapped_column(default=0, server_default="0")
    since: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """When the first of them came in. Null: none is counted."""


class Attempt(Base):
    """One request about one badge, written before it goes out: to issue, revoke or
    replace it.
    """

    __tablename__ = "credly_attempt"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = _tenant_column()
    issuance_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(Issuance.id, ondelete="CASCADE"), index=True
    )
    action: orm.Mapped[str] = orm.mapped_column(_id(10), server_default="issue")
    """One of :data:`Action`."""
    lease: orm.Mapped[str] = orm.mapped_column(_id(32))
    started_at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    finished_at: orm.Mapped[dt.datetime | None] = orm.mapped_column(UTCDateTime)
    """Null: on its way, or the worker died before it could write down an answer."""
    answer: orm.Mapped[str | None] = orm.mapped_column(sa.String(20))
    """One of :data:`flask_credly.ledger.decide.Answer`, or ``"died"``."""
    status: orm.Mapped[int | None]
    detail: orm.Mapped[str | None] = orm.mapped_column(sa.String(500))


class LogEntry(Base):
    """One row of the error log that the admin reads."""

    __tablename__ = "credly_log_entry"
    __table_args__ = (
        # For the page, which goes by id, also within a kind of error.
        sa.Index(None, "tenant", "id"),
        sa.Index(None, "tenant", "error", "id"),
        Base.__table_args__,
    )

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = orm.mapped_column(
        sa.ForeignKey(Account.tenant, ondelete="CASCADE")
    )
    at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    error: orm.Mapped[str] = orm.mapped_column(_id(50))
    details: orm.Mapped[str] = orm.mapped_column(sa.Text)
    issuance_id: orm.Mapped[int | None] = orm.mapped_column(index=True)


class AuditEntry(Base):
    """One thing that an admin or a command has done. Survives Remove."""

    __tablename__ = "credly_audit"
    __table_args__ = (
        sa.Index(None, "tenant", "id"),
        sa.Index(None, "tenant", "at"),
        Base.__table_args__,
    )

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    tenant: orm.Mapped[str] = _tenant_column()
    at: orm.Mapped[dt.datetime] = orm.mapped_column(UTCDateTime)
    actor: orm.Mapped[str] = orm.mapped_column(sa.String(255))
    """As the host names the admin. Empty: unknown."""
    action: orm.Mapped[str] = orm.mapped_column(_id(30))
    """One of :data:`flask_credly.ledger.audit.ACTIONS`."""
    target: orm.Mapped[str] = orm.mapped_column(sa.String(800))
    outcome: orm.Mapped[str] = orm.mapped_column(_id(10))
    """One of :data:`flask_credly.ledger.audit.OUTCOMES`."""


def copy_tables(metadata: sa.MetaData) -> None:
    """Copy our tables into the host's metadata. Does nothing for those that are
    there already, so that several apps can share one ``db``.
    """
    for table in Base.metadata.sorted_tables:
        if table.name not in metadata.tables:
            _copy_table(table, metadata)


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
        # Alembic would write "flask_credly.models.UTCDateTime()" into the host's
        # migration, without the import.
        if isinstance(column.type, UTCDateTime):
            column.type = column.type.impl_instance


def _columns(index: sa.Index) -> tuple[str, ...]:
    return tuple(column.name for column in index.columns)
