"""Our tables, on our own base, copied into the host's metadata.

Copying keeps them importable and typed, lets two apps share one ``db``, and shows
them to ``db.create_all()`` and Flask-Migrate. Ids of the host's courses and members
are strings without foreign keys: the host's tables stay the host's.
"""

from __future__ import annotations

import datetime as dt
import typing as t

from sqlalchemy import orm

from . import tables
from .tables import Action as Action
from .tables import BadgeState as BadgeState
from .tables import IssuanceState as IssuanceState
from .tables import Reason as Reason
from .tables import UTCDateTime as UTCDateTime


class Base(orm.DeclarativeBase):
    """Base of the models. Their tables are in :mod:`flask_credly.tables`."""

    metadata = tables.METADATA


class Installation(Base):
    """The name this installation uses towards Credly. Survives Remove, so that the
    ``issuer_earner_id`` of a member stays the same for life.
    """

    __table__ = tables.INSTALLATION

    id: orm.Mapped[int]
    key: orm.Mapped[str]
    restored_at: orm.Mapped[dt.datetime | None]
    """When the database was said to come from a backup or a copy: it may lack what was
    issued since, so that each badge is looked up before its first request.
    """
    is_copy: orm.Mapped[bool]
    """The original is in use elsewhere: nothing is issued from here."""


class Account(Base):
    """A community's connection to a Credly organization, and the gates that stop it.

    There is one a tenant, and its tenant is its key: every other row says by it whose
    it is.
    """

    __table__ = tables.ACCOUNT

    tenant: orm.Mapped[str]
    organization_id: orm.Mapped[str]
    client_id: orm.Mapped[str]
    client_secret: orm.Mapped[str]
    """Sealed: see :mod:`flask_credly.keys`."""
    generation: orm.Mapped[str]
    """New with every set of credentials. A worker that still uses older ones can
    then not pass a verdict on these.
    """
    connected_at: orm.Mapped[dt.datetime]
    checked_at: orm.Mapped[dt.datetime | None]
    """When Credly last accepted or refused these credentials, apart from badges."""
    templates_synced_at: orm.Mapped[dt.datetime | None]
    templates_failed_at: orm.Mapped[dt.datetime | None]
    """When the list could not be loaded. Null once it was."""
    served_at: orm.Mapped[dt.datetime | None]
    """When a worker last began to issue for it: the next is whose turn is longest ago.
    """

    expired: orm.Mapped[bool]
    switched_off: orm.Mapped[bool]
    """The admin has paused issuing. Completions are still recorded."""
    paused_until: orm.Mapped[dt.datetime | None]
    """Until when nothing is sent. Kept after that time, until a request succeeds:
    it tells the next drain to begin with a single probe.
    """
    keyless_until: orm.Mapped[dt.datetime | None]
    """Until when a worker is taken to be there that cannot decrypt the Client Secret.
    It says so again and again. Others may have the key, so this closes no gate.
    """
    pause_reason: orm.Mapped[str | None]
    """``"rate limit"`` or ``"unavailable"``."""
    failures: orm.Mapped[int]
    """Pauses one after the other because Credly was unavailable."""
    limited_at: orm.Mapped[dt.datetime | None]
    """When Credly last asked for a pause."""

    pace_held_until: orm.Mapped[dt.datetime | None]
    """Until when one worker alone sends requests, as Credly has asked for a pause not
    long ago. Moved ahead while it does.
    """

    batch_refused_at: orm.Mapped[dt.datetime | None]
    """When Credly last did not take a request for several badges as it should."""

    next_request_at: orm.Mapped[dt.datetime | None]
    """When the next badge may be asked for, where ``CREDLY_MAX_PER_SECOND`` is set."""

    polled_at: orm.Mapped[dt.datetime | None]
    """When it was last known what became of the badges, as far as Credly says."""
    poll_due_at: orm.Mapped[dt.datetime | None]
    """When Credly is to be asked for that once more. Moved ahead while a worker does.
    Null: once a badge is issued.
    """
    poll_watermark: orm.Mapped[dt.datetime | None]
    """Up to which change, by Credly's clock, all is read."""
    poll_page: orm.Mapped[int | None]
    """Up to which page a list is read that is being read. Null: none is."""
    poll_newest: orm.Mapped[dt.datetime | None]
    """What becomes the watermark at its end."""
    poll_unsorted: orm.Mapped[bool]
    """The list did not have the latest change first: only the survey knows all."""
    survey_due_at: orm.Mapped[dt.datetime | None]
    """When all badges are to be read once more. Moved ahead while a worker does. Null:
    a day after the first badge was issued.
    """
    survey_next: orm.Mapped[str | None]
    """What is asked for next, where that has been begun."""
    survey_next_at: orm.Mapped[dt.datetime | None]
    """When Credly said what is next."""
    survey_pages: orm.Mapped[int]
    """Pages that were read so far."""
    surveyed_at: orm.Mapped[dt.datetime | None]
    """When all badges were last read to the end."""
    compare_due_at: orm.Mapped[dt.datetime | None]
    """When a worker compares all badges with Credly once more. Null: within a week of
    the first survey.
    """

    withdrawals: orm.Mapped[int]
    """Badges that were revoked because their completion was withdrawn, in an hour."""
    withdrawals_since: orm.Mapped[dt.datetime | None]
    """When that hour began."""

    token: orm.Mapped[str | None]
    """Sealed."""
    token_version: orm.Mapped[int]
    token_expires_at: orm.Mapped[dt.datetime | None]
    token_fetch_until: orm.Mapped[dt.datetime | None]
    """Until when one worker has the right to fetch the next token."""


