"""The verdict: figures in Jepsen's words, and what was violated."""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

from flask_credly.catalog import DEFAULT_TENANT
from flask_credly.ledger.reasons import explain
from flask_credly.models import Attempt
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.testing import Received

from ..support import invariants
from ..support.invariants import Badge
from ..support.invariants import Booked
from ..support.invariants import Refusal
from .host import COURSE
from .host import domain_of
from .host import Entry
from .host import member_of
from .host import TROUBLED

STARVED = 30.0
"""Seconds within which half of the badges have to be there, in a community that is
well: many times what it takes, and less than a storm lasts.
"""


@dataclasses.dataclass(frozen=True)
class Organization:
    """What Credly has of a community.

    :param received: The requests to it.
    :param done: What was done to it alone.
    :param closed: Spans in which nothing may have been sent to it.
    """

    organization_id: str
    badges: list[dict[str, t.Any]]
    received: list[Received]
    done: collections.Counter[str]
    closed: list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is left after a storm.

    :param organizations: By the community.
    :param journals: What each web process tried and was told.
    :param template_of: The badge of a community's course.
    :param database_away: Spans in which the database was stopped.
    :param removed_at: When a community's mapping was removed.
    :param must_cancel: Members whose course was unmapped before a worker could begin,
        with their community.
    :param ordered: How often a row's badge was ordered to be revoked.
    :param canaries: What must not be in Redis or a log.
    :param secrets: What must not be in the database either.
    """

    ours: bool
    organizations: dict[str, Organization]
    journals: dict[str, list[Entry]]
    template_of: dict[tuple[str, str], str]
    rows: list[Issuance]
    attempts: list[Attempt]
    log: list[LogEntry]
    problems: list[str]
    done: collections.Counter[str]
    notes: list[str]
    database_away: list[tuple[float, float]]
    removed_at: dict[tuple[str, str], dt.datetime]
    must_cancel: list[tuple[str, str]]
    ordered: collections.Counter[int]
    canaries: dict[str, str]
    secrets: dict[str, str]
    redis: list[bytes]
    logs: list[tuple[str, bytes]]
    raw: bytes
    halves: dict[str, list[str]]
    completed: set[tuple[str, str]]
    naive_rows: dict[str, str]
    naive_failed: set[str]
    naive_started: set[str]
    quiet: bool
    to_quiet: float
    seconds: float

    @property
    def badges(self) -> list[dict[str, t.Any]]:
        return [one for each in self.organizations.values() for one in each.badges]

    @property
    def received(self) -> list[Received]:
        return [one for each in self.organizations.values() for one in each.received]

    def of(self, tenant: str) -> Evidence:
        """What there is of one community."""
        rows = [row for row in self.rows if row.tenant == tenant]
        ids = {row.id for row in rows}
        return dataclasses.replace(
            self,
            organizations={tenant: self.organizations[tenant]},
            journals={
                name: [entry for entry in journal if entry.tenant == tenant]
                for name, journal in self.journals.items()
            },
            rows=rows,
            attempts=[one for one in self.attempts if one.issuance_id in ids],
            log=[entry for entry in self.log if entry.tenant == tenant],
            done=self.done + self.organizations[tenant].done,
            removed_at={
                about: at for about, at in self.removed_at.items() if about[0] == tenant
            },
            must_cancel=[one for one in self.must_cancel if one[0] == tenant],
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a storm.

    :param figures: By their names.
    :param communities: The same of each community, where there are several.
    :param violations: In words, by the invariant.
    """

    figures: dict[str, float]
    communities: dict[str, dict[str, float]]
    violations: dict[str, list[str]]
    notes: list[str]


