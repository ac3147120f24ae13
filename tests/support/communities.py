"""A host of several communities, two of them of one organization of Credly's, and all
that hosts, members, admins and an issuer do in them.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import json
import threading
import typing as t

import sqlalchemy as sa
from conftest import a_member
from conftest import COURSES

from flask_credly import accounts
from flask_credly import completion_withdrawn
from flask_credly import course_completed
from flask_credly.accounts.mappings import UNDO_TIME
from flask_credly.issuing.sender import earner_id
from flask_credly.ledger import actions
from flask_credly.ledger import audit
from flask_credly.ledger import backfills
from flask_credly.ledger import clock
from flask_credly.ledger import gates
from flask_credly.ledger import issuances
from flask_credly.ledger import polls
from flask_credly.ledger import privacy
from flask_credly.ledger import withdrawals
from flask_credly.models import Account
from flask_credly.models import Batch
from flask_credly.models import Installation
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.options import EACH
from flask_credly.options import GAPS
from flask_credly.options import Options
from flask_credly.options import RENEW
from flask_credly.options import SILENT
from flask_credly.testing.organization import Organization
from flask_credly.testing.rules import Refusal
from tests.support.midst import HOOK
from tests.support.midst import Machine
from tests.support.world import World

TENANTS = ("acme", "beta", "gamma")
"""The first two are of one organization of Credly's, and issue the same badges."""

BY = audit.COMMAND_LINE
"""Who does all that an admin does: an admin could not connect so often."""

AGAIN = ("", RENEW, EACH)
"""What a further completion of each course gives."""

DAYS = (0, 40, 80, 120, 160)
"""After which a course is completed: each is a further completion."""

MEANWHILE = ("erase", "remove", "unmap", "revoke", "correct", "withdraw", "drain")
"""What happens while a host's transaction is open."""

Who = tuple[str, str, int]
"""A community, a member's id there, and the number of a course."""

Key = tuple[str, str, str, str, int]
"""What tells a row from any other: SQLite gives a number twice."""

Badge = dict[str, t.Any]
"""As Credly shows it."""


class About(t.NamedTuple):
    """What something is done about: a community, the number of a member, that of a
    course, and one that says the rest.
    """

    tenant: str
    member: int = 0
    course: int = 0
    number: int = 0


@dataclasses.dataclass
class Known:
    """What is known of a member's completions of a course.

    :param sent: All that the host has said, by their times.
    :param owed: Those of them that a badge was promised for, each with what a further
        one is: after how much time, or ``None``: there is none.
    :param withdrawn: The times of all withdrawals.
    :param taken_back: That of the last of them, where it has to show in the end.
    :param more: Badges that admins asked for besides.
    """

    sent: set[dt.datetime] = dataclasses.field(default_factory=set)
    owed: dict[dt.datetime, dt.timedelta | None] = dataclasses.field(
        default_factory=dict
    )
    withdrawn: set[dt.datetime] = dataclasses.field(default_factory=set)
    taken_back: dt.datetime | None = None
    more: int = 0