class Template(Base):
    """Our copy of one of the organization's badge templates."""

    __table__ = tables.TEMPLATE

    tenant: orm.Mapped[str]
    id: orm.Mapped[str]
    name: orm.Mapped[str]
    image_url: orm.Mapped[str | None]
    allows_duplicates: orm.Mapped[bool]
    active: orm.Mapped[bool]
    """Whether Credly listed it as active at the last sync."""


class Mapping(Base):
    """One course or learning path and the badge its members get."""

    __table__ = tables.MAPPING

    id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    kind: orm.Mapped[str]
    course_id: orm.Mapped[str]
    course_title: orm.Mapped[str]
    """As it was when mapped: shown when the host no longer has the course."""
    template_id: orm.Mapped[str]

    created_at: orm.Mapped[dt.datetime | None]
    """When this course was mapped. Null: not known."""
    options: orm.Mapped[dict[str, t.Any] | None]
    """How its badges are issued, where that is not as Credly does by itself."""
    again: orm.Mapped[str | None]
    """What stands among the options of a further completion: each completion asks."""

    template: orm.Mapped[Template] = orm.relationship(lazy="joined", innerjoin=True)


class RemovedMapping(Base):
    """A mapping that was removed a short time ago: what an undo brings back."""

    __table__ = tables.REMOVED_MAPPING

    id: orm.Mapped[int]
    """Of the mapping, as it was."""
    tenant: orm.Mapped[str]
    kind: orm.Mapped[str]
    course_id: orm.Mapped[str]
    template_id: orm.Mapped[str]
    options: orm.Mapped[dict[str, t.Any] | None]
    removed_at: orm.Mapped[dt.datetime]