def judge(evidence: Evidence) -> Verdict:
    """Judge by the simulator's book."""
    figures = _count(evidence)

    if not evidence.ours:
        return Verdict(figures, {}, {}, evidence.notes)

    parts = {tenant: evidence.of(tenant) for tenant in evidence.organizations}
    several = len(parts) > 1
    found = collections.defaultdict(list, _find_violations(evidence))
    well = sorted(
        seconds
        for tenant, part in parts.items()
        if several and tenant != TROUBLED
        for seconds in _latency(part, invariants.read_book(_first(part), member_of))
    )
    figures |= {
        "communities": len(parts),
        "troubles": evidence.done["troubles"],
        "well p50": _quantile(well, 0.5),
        "well p99": _quantile(well, 0.99),
        "well max": _quantile(well, 1),
    }

    for tenant, part in parts.items():
        for name, words in _find_violations_of(tenant, part, several=several).items():
            found[name] += [f"{tenant}: {text}" if several else text for text in words]

    return Verdict(
        figures,
        {tenant: _count(part) for tenant, part in parts.items()} if several else {},
        {name: words for name, words in sorted(found.items()) if words},
        evidence.notes,
    )


def _badges(evidence: Evidence, what: str) -> dict[Badge, float]:
    """The time of each completion of which the journals say this."""
    return {
        (
            entry.member_id,
            evidence.template_of[entry.tenant, entry.course_id],
        ): entry.at
        for journal in evidence.journals.values()
        for entry in journal
        if entry.what == what
    }


def _acknowledged(evidence: Evidence) -> dict[Badge, float]:
    """Those that had a mapping when they were committed."""
    removed = {
        evidence.template_of[about]: at.timestamp()
        for about, at in evidence.removed_at.items()
    }
    return {
        badge: at
        for badge, at in _badges(evidence, "acknowledged").items()
        if at <= removed.get(badge[1], at)
    }


def _find_violations_of(
    tenant: str, evidence: Evidence, *, several: bool
) -> dict[str, list[str]]:
    """Judge what there is of one community."""
    everything, tries = evidence.rows, evidence.attempts
    organization = evidence.organizations[tenant]
    # What an admin has corrected or issued again is judged apart.
    rows = [row for row in everything if row.cycle == 1]
    attempts = [one for one in tries if one.action == "issue"]
    book = invariants.read_book(_first(evidence), member_of)
    statuses = _statuses(evidence)
    posts = [one for one in evidence.received if one.kind in ("issue", "batch")]
    done = evidence.done
    killed = done["parent"] + done["horse"] + done["both"]
    removed_at = {
        (COURSE.kind, course_id): at
        for (_, course_id), at in evidence.removed_at.items()
    }
    addresses = [badge["recipient_email"] for badge in evidence.badges]
    return {
        "I1 lost": invariants.lost(rows, book, _acknowledged(evidence)),
        "I2 duplicated": invariants.duplicated(book),
        "I3 false issued": invariants.false_issued(rows, book),
        "I4 false failed": invariants.false_failed(rows, book),
        "I5 unexpected": [
            *invariants.unexpected(book, _badges(evidence, "attempted")),
            *invariants.sent_unmapped(everything, attempts, removed_at),
            *_not_cancelled(evidence, book),
        ],
        "I6 requests": [
            *invariants.too_many_posts(everything, attempts, _count_posts(posts)),
            *invariants.sent_while_closed(
                [one.at for one in posts], organization.closed
            ),
        ],
        "I7 tokens": invariants.too_many_tokens(
            statuses["token", 200],
            done["connects"]
            + done["token revocations"]
            + done["database stops"]  # a token that could not be saved
            + killed,
        ),
        "I8 log": invariants.wrong_log(
            rows,
            evidence.log,
            expiries=done["expiries"],
            rate_limits=sum(
                number for (_, status), number in statuses.items() if status == 429
            ),
        ),
        "I11 unsettled": invariants.unsettled(everything, tries),
        "I13 strayed": invariants.strayed(
            everything, addresses, domain_of(tenant), organization.organization_id
        ),
        "I14 starved": invariants.starved(_latency(evidence, book), STARVED)
        if several and tenant != TROUBLED
        else [],
        "I15 actions": [
            *invariants.twice_in_force(evidence.badges),
            *invariants.differing(everything, evidence.badges),
            *invariants.too_often(everything, tries, evidence.ordered),
        ],
    }


def _first(evidence: Evidence) -> list[dict[str, t.Any]]:
    """The badges in the book but for those that an admin has asked for."""
    later = {row.badge_id for row in evidence.rows if row.cycle > 1}
    return [badge for badge in evidence.badges if badge["id"] not in later]


