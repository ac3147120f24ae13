"""What differs between the host, the ledger and Credly.

All that was read is kept in a file, so that the memory does not grow with it: ids,
hashes, states and times, and neither addresses nor names. SQLite has deleted the file
once it is open, so that nothing of it is left, whatever ends the process.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import hashlib
import itertools
import sqlite3
import typing as t
import uuid

from ..catalog import Completion
from ..catalog import Kind
from ..catalog import Member
from ..credly import Badge
from ..credly import plain_text
from ..credly import read_time
from ..ledger.backfills import Mapped
from ..ledger.comparing import IN_MOTION
from ..ledger.comparisons import Bucket
from ..ledger.comparisons import BUCKETS as BUCKETS
from .whose import day_of

DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Difference:
    """One badge about which the three do not agree.

    :param row_id: Its number in the ledger. ``None``: it has none.
    :param badge_id: Credly's id. ``None``: there is none.
    :param course: The course, where it is not the row's.
    :param member_id: The host's id of the member, where it is not the row's.
    :param completed_at: When the member completed it, likewise.
    :param like: A row of the same member, where the badge has none.
    :param state: The row's state, as it was read.
    :param badge_state: The badge's in the ledger, as it was read.
    :param number: Its own number, where it is stored.
    """

    bucket: Bucket
    row_id: int | None = None
    badge_id: str | None = None
    course: Mapped | None = None
    member_id: str | None = None
    completed_at: dt.datetime | None = None
    like: int | None = None
    state: str | None = None
    badge_state: str | None = None
    number: int | None = None


_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -16000;

CREATE TABLE badge (id, earner, template, state, state_at, issued, expires,
    says_expiry, address);
CREATE TABLE ledger (id INTEGER PRIMARY KEY, badge, earner, course, template, state,
    badge_state, expires, sent, was_sent, address, test, withdrawn, moves, old, late,
    early);
CREATE TABLE done (course, member, earner, at, completion, whole);
CREATE TABLE asked (course PRIMARY KEY);
CREATE TABLE single (template PRIMARY KEY);
CREATE TABLE pair (row INTEGER PRIMARY KEY, badge);
CREATE TABLE taken (badge INTEGER PRIMARY KEY);
CREATE TABLE found (bucket, row, badge, course, member, at, "like");
"""

_INDEXES = """
CREATE INDEX badge_by_id ON badge (id);
CREATE INDEX ledger_by_badge ON ledger (badge) WHERE badge IS NOT NULL;
"""

# All but the last of what was listed several times: lists move.
_FORGET_EARLIER = """
DELETE FROM badge
    WHERE id IN (SELECT id FROM badge GROUP BY id HAVING count(*) > 1)
    AND rowid < (SELECT max(rowid) FROM badge AS later WHERE later.id = badge.id);
"""

# What Credly has and no row does, and whose of it is known here.
_FREE = """
CREATE TABLE free AS SELECT rowid AS badge, earner, template FROM badge
    WHERE NOT EXISTS (SELECT 1 FROM ledger WHERE ledger.badge = badge.id);
CREATE INDEX free_by_earner ON free (earner, template);
CREATE TABLE ours (earner PRIMARY KEY, "like");
INSERT OR REPLACE INTO ours SELECT earner, id FROM ledger
    WHERE EXISTS (SELECT 1 FROM free WHERE free.earner = ledger.earner) AND NOT test;
"""

_DONE = """
CREATE INDEX done_by_earner ON done (earner, course);
CREATE INDEX ledger_by_earner ON ledger (earner, course);
"""

_TWICE = """
CREATE TABLE twice AS SELECT row FROM (
    SELECT l.id AS row, row_number() OVER (
        PARTITION BY l.earner, l.template ORDER BY b.issued, l.id) AS number
    FROM (SELECT earner, template FROM ledger
        WHERE state = 'issued' AND badge IS NOT NULL AND NOT test
            AND template IN (SELECT template FROM single)
        GROUP BY earner, template HAVING count(*) > 1) AS several
    JOIN ledger l ON l.earner = several.earner AND l.template = several.template
    JOIN badge b ON b.id = l.badge
    WHERE l.state = 'issued' AND NOT l.test AND b.state IN ('pending', 'accepted')
        AND (b.expires IS NULL OR b.expires > :began))
WHERE number > 1;
"""