class Communities(Machine):
    """What there is, and what is done."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.world.past = self.past
        self.begun_at = dt.datetime.now(dt.UTC) - dt.timedelta(days=200)
        self.next_member = 2
        self.members = {each: ["0", "1"] for each in TENANTS}
        self.everybody = {(tenant, m) for tenant in TENANTS for m in "01"}
        self.gone: set[tuple[str, str]] = set()
        # Those about whom two things have happened at the same moment.
        self.unsure: set[tuple[str, str]] = set()
        self.done: dict[Who, set[dt.datetime]] = collections.defaultdict(set)
        self.known: dict[Who, Known] = collections.defaultdict(Known)
        self.unmapped_at: dict[tuple[str, int], dt.datetime] = {}
        # Badges that an admin has had revoked, and rows that one has dropped.
        self.ordered: set[str | None] = set()
        # The former, unless they were corrected since.
        self.to_end: set[str | None] = set()
        self.dropped: set[Key] = set()
        # What has to stand in the audit trail.
        self.noted: collections.Counter[tuple[str, str]] = collections.Counter()
        self.ever_removed: set[str] = set()
        # How the next lists of badges are wrong, and how many of them.
        self.news: tuple[str, int] = ("", 0)
        self.is_polling = False
        self.replies: dict[object, t.Any] = {}
        self.at_credly: dict[str, Organization] = {}
        self.templates: dict[str, list[list[str]]] = {}
        self.set_up()

    def set_up(self) -> None:
        for organization in (self.credly, self.credly.add_organization()):
            organization.posts_allowed = organization.badges_allowed = 99
            # Where Credly would not refuse a second badge.
            made = [
                [
                    organization.add_template(
                        f"{course.id} {number}", allow_duplicate_badges=True
                    )
                    for number in range(2)
                ]
                for course in COURSES
            ]
            tenants = TENANTS[:2] if organization is self.credly else TENANTS[2:]

            for tenant in tenants:
                self.at_credly[tenant] = organization
                self.templates[tenant] = made

        for tenant in TENANTS:
            self.do("connect", About(tenant))

        with sa.orm.Session(self.engine) as session:
            self.installation = session.scalars(sa.select(Installation.key)).one()

    # What there is.

    def state(self, tenant: str) -> t.Any:
        return self.host.app.extensions["credly"].of(tenant)

    def rows(self, tenant: str | None = None) -> list[Issuance]:
        with sa.orm.Session(self.engine) as session:
            query = sa.select(Issuance).order_by(Issuance.id)
            found = list(session.scalars(query))

        return [row for row in found if tenant in (None, row.tenant)]

    def key(self, row: Issuance) -> Key:
        course = f"{row.kind} {row.course_id}"
        return row.tenant, row.member_id, course, row.organization_id, row.cycle

    def who(self, row: Issuance) -> Who:
        return row.tenant, row.member_id, [c.id for c in COURSES].index(row.course_id)

    def whose(self, about: About) -> Who:
        return about.tenant, self.members[about.tenant][about.member], about.course

    def now(self) -> dt.datetime:
        return clock.now(None)  # type: ignore[arg-type]

    def is_connected(self, tenant: str) -> bool:
        return gates.read(self.engine, tenant) is not None

    def mapping(self, about: About) -> Mapping | None:
        with sa.orm.Session(self.engine) as session:
            return session.scalar(
                sa.select(Mapping).where(
                    Mapping.tenant == about.tenant,
                    Mapping.course_id == COURSES[about.course].id,
                )
            )

    def issued(self) -> cabc.Iterator[tuple[Who, Badge]]:
        """Get the badges that were issued by requests, each with whose it is."""
        people = {
            earner_id(self.installation, member, tenant): (tenant, member)
            for tenant, member in self.everybody
        }
        courses = {
            template: number
            for made in self.templates.values()
            for number, both in enumerate(made)
            for template in both
        }

        for organization in self.credly.organizations:
            for badge in organization.badges:
                if organization.history(badge["id"])[0].by == "request":
                    tenant, member = people[badge["issuer_earner_id"]]
                    assert self.at_credly[tenant] is organization
                    course = courses[badge["badge_template"]["id"]]
                    yield (tenant, member, course), badge

    def past(self, asked: t.Any) -> cabc.Iterator[t.Any]:
        """Get what the host knows of a community's course."""
        tenant, course = asked

        for who, times in list(self.done.items()):
            if (who[0], COURSES[who[2]]) == (tenant, course):
                for at in sorted(times):
                    yield a_member(who[1]), at
                    self.at(HOOK, True)

    def reply(self, call: t.Any) -> t.Any:
        """Answer: what became of the badges is perhaps not the latest."""
        true = super().reply(call)
        is_read = call.method == "GET" and "badge_templates" not in call.path

        if not self.is_polling or not is_read or true.status != 200:
            return true

        asked = (call.path, tuple(call.query))
        how, times = self.news

        if not times:
            self.replies[asked] = true
            return true

        self.news = (how, times - 1)

        if how == "late":
            return self.replies.get(asked, true)

        body = json.loads(true.body)

        if isinstance(data := body.get("data"), list):
            body["data"] = data[::-1] if how == "other order" else data[::2]

        return dataclasses.replace(true, body=json.dumps(body).encode())

    # One thing after the other.

    def do(self, name: str, about: About) -> None:  # type: ignore[override]
        member = self.members[about.tenant][about.member]
        self.story.append(f"{name} {about.tenant} {member} {about[2:]}")
        self.host.db.session.remove()
        before = self.of_others(about.tenant)
        getattr(self, f"do_{name}")(about)
        self.host.db.session.remove()

        if name != "late":
            is_same = self.of_others(about.tenant) == before
            assert is_same, f"{name} of {about.tenant} changes what is another's"

    def of_others(self, tenant: str) -> list[t.Any]:
        """Get all that other communities have."""
        with self.engine.connect() as connection:
            return [
                connection.execute(
                    sa.select(*each.__table__.c)
                    .where(each.tenant != tenant)
                    .order_by(*each.__table__.primary_key)
                ).all()
                for each in (Issuance, Mapping, Account)
            ]

    def note(self, about: About, action: str) -> None:
        """Have it stand in the audit trail, once."""
        self.noted[about.tenant, action] += 1

    # The host and its members.

    def time_of(self, about: About) -> dt.datetime:
        return self.begun_at + dt.timedelta(days=DAYS[about.number % len(DAYS)])

    def do_complete(self, about: About, **given: t.Any) -> None:
        self.do_complete_silently(about)
        mapping = self.mapping(about)
        known, at = self.known[self.whose(about)], self.time_of(about)
        course_completed.send(
            self.host.app,
            member=a_member(self.whose(about)[1]),
            course_id=COURSES[about.course].id,
            kind=COURSES[about.course].kind,
            completed_at=at,
            tenant=about.tenant,
            **given,
        )

        if known.taken_back is not None and at > known.taken_back:
            known.taken_back = None

        if mapping is not None and all(at > each for each in known.withdrawn):
            known.owed[at] = GAPS.get(mapping.again or "")

    def do_complete_silently(self, about: About) -> None:
        self.known[self.whose(about)].sent.add(self.time_of(about))
        self.done[self.whose(about)].add(self.time_of(about))

    def do_withdraw(self, about: About, **given: t.Any) -> None:
        who = self.whose(about)
        known = self.known[who]
        at = self.time_of(about) + dt.timedelta(hours=1)
        # One that is known, or older, changes nothing.
        is_new = all(at > each for each in (*known.withdrawn, *known.sent))
        known.withdrawn.add(at)
        known.owed = {each: gap for each, gap in known.owed.items() if each > at}
        self.done[who] = {each for each in self.done[who] if each > at}
        is_mapped = self.mapping(about) is not None
        completion_withdrawn.send(
            self.host.app,
            member_id=who[1],
            course_id=COURSES[about.course].id,
            kind=COURSES[about.course].kind,
            withdrawn_at=at,
            tenant=about.tenant,
            **given,
        )

        if is_mapped and is_new:
            known.taken_back = at

    def do_erase(self, about: About) -> None:
        tenant, member, _ = self.whose(about)

        for course in range(len(COURSES)):
            self.done.pop((tenant, member, course), None)
            self.known.pop((tenant, member, course), None)

        self.members[tenant][about.member] = str(self.next_member)
        self.everybody.add((tenant, str(self.next_member)))
        self.next_member += 1

        erased = privacy.erase(self.engine, tenant, member, by=BY)

        if erased.badges or erased.deleted:
            self.note(about, "erase member")

        self.gone.add((tenant, member))

    def do_late(self, about: About) -> None:
        """Let something happen between what the host writes and its commit."""
        meanwhile = MEANWHILE[about.number % len(MEANWHILE)]
        withdraws = about.number % 3 == 0
        who = self.whose(about)
        self.story.append(f"  {'withdraws' if withdraws else 'completes'}, {meanwhile}")
        session = self.host.db.session()
        (self.do_withdraw if withdraws else self.do_complete)(about, session=session)

        def happen() -> None:
            with self.host.app.app_context():
                try:
                    if meanwhile == "drain":
                        self.host.drain()
                    else:
                        self.do(meanwhile, about)
                except Exception as e:
                    self.errors.append(e)

        thread = threading.Thread(target=happen)
        thread.start()
        # It may have to wait for the commit.
        thread.join(0.2)
        session.commit()
        thread.join(60)
        assert not thread.is_alive()

        if self.errors:
            raise self.errors[0]

        # Of two things at the same moment either may be the first.
        if meanwhile in ("erase", "remove"):
            self.unsure.add(who[:2])
            self.gone.discard(who[:2])
        elif (meanwhile, withdraws) == ("correct", True):
            self.known[who].taken_back = None

    # The earners, and the issuer in Credly's own pages.

    def change_by_hand(self, how: str, about: About, **given: t.Any) -> None:
        organization = self.at_credly[about.tenant]

        if badges := organization.badges[-6:]:
            badge_id = badges[about.number % len(badges)]["id"]

            try:
                getattr(organization, how)(badge_id, **given)
            except (ValueError, Refusal):
                pass  # it is not to be changed in this way any more

    def do_accept(self, about: About) -> None:
        self.change_by_hand("accept", about)

    def do_decline(self, about: About) -> None:
        self.change_by_hand("reject", about)

    def do_revoke_by_hand(self, about: About) -> None:
        self.change_by_hand("revoke_badge", about)

    def do_replace_by_hand(self, about: About) -> None:
        self.change_by_hand("replace_badge", about, issued_to_last_name="By hand")

    # The admins: of a whole community.

    def do_connect(self, about: About) -> None:
        action = "reconnect" if self.is_connected(about.tenant) else "connect"
        organization = self.at_credly[about.tenant]

        try:
            accounts.connect(
                self.state(about.tenant),
                organization_id=organization.organization_id,
                client_id=organization.client_id,
                client_secret=organization.client_secret,
                by=BY,
            )
        except (accounts.StillRemoving, accounts.CouldNotVerify, accounts.NotVerified):
            return

        self.note(about, action)

        if action == "connect":
            for course in range(len(COURSES)):
                self.do_map_again(About(about.tenant, course=course))

    def do_remove(self, about: About) -> None:
        if not accounts.remove(self.state(about.tenant), by=BY):
            return

        self.note(about, "remove")
        self.ever_removed.add(about.tenant)

        for course in range(len(COURSES)):
            self.unmapped_at.pop((about.tenant, course), None)

        for who, known in self.known.items():
            if who[0] == about.tenant:
                known.owed.clear()
                known.taken_back = None

    def do_pause(self, about: About, on: bool = False) -> None:
        if self.is_connected(about.tenant):
            gates.switch(self.engine, about.tenant, on=on, by=BY)
            self.note(about, "resume" if on else "pause")

    def do_resume(self, about: About) -> None:
        self.do_pause(about, on=True)

    # Of a course.

    def do_map_again(self, about: About) -> None:
        """Take the removal of a mapping back, where that was just now."""
        removed_at = self.unmapped_at.get((about.tenant, about.course))
        undo = removed_at is not None and self.now() - removed_at < UNDO_TIME

        try:
            accounts.add_mapping(
                self.state(about.tenant),
                COURSES[about.course],
                self.templates[about.tenant][about.course][0],
                undo=undo,
                by=BY,
            )
        except (
            accounts.AlreadyMapped,
            accounts.NotConnected,
            accounts.UnknownTemplate,
        ):
            return

        self.unmapped_at.pop((about.tenant, about.course), None)
        self.note(about, "undo" if undo else "map")

        if not undo:
            self.do_change_again(about._replace(number=about.course))

    def do_unmap(self, about: About) -> None:
        if (mapping := self.mapping(about)) is not None:
            accounts.remove_mapping(self.state(about.tenant), mapping.id, by=BY)
            self.unmapped_at[about.tenant, about.course] = self.now()
            self.note(about, "remove mapping")

    def do_change_badge(self, about: About) -> None:
        if (mapping := self.mapping(about)) is None:
            return

        try:
            accounts.change_mapping(
                self.state(about.tenant),
                mapping.id,
                COURSES[about.course],
                self.templates[about.tenant][about.course][about.number % 2],
                by=BY,
            )
        except accounts.UnknownTemplate:
            return

        self.note(about, "change mapping")

    def do_change_again(self, about: About) -> None:
        """The first course gives one badge, whatever happens, and only the last one
        may give several.
        """
        if (mapping := self.mapping(about)) is None:
            return

        again = AGAIN[about.number % (about.course + 1)]
        options = Options(
            withdrawn=SILENT, again=again, expires=9 if about.course else ""
        )
        accounts.change_options(self.state(about.tenant), mapping.id, options, by=BY)
        self.note(about, "change options")

    def do_backfill(self, about: About) -> None:
        if (mapping := self.mapping(about)) is None:
            return

        before = self.backfill(about, "recording")
        run_id = backfills.start(self.engine, about.tenant, mapping.id, by=BY)

        if run_id is not None and run_id not in before:
            self.note(about, "start backfill")

    def backfill(self, about: About, *states: str) -> list[int]:
        these = (Batch.tenant == about.tenant, Batch.state.in_(states))

        with sa.orm.Session(self.engine) as session:
            query = sa.select(Batch.id).where(Batch.verb == "backfill", *these)
            return list(session.scalars(query.order_by(Batch.id)))

    def do_stop_backfill(self, about: About) -> None:
        if going_on := self.backfill(about, "recording", "recorded"):
            backfills.stop(self.engine, about.tenant, going_on[-1], by=BY)
            self.note(about, "stop backfill")

    def do_decide(self, about: About) -> None:
        with sa.orm.Session(self.engine) as session:
            number = withdrawals.count(session, about.tenant)

        if not number:
            return

        revoke = about.number % 2 == 0
        assert number == withdrawals.decide(
            self.engine, about.tenant, number, revoke=revoke, by=BY
        )
        self.note(about, "revoke withdrawn" if revoke else "keep withdrawn")

        if not revoke:
            for who, known in self.known.items():
                if who[0] == about.tenant:
                    known.taken_back = None

    # Of one badge.

    def a_row(self, about: About) -> Issuance | None:
        """Choose one: rather of this member and course."""
        rows = self.rows(about.tenant)
        mine = [row for row in rows if self.who(row) == self.whose(about)]
        last = ((mine if about.number % 5 else []) or rows)[-4:]
        return last[about.number % len(last)] if last else None

    def do_revoke(self, about: About) -> None:
        if (row := self.a_row(about)) is None:
            return

        done = actions.revoke(
            self.engine, about.tenant, row.id, reason="A reason.", tell=False, by=BY
        )

        if done is not None:
            self.note(about, "revoke")

        if done == "revoke":
            self.ordered.add(row.badge_id)
            self.to_end.add(row.badge_id)
        elif done == "drop":
            self.dropped.add(self.key(row))

    def do_correct(self, about: About) -> None:
        if (row := self.a_row(about)) is None:
            return

        both = self.templates[about.tenant][self.who(row)[2]]
        done = actions.correct(
            self.engine,
            about.tenant,
            row.id,
            first_name="Ada",
            last_name=f"Name {about.number}",
            completed_at=row.completed_at,
            template_id=both[about.number % 2],
            by=BY,
        )

        if done is not None:
            self.note(about, "correct")
            self.to_end.discard(row.badge_id)
            self.known[self.who(row)].more += 1

    def do_issue_again(self, about: About) -> None:
        if (row := self.a_row(about)) is None:
            return

        done = actions.issue_again(
            self.engine,
            about.tenant,
            row.id,
            email=a_member(row.member_id).email,
            first_name="Ada",
            last_name="Again",
            reason="A reason.",
            tell=False,
            by=BY,
        )

        if done is None:
            return

        self.note(about, "issue again")
        self.known[self.who(row)].more += 1
        self.known[self.who(row)].taken_back = None

        if actions.is_in_force(row):
            self.ordered.add(row.badge_id)

    def do_retry(self, about: About) -> None:
        row = self.a_row(about)

        if row and issuances.retry(self.engine, about.tenant, row.id, by=BY):
            self.note(about, "retry")
            self.dropped.discard(self.key(row))
            self.known[self.who(row)].taken_back = None

    def do_check(self, about: About) -> None:
        if (row := self.a_row(about)) is None:
            return

        is_asked = row.id in polls.asked_for(self.engine, about.tenant, [row.id])
        answer = polls.ask_for(self.engine, about.tenant, row.id, by=BY)

        if answer == "asked" and not is_asked:
            self.note(about, "check")