def _find_violations(evidence: Evidence) -> dict[str, list[str]]:
    """Judge what is nobody's or everybody's."""
    redis = [("Redis", content) for content in evidence.redis]
    known = set(evidence.organizations)
    return {
        "I9 leaked": invariants.leaked(
            evidence.canaries | evidence.secrets, [*redis, *evidence.logs]
        )
        + invariants.leaked(evidence.secrets, [("the database", evidence.raw)]),
        "I10 host": invariants.host_broken(
            _said(evidence, "broken"), _refusals(evidence)
        ),
        "I12 host's rows": invariants.half_kept(evidence.halves, _kept(evidence))
        + invariants.host_lost(
            {" ".join(one) for one in evidence.completed},
            [" ".join(one) for one in _kept_members(evidence)],
        ),
        "I13 strayed": [
            f"a row of {row.member_id} is of {row.tenant!r}, which there is not"
            for row in evidence.rows
            if row.tenant not in known
        ],
        "manners": sorted(
            {text for text in evidence.problems if not text.startswith("second badge")}
        ),
    }


def _not_cancelled(evidence: Evidence, book: list[Booked]) -> list[str]:
    states = {row.member_id: row.state for row in evidence.rows}
    booked = {entry.member_id for entry in book}
    return [
        f"{member_id} waited when its mapping was removed, and is"
        f" {states.get(member_id)!r}, in the book: {member_id in booked}"
        for _, member_id in evidence.must_cancel
        if states.get(member_id) != "cancelled" or member_id in booked
    ]


def _kept(evidence: Evidence) -> set[str]:
    """The pairs of rows that the host was told are committed."""
    return {
        entry.member_id
        for journal in evidence.journals.values()
        for entry in journal
        if entry.what == "kept"
    }


def _kept_members(evidence: Evidence) -> set[tuple[str, str]]:
    """The members of whom the host was told that its own row is committed, with their
    community.
    """
    return {
        (entry.tenant, entry.member_id)
        for journal in evidence.journals.values()
        for entry in journal
        if entry.what == "acknowledged" and not entry.member_id.startswith("pair-")
    }


def _statuses(evidence: Evidence) -> collections.Counter[tuple[str, int | None]]:
    return collections.Counter((one.kind, one.status) for one in evidence.received)


def _count_posts(posts: cabc.Iterable[Received]) -> dict[Badge, int]:
    requests = [one.json for one in posts if isinstance(one.json, dict)]
    bodies = [body for each in requests for body in each.get("badges", [each])]
    return collections.Counter(
        (member_of(body["recipient_email"]), body["badge_template_id"])
        for body in bodies
    )


def _said(evidence: Evidence, what: str) -> list[str]:
    return [
        f"{entry.member_id}: {entry.extra}"
        for journal in evidence.journals.values()
        for entry in journal
        if entry.what == what
    ]


def _refusals(evidence: Evidence) -> list[Refusal]:
    """The completions that were not committed. The database's own absence excuses: it
    was away, or this is the first use of a connection that it broke. So does a deadlock
    that the host's transactions have brought about.
    """
    found = []

    for journal in evidence.journals.values():
        began: dict[tuple[str, str], float] = {}
        succeeded: list[float] = []  # when those began that were committed

        for entry in journal:
            who = entry.tenant, entry.member_id

            if entry.what == "attempted":
                began[who] = entry.at
            elif entry.what == "acknowledged":
                succeeded.append(began[who])
            elif entry.what == "refused":
                excused = _is_deadlock(entry) or any(
                    away <= entry.at
                    and (began[who] <= back or not any(at > back for at in succeeded))
                    for away, back in evidence.database_away
                )
                found.append(Refusal(entry.member_id, entry.extra, excused))

    return found


def _is_deadlock(entry: Entry) -> bool:
    return entry.member_id.startswith("pair-") and any(
        words in entry.extra for words in ("Deadlock found", "deadlock detected")
    )