# The first that fits. A badge without a state is one that cannot be read.
_VERDICT = """
CREATE TABLE verdict AS SELECT l.id AS row, CASE
    WHEN l.early THEN NULL
    WHEN pair.row IS NOT NULL THEN 'failed_here'
    WHEN b.id IS NOT NULL AND b.state IS NULL THEN NULL
    WHEN b.id IS NOT NULL THEN CASE
        WHEN l.state IN ('none', 'failed', 'cancelled') THEN 'failed_here'
        WHEN b.template IS NOT NULL AND b.template <> l.template THEN 'differs'
        WHEN b.state IS NOT l.badge_state THEN 'state_differs'
        WHEN l.state IN ('issued', 'held', 'revoked')
            AND (b.state = 'revoked') <> (l.state = 'revoked') THEN 'state_differs'
        WHEN b.says_expiry AND b.expires IS NOT l.expires THEN 'state_differs'
        WHEN l.state = 'issued' AND (
            b.address <> l.address OR l.was_sent AND abs(b.issued - l.sent) >
                CASE WHEN b.issued % 86400 = 0 THEN 172799 ELSE 0 END)
            THEN 'differs'
        WHEN EXISTS (SELECT 1 FROM twice WHERE twice.row = l.id) THEN 'twice'
        WHEN l.state = 'issued' AND NOT l.test AND NOT l.withdrawn
            AND b.state IN ('pending', 'accepted')
            AND l.course IN (SELECT course FROM asked)
            AND NOT EXISTS (SELECT 1 FROM done
                WHERE done.earner = l.earner AND done.course = l.course)
            THEN 'no_longer_completed'
        WHEN l.late THEN 'waiting_too_long'
        ELSE 'agreed' END
    WHEN l.late THEN 'waiting_too_long'
    WHEN NOT :whole THEN NULL
    WHEN l.state = 'issued' OR l.state = 'held' AND l.badge IS NOT NULL
        THEN CASE WHEN l.old THEN 'not_at_credly' ELSE 'moves' END
    WHEN l.state IN ('revoked', 'replaced') THEN 'agreed'
    END AS bucket, l.moves OR b.state_at > :young AS moves
FROM ledger l LEFT JOIN badge b ON b.id = l.badge LEFT JOIN pair ON pair.row = l.id;
UPDATE verdict SET bucket = 'moves'
    WHERE moves AND bucket NOT IN ('agreed', 'waiting_too_long');
INSERT INTO found (bucket, row, badge)
    SELECT v.bucket, v.row, coalesce(p.id, l.badge) FROM verdict v
    JOIN ledger l ON l.id = v.row
    LEFT JOIN pair ON pair.row = v.row LEFT JOIN badge p ON p.rowid = pair.badge
    WHERE v.bucket NOT IN ('agreed', 'moves');
"""