class Issuance(Base):
    """One badge for one member and one course: the ledger's row, and the job.

    What is true of the badge is its ``state``; what is being done about it, its
    ``action``, to which ``due_at``, ``lease``, ``attempts``, ``outcome_unknown`` and
    their like belong. Written by :mod:`flask_credly.ledger.transitions` alone.

    Has no foreign key to the account: it outlives Remove, so that a reconnect does not
    issue everything again.
    """

    __table__ = tables.ISSUANCE

    id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    member_id: orm.Mapped[str]
    kind: orm.Mapped[str]
    course_id: orm.Mapped[str]
    cycle: orm.Mapped[int]
    """Which of the member's badges for this course it is, where each completion may
    give another.
    """

    organization_id: orm.Mapped[str]
    template_id: orm.Mapped[str]
    badge_name: orm.Mapped[str]
    email: orm.Mapped[str]
    first_name: orm.Mapped[str]
    last_name: orm.Mapped[str]
    completed_at: orm.Mapped[dt.datetime]
    recorded_at: orm.Mapped[dt.datetime]

    state: orm.Mapped[str]
    """One of :data:`IssuanceState`."""
    action: orm.Mapped[str | None]
    """One of :data:`Action`. Null: nothing is to be done."""
    reason: orm.Mapped[str | None]
    """One of :data:`Reason`."""
    due_at: orm.Mapped[dt.datetime | None]
    """When a worker may take the row: the time of the next try, the end of the lease
    while one has it, null without an action. What claim and sweep look at.
    """
    bulk: orm.Mapped[bool]
    """Recorded by a backfill: gives way to completions that come in."""
    batch_id: orm.Mapped[int | None]
    """The :class:`Batch` that it was recorded by."""
    lease: orm.Mapped[str | None]
    """The fencing token of the worker that holds the row."""
    attempts: orm.Mapped[int]
    """Requests of the action that count: at most two."""
    outcome_unknown: orm.Mapped[bool]
    """A request went out and its outcome is not known: look before the next."""
    issued_at: orm.Mapped[dt.datetime | None]
    """The time that the first request has sent, and each later one sends: the badge is
    known by it. Null: none was begun.
    """
    duplicate: orm.Mapped[bool]
    """Credly has refused a request as a duplicate, and has not listed the badge yet."""
    unsettled_until: orm.Mapped[dt.datetime | None]
    """Until when the last request may be on its way, or not show in Credly's lists: the
    end of the lease under which it was begun.
    """
    crashes: orm.Mapped[int]
    """Workers that have died while they held the row."""
    look_ups: orm.Mapped[int]
    """Look-ups that had no clear answer."""
    settled_at: orm.Mapped[dt.datetime | None]
    """When the state became what it is, where nothing is to be done."""
    badge_id: orm.Mapped[str | None]
    """Credly's id of the issued badge. It belongs to one row."""
    options: orm.Mapped[dict[str, t.Any] | None]
    """The mapping's, as they were when it was recorded."""
    completion_id: orm.Mapped[str | None]
    """The host's own id of the completion."""
    extras: orm.Mapped[dict[str, t.Any] | None]
    """What else the host says of the member and the completion: see
    :func:`flask_credly.catalog.read_extras`.
    """

    # What Credly says of the badge.
    badge_state: orm.Mapped[str | None]
    """One of :data:`BadgeState`. Null: not known."""
    badge_state_at: orm.Mapped[dt.datetime | None]
    """Since when, by Credly's clock. It does not say so of one that is pending."""
    badge_told: orm.Mapped[str | None]
    """The state of which the host was told."""
    checked_at: orm.Mapped[dt.datetime | None]
    """When Credly last said so."""
    accept_url: orm.Mapped[str | None]
    page_url: orm.Mapped[str | None]
    expires_at: orm.Mapped[dt.datetime | None]
    public: orm.Mapped[bool | None]
    replaced_by: orm.Mapped[str | None]
    """Credly's id of the badge that was issued in its place."""
    missed_at: orm.Mapped[dt.datetime | None]
    """When Credly, asked for the badge by its id, first said that there is none. Null:
    it has not, or has shown it since.
    """
    missing_at: orm.Mapped[dt.datetime | None]
    """When it said so again, long enough after to be believed."""
    replaces: orm.Mapped[str | None]
    """Credly's id of the badge in whose place this one is issued."""
    renewal: orm.Mapped[bool]
    """Replaces the badge of the member's last completion, if there is one. Where that
    one is in force no more, a new one is issued. Otherwise an admin corrects it.
    """
    revocation_reason: orm.Mapped[str | None]
    """Why an admin has it revoked, in words that the member may read."""
    tell: orm.Mapped[bool | None]
    """Whether Credly is to tell the member of the revocation."""
    withdrawn_at: orm.Mapped[dt.datetime | None]
    """When the host says that the completion was withdrawn. Null: it stands."""
    error: orm.Mapped[str | None]
    """What went wrong with the last try, worded for the admin."""
    test: orm.Mapped[bool]
    """The admin's own try of a mapping: no member's badge."""
    erased_at: orm.Mapped[dt.datetime | None]
    """When it was made to name nobody: it is never tried again."""