def _latency(evidence: Evidence, book: list[Booked]) -> list[float]:
    """Seconds from each commit to its badge, sorted."""
    first: dict[Badge, float] = {}

    for entry in book:
        first.setdefault(entry.badge, entry.at.timestamp())

    return sorted(
        max(0.0, first[badge] - at)
        for badge, at in _acknowledged(evidence).items()
        if badge in first
    )


def _count(evidence: Evidence) -> dict[str, float]:
    book = invariants.read_book(_first(evidence), member_of)
    attempted = _badges(evidence, "attempted")
    acknowledged = _acknowledged(evidence)
    booked = collections.Counter(entry.badge for entry in book)
    latency = _latency(evidence, book)
    made, failed, cancelled = _claims(evidence)
    shown = failed | cancelled
    kinds = collections.Counter(one.kind for one in evidence.received)
    done = evidence.done
    missing = [badge for badge in acknowledged if badge not in booked]
    return {
        "attempted": len(attempted),
        "acknowledged": len(acknowledged),
        "ok": len(acknowledged) - len(missing),
        "lost": sum(badge not in shown for badge in missing),
        "may come back": len(
            {badge[0] for badge in missing if badge not in shown}
            & evidence.naive_started
        ),
        "failed, shown": sum(badge in failed for badge in missing),
        "cancelled": sum(badge in cancelled for badge in missing),
        "duplicated": sum(number - 1 for number in booked.values()),
        "unexpected": sum(badge not in attempted for badge in booked),
        "false issued": sum(badge not in booked for badge in made),
        "false failed": sum(badge in booked for badge in shown - made),
        "not recorded": sum(badge not in made for badge in booked),
        "recovered": sum(
            badge in booked for badge in attempted if badge not in acknowledged
        ),
        "parents killed": done["parent"],
        "horses killed": done["horse"],
        "both killed": done["both"],
        "webs killed": done["web"],
        "flushes": done["flushes"],
        "Redis restarts": done["restarts"],
        "database stops": done["database stops"],
        "revoked": sum(badge["state"] == "revoked" for badge in evidence.badges),
        "replaced": sum(
            badge["replacement_badge_id"] is not None for badge in evidence.badges
        ),
        "issued again": _acts(evidence)["issue again"],
        "posts": kinds["issue"] + kinds["batch"],
        "batches": kinds["batch"],
        "look-ups": kinds["look-up"],
        "token calls": kinds["token"],
        "host refused": len(_refusals(evidence)),
        "deadlocks": sum(
            entry.what == "refused" and _is_deadlock(entry)
            for journal in evidence.journals.values()
            for entry in journal
        ),
        "quiet": round(evidence.to_quiet, 1),
        "p50": _quantile(latency, 0.5),
        "p99": _quantile(latency, 0.99),
        "max": _quantile(latency, 1),
        "seconds": round(evidence.seconds, 1),
    }


def _acts(evidence: Evidence) -> collections.Counter[str]:
    """What the admin has done, by what it is called."""
    return sum(
        (each.done for each in evidence.organizations.values()),
        collections.Counter[str](),
    )


def _claims(evidence: Evidence) -> tuple[set[Badge], set[Badge], set[Badge]]:
    """What is said to be made, and what is shown to have failed or to be cancelled."""
    if evidence.ours:
        by_state: dict[str, set[Badge]] = collections.defaultdict(set)

        for row in evidence.rows:
            if row.cycle == 1 and (row.state not in invariants.SHOWN or explain(row)):
                by_state[row.state].add(invariants.badge_of(row))

        made = set().union(
            *(by_state[state] for state in (*invariants.MADE, "revoked", "replaced"))
        )
        return made, by_state["failed"], by_state["cancelled"]

    template_id = evidence.template_of[DEFAULT_TENANT, COURSE.id]
    rows = evidence.naive_rows.items()
    return (
        {(member_id, template_id) for member_id, status in rows if status == "issued"},
        {(member_id, template_id) for member_id in evidence.naive_failed},
        set(),
    )


def _quantile(values: list[float], share: float) -> float:
    if not values:
        return 0.0

    return round(values[min(len(values) - 1, int(share * len(values)))], 2)