class Comparison:
    """All that was read, side by side. Close it at the end.

    :param began: When the first was asked.
    :param earner_of: Names a member towards Credly.
    :param courses: Those that are mapped.
    :param single: Badge templates of which a member has one badge.
    :param restored: Whether the ledger may lack what was issued.
    :param since: What was completed before is not told of.
    """

    def __init__(
        self,
        began: dt.datetime,
        earner_of: cabc.Callable[[str], str],
        courses: cabc.Sequence[Mapped],
        single: cabc.Iterable[str],
        *,
        restored: bool,
        since: dt.datetime | None = None,
    ) -> None:
        self._since = since
        self.began = began
        self.courses = courses
        self._earner_of = earner_of
        self._restored = restored
        self._templates: dict[str, int] = {}
        self._numbers = {
            (each.kind, each.course_id): number for number, each in enumerate(courses)
        }
        self._counts: dict[str, int] = {}
        # Without a name: a file of its own that is gone once it is closed.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_TABLES)
        self._db.execute("BEGIN")
        self._insert("single", [(self._template(each),) for each in single])

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._db.close()

    def _insert(self, table: str, rows: list[tuple[t.Any, ...]]) -> None:
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)

    def _template(self, id_: str | None) -> int | None:
        if id_ is None:
            return None

        return self._templates.setdefault(id_, len(self._templates))

    # The three sides.

    def add_badges(
        self, badges: cabc.Iterable[Badge], unread: cabc.Iterable[str] = ()
    ) -> None:
        """Add what Credly has. What is listed twice counts as it was listed last.

        :param unread: Ids of badges that cannot be read.
        """
        rows: list[tuple[t.Any, ...]] = [
            (
                _packed(each.id),
                _packed(each.earner_id),
                self._template(each.template_id),
                each.state,
                _seconds(each.state_at),
                _issued(each.issued_at),
                _seconds(each.expires_at),
                each.says_expiry,
                None if each.email is None else _hash(each.email),
            )
            for each in badges
        ]
        rows += [(_packed(id_), *[None] * 8) for id_ in unread]
        self._insert("badge", rows)

    def add_completions(
        self, course: Mapped, completions: cabc.Iterable[tuple[Completion, bool]]
    ) -> None:
        """Add what the host has.

        :param completions: Each with whether its badge could be issued.
        """
        number = self._numbers[course.kind, course.course_id]
        self._insert(
            "done",
            [
                (
                    number,
                    each.member.id,
                    _packed(self._earner_of(each.member.id)),
                    each.completed_at.isoformat(),
                    each.completion_id,
                    whole,
                )
                for each, whole in completions
            ],
        )

    def note_asked(self, course: Mapped) -> None:
        """Note that all completions of a course were added."""
        self._insert("asked", [(self._numbers[course.kind, course.course_id],)])

    def add_rows(self, rows: cabc.Iterable[t.Any]) -> None:
        """Add what the ledger has, in the order of :func:`.comparing.windows`."""
        self._insert(
            "ledger",
            [
                (
                    id_,
                    _packed(badge_id),
                    _packed(self._earner_of(member_id)),
                    self._numbers.get((kind, course_id)),
                    self._template(template_id),
                    state,
                    badge_state,
                    _seconds(expires_at),
                    _seconds(sent),
                    was_sent,
                    _hash(email) if email else None,
                    *flags,
                )
                # Taken apart, and not asked for each column by its name: that took a
                # tenth of the whole comparison.
                for (
                    id_,
                    badge_id,
                    member_id,
                    kind,
                    course_id,
                    template_id,
                    state,
                    badge_state,
                    expires_at,
                    sent,
                    was_sent,
                    email,
                    *flags,
                ) in rows
            ],
        )

    # Side by side.

    def compare(
        self,
        *,
        whole: bool,
        never_there: cabc.Callable[[Mapped, list[Completion]], list[Completion]],
    ) -> None:
        """Find what differs. All was added.

        :param whole: Whether Credly's list was read to its end: only then something is
            missing in it.
        :param never_there: Chooses the completions that the ledger has never had.
        """
        given = {
            "began": int(self.began.timestamp()),
            "young": int((self.began - IN_MOTION).timestamp()),
            "whole": whole,
        }
        self._run(_INDEXES)
        self._run(_FORGET_EARLIER)
        self._run(_FREE)
        self._pair()
        self._run(_DONE)
        self._run(_TWICE, given)
        self._run(_VERDICT, given)
        missing = self._find_unrecorded(never_there, whole)
        self._find_unknown()
        self._counts = dict(
            self._db.execute(
                "SELECT bucket, count(*) FROM verdict WHERE bucket IS NOT NULL"
                " GROUP BY bucket"
            )
        )
        self._counts["moves"] = self._counts.get("moves", 0) + missing

        for bucket in ("not_recorded", "unknown_here"):
            (number,) = self._db.execute(
                "SELECT count(*) FROM found WHERE bucket = ?", (bucket,)
            ).fetchone()
            self._counts[bucket] = number

        (self._counts["not_ours"],) = self._db.execute(
            "SELECT count(*) FROM free"
            " WHERE NOT EXISTS (SELECT 1 FROM taken WHERE taken.badge = free.badge)"
        ).fetchone()

    def _run(self, script: str, given: dict[str, t.Any] | None = None) -> None:
        for statement in filter(str.strip, script.split(";")):
            self._db.execute(
                statement,
                {k: v for k, v in (given or {}).items() if f":{k}" in statement},
            )

    def _pair(self) -> None:
        """Find the badges of rows that have none: by the rules of a look-up."""
        rows = self._db.execute(
            "SELECT id, sent, earner, template FROM ledger WHERE badge IS NULL AND"
            " EXISTS (SELECT 1 FROM free WHERE free.earner = ledger.earner"
            " AND free.template = ledger.template) ORDER BY earner, template, id"
        )
        unique = {each for (each,) in self._db.execute("SELECT template FROM single")}
        pairs: list[tuple[t.Any, ...]] = []

        for (earner, template), of_one in itertools.groupby(rows, lambda row: row[2:]):
            badges = self._db.execute(
                "SELECT badge.rowid, issued, state IN ('pending', 'accepted')"
                " FROM free JOIN badge ON badge.rowid = free.badge"
                " WHERE free.earner = ? AND free.template = ? AND state IS NOT NULL"
                " ORDER BY 3 DESC, issued, badge.rowid",
                (earner, template),
            ).fetchall()
            left = []

            for row_id, sent, *_ in of_one:
                same = next((b for b in badges if _same_time(b[1], sent)), None)

                if same is None:
                    left.append(row_id)
                else:
                    badges.remove(same)
                    pairs.append((row_id, same[0]))

            for row_id in left:
                any_ = next(
                    (
                        (number, issued, stands)
                        for number, issued, stands in badges
                        if stands
                        and (issued is None or self._restored or template in unique)
                    ),
                    None,
                )

                if any_ is not None:
                    badges.remove(any_)
                    pairs.append((row_id, any_[0]))

        self._insert("pair", pairs)
        self._db.execute("INSERT INTO taken SELECT badge FROM pair")

    def _find_unrecorded(
        self,
        never_there: cabc.Callable[[Mapped, list[Completion]], list[Completion]],
        whole: bool,
    ) -> int:
        """Find completions that no row is of: those with a badge at Credly, and those
        without. Get how many are too young to tell.
        """
        young = 0

        for number, course in enumerate(self.courses):
            template = self._template(course.template_id)
            # Where a further completion counts, the ledger is asked for each.
            rows = self._db.execute(
                "SELECT member, at, completion FROM done"
                " WHERE course = :course AND whole AND (:again OR NOT EXISTS"
                " (SELECT 1 FROM ledger WHERE ledger.earner = done.earner"
                " AND ledger.course = done.course)) ORDER BY member",
                {"course": number, "again": bool(course.again)},
            )
            by_member = itertools.groupby(rows, lambda row: t.cast(str, row[0]))

            for chunk in _chunks(by_member):
                given = [_completion(course, *row) for row in chunk]

                for each in never_there(course, given):
                    young += self._add_unrecorded(number, template, each, whole)

        return young

    def _add_unrecorded(
        self, course: int, template: int | None, completion: Completion, whole: bool
    ) -> bool:
        earner = _packed(self._earner_of(completion.member.id))
        at = completion.completed_at
        badge = self._db.execute(
            "SELECT free.badge, badge.id FROM free"
            " JOIN badge ON badge.rowid = free.badge"
            " WHERE free.earner = ? AND free.template = ? AND NOT EXISTS"
            " (SELECT 1 FROM taken WHERE taken.badge = free.badge)"
            " ORDER BY abs(badge.issued - ?), free.badge LIMIT 1",
            (earner, template, _seconds(at)),
        ).fetchone()
        of = (course, completion.member.id, at.isoformat(), None)

        if badge is not None:
            self._insert("taken", [(badge[0],)])
            self._insert("found", [("unknown_here", None, badge[1], *of)])
            return False

        # Its badge may stand on a page that was not read.
        if not whole:
            return False

        if at > self.began - IN_MOTION:
            return True

        self._insert("found", [("not_recorded", None, None, *of)])
        return False

    def _find_unknown(self) -> None:
        self._db.execute(
            "INSERT INTO found SELECT 'unknown_here', NULL, badge.id, NULL,"
            ' NULL, NULL, "like"'
            " FROM free JOIN ours ON ours.earner = free.earner"
            " JOIN badge ON badge.rowid = free.badge WHERE state IS NOT NULL"
            " AND (issued IS NULL OR issued >= ?)"
            " AND NOT EXISTS (SELECT 1 FROM taken WHERE taken.badge = free.badge)",
            (_seconds(self._since) or 0,),
        )
        self._db.execute(
            "INSERT OR IGNORE INTO taken SELECT free.badge FROM free"
            " JOIN ours ON ours.earner = free.earner"
        )

    # What came of it.

    def counts(self) -> dict[Bucket, int]:
        """Count each kind."""
        return {bucket: self._counts.get(bucket, 0) for bucket in BUCKETS}

    @property
    def moving(self) -> int:
        """How many differ, and are changing now."""
        return self._counts.get("moves", 0)

    def differences(
        self, bucket: Bucket, at_most: int = -1
    ) -> cabc.Iterator[Difference]:
        """Get what differs in one way, in the order of the ledger."""
        rows = self._db.execute(
            "SELECT f.row, f.badge, f.course, f.member, f.at, f.like, l.state,"
            " l.badge_state FROM found f LEFT JOIN ledger l ON l.id = f.row"
            " WHERE f.bucket = ?"
            " ORDER BY f.row, f.course, f.member, f.at, f.rowid LIMIT ?",
            (bucket, at_most),
        )

        for row_id, badge, course, member, at, like, state, badge_state in rows:
            yield Difference(
                bucket,
                row_id=row_id,
                badge_id=None if badge is None else _unpacked(badge),
                course=None if course is None else self.courses[course],
                member_id=member,
                completed_at=None if at is None else dt.datetime.fromisoformat(at),
                like=like,
                state=state,
                badge_state=badge_state,
            )

    def count_by_course(self, bucket: Bucket) -> dict[str, int]:
        """Count by the title of the course, where that is not the row's."""
        rows = self._db.execute(
            "SELECT course, count(*) FROM found WHERE bucket = ?"
            " AND course IS NOT NULL GROUP BY course ORDER BY course",
            (bucket,),
        )
        return {self.courses[course].course_title: number for course, number in rows}