class ToCheck(Base):
    """A badge that an admin wants to know more of: a worker asks Credly for it."""

    __table__ = tables.TO_CHECK

    issuance_id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    asked_at: orm.Mapped[dt.datetime]
    """When the admin last asked."""
    due_at: orm.Mapped[dt.datetime | None]
    """When Credly is to be asked. Null: it was."""


class Batch(Base):
    """Many badges at once: one run that records the past completions of a course, one
    that takes badges back, one that retries all that failed or what the removal of a
    course's mapping has cancelled, one that compares all badges with Credly, or one
    that removes what a large integration leaves.

    Has no foreign key to the account: Remove deletes that at once, and the rest later.
    A run is begun under the account's lock: see :func:`.ledger.gates.lock`.
    """

    __table__ = tables.BATCH

    id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    kind: orm.Mapped[str]
    course_id: orm.Mapped[str]
    course_title: orm.Mapped[str]
    since: orm.Mapped[dt.datetime | None]
    """Only completions from then on, or what a mapping's removal has cancelled from
    then on. Null: all.
    """
    started_at: orm.Mapped[dt.datetime]
    state: orm.Mapped[str]
    """Of a backfill: ``"recording"``, ``"recorded"``, ``"stopped"`` or ``"failed"``. Of
    an undo: ``"choosing"``, ``"revoking"``, ``"stopping"``, ``"stopped"`` or
    ``"done"``. Of a retry: ``"retrying"``, ``"stopped"`` or ``"retried"``. Of a
    comparison: ``"comparing"``, ``"compared"``, ``"repairing"``, ``"partial"`` where
    something could not be read to its end, ``"stopped"`` or ``"failed"``. Of a removal:
    ``"removing"``.
    """
    due_at: orm.Mapped[dt.datetime | None]
    """When a worker may take it up: moved ahead while one records, null at the end."""
    lease: orm.Mapped[str | None]
    """The token of the worker that records."""
    completed: orm.Mapped[int]
    """Completions read from the host, badges queued again, badges read at Credly, or
    rows of a removed integration, so far.
    """
    incomplete: orm.Mapped[int]
    """Those of members without an address or name."""
    healing: orm.Mapped[bool]
    """Begun by no person. A backfill adds only what the ledger has never had then."""
    found: orm.Mapped[dict[str, t.Any] | None]
    """What a comparison has come to: see :class:`.comparisons.Found`."""

    verb: orm.Mapped[str]
    """``"backfill"``, ``"compare"``, ``"remove"``, ``"retry"`` or ``"undo"``. What
    follows is of an undo; ``last_id``, ``reached`` and ``number`` also of a retry or a
    removal.
    """
    undoes: orm.Mapped[int | None]
    """The backfill whose badges are taken back."""
    until: orm.Mapped[dt.datetime | None]
    """Only badges that were recorded before then, and from ``since`` on. Null: all. Of
    a retry: when the mapping was removed once more.
    """
    wanted: orm.Mapped[dict[str, t.Any] | None]
    """What else the badges page was filtered by, until the badges are chosen; which
    differences are repaired; or, as hashes, who was erased during the run.
    """
    last_id: orm.Mapped[int | None]
    """The last row that there was when the admin saw how many there are."""
    reached: orm.Mapped[int]
    """The last row that was looked at."""
    number: orm.Mapped[int]
    """How many badges the admin has confirmed, or rows there are to remove. 0: they are
    not counted yet.
    """
    reason: orm.Mapped[str | None]
    """Why, in words that the members may read."""
    tell_pending: orm.Mapped[bool | None]
    """Whether Credly is to tell those who have not accepted the badge."""
    tell_accepted: orm.Mapped[bool | None]
    """Whether Credly is to tell those who have."""


