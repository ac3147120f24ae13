"""What must hold whatever happened, judged by Credly's book and not by our tables
alone.

Each function takes what it needs and returns the violations in words. The storm, the
crash points and the state machine share them.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import itertools
import types
import typing as t

from flask_credly.ledger.log import CONNECTION_EXPIRED
from flask_credly.ledger.log import ISSUANCE_FAILED
from flask_credly.ledger.log import RATE_LIMIT
from flask_credly.ledger.reasons import explain
from flask_credly.models import Attempt
from flask_credly.models import Issuance
from flask_credly.models import LogEntry

Badge = tuple[str, str]
"""A member's id and a template's id: what there may be one of."""

Rows = cabc.Sequence[Issuance]
Violations = list[str]

MADE = ("issued", "held")
SHOWN = ("failed", "cancelled")
FINAL = (*MADE, *SHOWN, "revoked", "replaced")

COUNTED = ("issued", "found", "held", "refused", "unknown")
"""Answers that use up one of the two attempts."""


@dataclasses.dataclass(frozen=True)
class Booked:
    """A badge in Credly's book."""

    member_id: str
    template_id: str
    at: dt.datetime

    @property
    def badge(self) -> Badge:
        return self.member_id, self.template_id


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A completion that the host could not commit.

    :param excused: Whether the host's own database was away.
    """

    member_id: str
    error: str
    excused: bool


def read_book(
    badges: cabc.Iterable[dict[str, t.Any]], member_of: cabc.Callable[[str], str]
) -> list[Booked]:
    """Read the simulator's badges.

    :param member_of: Finds the member's id by the address on the badge.
    """
    return [
        Booked(
            member_id=member_of(badge["recipient_email"]),
            template_id=badge["badge_template"]["id"],
            at=dt.datetime.fromisoformat(badge["created_at"]),
        )
        for badge in badges
    ]


def badge_of(row: Issuance) -> Badge:
    """Get what the row is about."""
    return row.member_id, row.template_id


def lost(
    rows: Rows, book: cabc.Iterable[Booked], acknowledged: cabc.Iterable[Badge]
) -> Violations:
    """I1: what was committed is in the book, or is shown with a reason."""
    booked = {entry.badge for entry in book}
    by_badge = {badge_of(row): row for row in rows}
    found = []

    for badge in acknowledged:
        row = by_badge.get(badge)

        if badge in booked or (row and row.state in SHOWN and explain(row)):
            continue

        state = f"is {row.state!r} ({explain(row)})" if row else "has no row"
        found.append(f"{_name(badge)} was committed, is not in the book and {state}")

    return found


def duplicated(book: cabc.Iterable[Booked]) -> Violations:
    """I2: a member has a badge once."""
    count = collections.Counter(entry.badge for entry in book)
    return [
        f"{_name(badge)} is in the book {n} times"
        for badge, n in count.items()
        if n > 1
    ]


def false_issued(rows: Rows, book: cabc.Iterable[Booked]) -> Violations:
    """I3: what is said to be issued is in the book."""
    booked = {entry.badge for entry in book}
    return [
        f"{_name(badge_of(row))} is {row.state!r} and not in the book"
        for row in rows
        if row.state in MADE and badge_of(row) not in booked
    ]


def false_failed(rows: Rows, book: cabc.Iterable[Booked]) -> Violations:
    """I4: what is said to have failed, and is not looked at once more, is not in the
    book.
    """
    booked = {entry.badge for entry in book}
    return [
        f"{_name(badge_of(row))} is {row.state!r} ({explain(row)}) and in the book"
        for row in rows
        if row.state in SHOWN and row.action is None and badge_of(row) in booked
    ]


def strayed(
    rows: Rows, addresses: cabc.Iterable[str], domain: str, organization_id: str
) -> Violations:
    """I13: a community's rows and its organization's book hold its own members only.

    :param rows: The community's.
    :param addresses: Those in the organization's book.
    :param domain: What every address of the community ends in.
    """
    found = [
        f"a row of {_name(badge_of(row))} has another's address or organization"
        for row in rows
        if not row.email.endswith(domain) or row.organization_id != organization_id
    ]
    return found + [
        f"{address} is in the book of another community's organization"
        for address in addresses
        if not address.endswith(domain)
    ]


def starved(latency: cabc.Sequence[float], within: float) -> Violations:
    """I14: a community without trouble of its own is served while another has some.

    :param latency: Seconds from the completion to the badge, sorted.
    :param within: Seconds within which half of them have to be there.
    """
    if not latency or (half := latency[len(latency) // 2]) <= within:
        return []

    return [f"half of its badges took longer than {half:.1f} s, more than {within:g}"]


def unexpected(
    book: cabc.Iterable[Booked], attempted: cabc.Container[Badge]
) -> Violations:
    """I5: nothing is in the book that nobody completed."""
    return [
        f"{_name(entry.badge)} is in the book and was never completed"
        for entry in book
        if entry.badge not in attempted
    ]


def sent_unmapped(
    rows: Rows,
    attempts: cabc.Iterable[Attempt],
    removed_at: cabc.Mapping[tuple[str, str], dt.datetime],
) -> Violations:
    """I5: no request was begun after the course's mapping was gone.

    :param removed_at: Database's times by kind and course.
    """
    by_id = {row.id: row for row in rows}
    found = []

    for attempt in attempts:
        row = by_id[attempt.issuance_id]
        removed = removed_at.get((row.kind, row.course_id))

        if removed is not None and attempt.started_at > removed:
            found.append(
                f"{_name(badge_of(row))} was sent after its mapping was removed"
            )

    return found


def too_many_posts(
    rows: Rows,
    attempts: cabc.Iterable[Attempt],
    posts: cabc.Mapping[Badge, int],
    retries: cabc.Mapping[int, int] = types.MappingProxyType({}),
) -> Violations:
    """I6: every request was written down before it went out, and two count at most.

    :param posts: Requests to issue that the simulator received.
    :param retries: How often an admin had a row tried again, by its id: each time with
        two more.
    """
    by_row: dict[int, list[Attempt]] = collections.defaultdict(list)

    for attempt in attempts:
        by_row[attempt.issuance_id].append(attempt)

    found = []
    written: collections.Counter[Badge] = collections.Counter()

    for row in rows:
        answers = [attempt.answer for attempt in by_row[row.id]]
        written[badge_of(row)] += len(answers)
        counted = sum(answer in COUNTED for answer in answers)

        if counted > 2 + 2 * retries.get(row.id, 0):
            found.append(f"{_name(badge_of(row))} had {counted} attempts: {answers}")

    for badge, number in posts.items():
        if number > written[badge]:
            found.append(
                f"{_name(badge)} was sent {number} times, and {written[badge]} were"
                " written down"
            )

    return found


def sent_while_closed(
    sent: cabc.Iterable[float], closed: cabc.Iterable[tuple[float, float]]
) -> Violations:
    """I6: nothing was sent while the gate was closed.

    :param sent: Times of requests to issue.
    :param closed: Spans in which nothing could be on its way any more.
    """
    sent = list(sent)
    found = []

    for begin, end in closed:
        if number := sum(begin < at < end for at in sent):
            found.append(f"{number} requests in {end - begin:.1f} s of a closed gate")

    return found


def too_many_tokens(fetched: int, allowed: int) -> Violations:
    """I7: a token is fetched once, and once more for each that ended.

    :param fetched: Tokens that Credly gave.
    :param allowed: Connects, tokens that ended, and workers that died.
    """
    return [f"{fetched} tokens instead of {allowed}"] if fetched > allowed else []


def wrong_log(
    rows: Rows,
    log: cabc.Sequence[LogEntry],
    *,
    expiries: int,
    rate_limits: int,
    pause: float = 1.0,
) -> Violations:
    """I8: one entry for a final failure, one for a pause and one for an expiry.

    :param rate_limits: Answers 429 that Credly gave.
    :param pause: Seconds of the shortest pause that they asked for.
    """
    failures = collections.Counter(
        entry.issuance_id for entry in log if entry.error == ISSUANCE_FAILED
    )
    found = [
        f"{_name(badge_of(row))} is {row.state!r} and has {failures[row.id]} entries"
        for row in rows
        if failures[row.id] != (row.state == "failed")
    ]
    expired = sum(entry.error == CONNECTION_EXPIRED for entry in log)

    if expired != expiries:
        found.append(f"{expired} entries for {expiries} expiries")

    paused = [entry.at for entry in log if entry.error == RATE_LIMIT]

    if len(paused) > rate_limits:
        found.append(f"{len(paused)} pauses after {rate_limits} answers 429")

    for one, next_ in itertools.pairwise(sorted(paused)):
        if (gap := (next_ - one).total_seconds()) < pause:
            found.append(f"two entries for one pause, {gap:.3f} s apart")

    return found


def leaked(
    canaries: cabc.Mapping[str, str], places: cabc.Iterable[tuple[str, bytes]]
) -> Violations:
    """I9: no address, name, secret or token is where it does not belong.

    :param canaries: What must not be found, by what it is.
    :param places: What was searched, by where it is.
    """
    found: dict[str, None] = {}

    for where, content in places:
        for what, canary in canaries.items():
            if canary and canary.encode() in content:
                found.setdefault(f"{what} in {where}")

    return list(found)


def host_broken(
    broken: cabc.Iterable[str], refused: cabc.Iterable[Refusal]
) -> Violations:
    """I10: no completion of the host's failed because of us.

    :param broken: Errors that the signal raised.
    """
    return [f"the signal raised: {error}" for error in broken] + [
        f"the host's commit for {refusal.member_id} failed: {refusal.error}"
        for refusal in refused
        if not refusal.excused
    ]


def half_kept(
    halves: cabc.Mapping[str, cabc.Sequence[str]], told: cabc.Collection[str]
) -> Violations:
    """I12: a transaction of the host's is kept whole or not at all, and is there where
    the host was told so.

    :param halves: Which of a transaction's two rows are there, by its name.
    :param told: The transactions that the host was told are committed.
    """
    whole = ["first", "second"]
    return [
        f"of the host's transaction {name} only {', '.join(there)} is there"
        for name, there in sorted(halves.items())
        if sorted(there) != whole
    ] + [
        f"the host's transaction {name} was committed and is not there"
        for name in sorted(told)
        if name not in halves
    ]


def host_lost(there: cabc.Collection[str], told: cabc.Iterable[str]) -> Violations:
    """I12: the host's own row is there where the host was told so.

    :param there: Members with a row of the host's.
    """
    return [
        f"the host's row of {member_id} was committed and is not there"
        for member_id in told
        if member_id not in there
    ]


def twice_in_force(badges: cabc.Iterable[dict[str, t.Any]]) -> Violations:
    """I15: a member has one badge of a template in force."""
    count = collections.Counter(
        (badge["recipient_email"], badge["badge_template"]["id"])
        for badge in badges
        if badge["state"] in ("pending", "accepted")
        and badge["replacement_badge_id"] is None
    )
    return [
        f"{address}/{template_id[:8]} has {number} badges in force"
        for (address, template_id), number in count.items()
        if number > 1
    ]


def misshown(rows: Rows, badges: cabc.Mapping[str, dict[str, t.Any]]) -> Violations:
    """I15: the ledger says of each badge what the book says: in force, revoked, or
    replaced, and by which.

    :param badges: The book, by Credly's ids.
    """
    found = []

    for row in rows:
        if row.badge_id is None:
            continue

        badge = badges[row.badge_id]
        replaced_by = badge["replacement_badge_id"]
        true = "revoked" if badge["state"] == "revoked" else "issued"
        true = "replaced" if replaced_by else true

        if (row.state, row.replaced_by) != (true, replaced_by):
            found.append(f"{_name(badge_of(row))} is {row.state!r}, and truly {true!r}")

    return found


def differing(rows: Rows, badges: cabc.Iterable[dict[str, t.Any]]) -> Violations:
    """I15: as :func:`misshown`, and each badge of the book is in a row."""
    book = {badge["id"]: badge for badge in badges}
    known = {row.badge_id for row in rows}
    return misshown(rows, book) + [
        f"badge {id_} is in the book and in no row" for id_ in book if id_ not in known
    ]


def too_often(
    rows: Rows, attempts: cabc.Iterable[Attempt], ordered: cabc.Mapping[int, int]
) -> Violations:
    """I15: what is revoked or replaced is asked for twice at most, and what is revoked
    was ordered to be.

    :param ordered: How often a row's badge was ordered to be revoked.
    """
    counted = collections.Counter(
        (each.issuance_id, each.action)
        for each in attempts
        if each.action != "issue" and each.answer in (*COUNTED, "revoked", "outlived")
    )
    return [
        f"badge {id_} had {number} attempts to {action}"
        for (id_, action), number in counted.items()
        if number > 2 * (ordered[id_] if action == "revoke" else 1)
    ] + [
        f"{_name(badge_of(row))} is revoked, and nobody wanted it"
        for row in rows
        if row.state == "revoked" and not ordered[row.id]
    ]


def unsettled(rows: Rows, attempts: cabc.Iterable[Attempt] = ()) -> Violations:
    """I11: in the end every row is in a final state, nothing is to be done about it,
    and every attempt has an end.
    """
    final = {
        row.id
        for row in rows
        if row.state in FINAL and row.action is None and row.due_at is None
    }
    names = {row.id: _name(badge_of(row)) for row in rows}
    found = [
        f"{names[row.id]} is still {row.state!r}, action {row.action!r}"
        f" ({explain(row)})"
        for row in rows
        if row.id not in final
    ]
    return found + [
        f"{names[attempt.issuance_id]} is settled, and one of its attempts is open"
        for attempt in attempts
        if attempt.finished_at is None and attempt.issuance_id in final
    ]


def _name(badge: Badge) -> str:
    member_id, template_id = badge
    return f"{member_id}/{template_id[:8]}"