def _chunks(
    by_member: cabc.Iterator[tuple[str, cabc.Iterator[tuple[t.Any, ...]]]],
    size: int = 500,
) -> cabc.Iterator[list[tuple[t.Any, ...]]]:
    """Part completions so that those of a member stay together."""
    chunk: list[tuple[t.Any, ...]] = []

    for _, rows in by_member:
        chunk += rows

        if len(chunk) >= size:
            yield chunk
            chunk = []

    if chunk:
        yield chunk


def _completion(
    course: Mapped, member_id: str, at: str, completion_id: str | None
) -> Completion:
    # Who the member is was not kept.
    return Completion(
        member=Member(member_id, "", "", ""),
        course_id=course.course_id,
        kind=t.cast(Kind, course.kind),
        completed_at=dt.datetime.fromisoformat(at),
        completion_id=completion_id,
    )


def _same_time(issued: int | None, sent: int) -> bool:
    """Whether a badge has the time that was sent: see :func:`.whose.compare_times`."""
    if issued is None:
        return False

    if issued % DAY == 0:
        return abs(issued // DAY - sent // DAY) <= 1

    return issued == sent


def _seconds(at: dt.datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def _packed(text: str | None) -> bytes | None:
    """Write an id in half the room, if it is one of digits."""
    if text is None:
        return None

    try:
        return bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return text.encode()


def _unpacked(id_: bytes) -> str:
    return str(uuid.UUID(bytes=id_)) if len(id_) == 16 else id_.decode()


def _issued(shown: str | None) -> int | None:
    """Read a badge's time. That of a day is its midnight in UTC, whatever the zone."""
    at = read_time(shown)

    # No zone is off by seconds.
    if at is not None and not at.second and (day := day_of(shown)) is not None:
        at = dt.datetime.combine(day, dt.time(), dt.UTC)

    return _seconds(at)


def _hash(address: str) -> bytes:
    return hashlib.blake2b(plain_text(address).encode(), digest_size=8).digest()