class BatchRow(Base):
    """A badge that an undo has chosen, and what came of it."""

    __table__ = tables.BATCH_ROW

    batch_id: orm.Mapped[int]
    issuance_id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    outcome: orm.Mapped[str]
    """One of :data:`flask_credly.ledger.undos.Outcome`."""

    issuance: orm.Mapped[Issuance] = orm.relationship(lazy="raise", viewonly=True)


class DifferenceRow(Base):
    """A badge about which a comparison has found that not all agree: as few as are
    shown and repaired at once.
    """

    __table__ = tables.DIFFERENCE_ROW

    id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    batch_id: orm.Mapped[int]
    found_at: orm.Mapped[dt.datetime]
    bucket: orm.Mapped[str]
    """How they differ: see :data:`flask_credly.ledger.comparisons.Bucket`."""
    issuance_id: orm.Mapped[int | None]
    """Its row. Of a badge that has none: another row of the same member."""
    badge_id: orm.Mapped[str | None]
    """Credly's id of the badge."""
    kind: orm.Mapped[str | None]
    """With the two that follow: the completion, where no row has it."""
    course_id: orm.Mapped[str | None]
    member_id: orm.Mapped[str | None]
    completed_at: orm.Mapped[dt.datetime | None]
    state: orm.Mapped[str | None]
    """The row's, as it was compared: what has changed since is not repaired."""
    badge_state: orm.Mapped[str | None]
    outcome: orm.Mapped[str | None]
    """Why a repair has left it: ``"changed"`` since, or ``"no course"`` is known."""


class Unrecorded(Base):
    """A community's count of completions that could not be recorded."""

    __table__ = tables.UNRECORDED

    tenant: orm.Mapped[str]
    """Empty: of which community is not known."""
    number: orm.Mapped[int]
    since: orm.Mapped[dt.datetime | None]
    """When the first of them came in. Null: none is counted."""


class Attempt(Base):
    """One request about one badge, written before it goes out: to issue, revoke or
    replace it.
    """

    __table__ = tables.ATTEMPT

    id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    issuance_id: orm.Mapped[int]
    action: orm.Mapped[str]
    """One of :data:`Action`."""
    lease: orm.Mapped[str]
    started_at: orm.Mapped[dt.datetime]
    finished_at: orm.Mapped[dt.datetime | None]
    """Null: on its way, or the worker died before it could write down an answer."""
    answer: orm.Mapped[str | None]
    """One of :data:`flask_credly.ledger.decide.Answer`, or ``"died"``."""
    status: orm.Mapped[int | None]
    detail: orm.Mapped[str | None]


class LogEntry(Base):
    """One row of the error log that the admin reads.

    Has no foreign key to the account: see :class:`Batch`. None is written without one.
    """

    __table__ = tables.LOG_ENTRY

    id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    at: orm.Mapped[dt.datetime]
    error: orm.Mapped[str]
    details: orm.Mapped[str]
    issuance_id: orm.Mapped[int | None]


class AuditEntry(Base):
    """One thing that an admin or a command has done. Survives Remove."""

    __table__ = tables.AUDIT_ENTRY

    id: orm.Mapped[int]
    tenant: orm.Mapped[str]
    at: orm.Mapped[dt.datetime]
    actor: orm.Mapped[str]
    """As the host names the admin. Empty: unknown."""
    action: orm.Mapped[str]
    """One of :data:`flask_credly.ledger.audit.ACTIONS`."""
    target: orm.Mapped[str]
    outcome: orm.Mapped[str]
    """One of :data:`flask_credly.ledger.audit.OUTCOMES`."""
