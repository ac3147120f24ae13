"""What a member sees of the badges: read from the ledger, by one statement."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import itertools
import typing as t
import urllib.parse

import sqlalchemy as sa

from ..catalog import read_id
from ..links import read_link
from ..models import Account
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from ..state import Community
from . import issuances
from .transaction import beside_the_host

MemberStatus = t.Literal[
    "on_its_way",
    "waiting",
    "earned",
    "declined",
    "expired",
    "no_longer_valid",
    "can_be_earned",
]


@dataclasses.dataclass(frozen=True)
class MemberBadge:
    """A badge as its member may see it: without errors or reasons, and without anything
    that belongs to another member.

    :param name: The badge's name.
    :param image_url: Its picture. This address and all links lead to Credly by https,
        and are ``None`` if Credly gave none.
    :param status: "on_its_way": it will be issued. "waiting": it waits to be accepted.
        "earned", "declined" or "expired". "no_longer_valid": it was revoked or replaced
        at Credly, or no longer exists there. "can_be_earned": the course is mapped, and
        the member has no badge for it.
    :param kind: "course" or "learning_path".
    :param issued_on: The date on the badge, in UTC. ``None`` if it is not issued yet or
        the date is unknown.
    :param expires_on: The date on which it expires or has expired, in UTC. ``None`` if
        it does not expire or the date is unknown.
    :param accept_url: Where the member accepts it, while it waits. Show it only to that
        member.
    :param page_url: Its page at Credly, after it was accepted.
    :param linkedin_url: Where the member adds it to a LinkedIn profile, while it is
        earned and not private.
    """

    name: str
    image_url: str | None
    status: MemberStatus
    course_id: str
    kind: str
    issued_on: dt.date | None = None
    expires_on: dt.date | None = None
    accept_url: str | None = None
    page_url: str | None = None
    linkedin_url: str | None = None


_STATUSES: dict[issuances.Became | None, MemberStatus] = {
    "pending": "waiting",
    "accepted": "earned",
    "rejected": "declined",
    "expired": "expired",
    "revoked": "no_longer_valid",
    "missing": "no_longer_valid",
}

_IN_FORCE = ("waiting", "earned")
_HAS_PAGE = ("earned", "expired")


def badges_of(
    state: Community,
    member_id: str,
    *,
    course_id: str | None = None,
    kind: str = "course",
    can_be_earned: bool = True,
) -> list[MemberBadge]:
    """Get a member's badges: first what waits to be accepted, then the newest first,
    at last what can be earned, by name.

    :param course_id: The only course to look for.
    :param kind: Its kind.
    :param can_be_earned: Whether to tell what can be earned.
    :raises ValueError: If it cannot be an id.
    """
    ids = {"member_id": read_id(member_id, "member_id")}

    if course_id is not None:
        ids["course_id"] = read_id(course_id, "course_id")

    state.check_ids(**ids)
    course = None if course_id is None else (kind, ids["course_id"])
    query: t.Any = _recorded(state.tenant, ids["member_id"], course)

    if can_be_earned:
        query = sa.union_all(query, _mapped(state.tenant, course))

    with beside_the_host(state.engine) as session:
        rows = session.execute(query).all()

    # What the platform is called is not how each of its communities is.
    issuer = "" if state.has_tenants else state.settings.platform_name
    return _choose(rows, issuer)


def _choose(rows: cabc.Sequence[t.Any], issuer: str) -> list[MemberBadge]:
    mapped = {(row.kind, row.course_id): row for row in rows if row.id is None}
    recorded = sorted(
        (row for row in rows if row.id is not None),
        key=lambda row: (row.kind, row.course_id, -row.id),
    )
    found: list[tuple[int, MemberBadge]] = []

    for key, of_course in itertools.groupby(
        recorded, key=lambda row: (row.kind, row.course_id)
    ):
        all_ = list(of_course)
        shown = _that_count(all_)
        found += [(row.id, _badge(row, status, issuer)) for row, status in shown]

        # What an admin took back is not given by a further completion.
        if shown or any(row.reason == "dropped" for row in all_):
            mapped.pop(key, None)

    found.sort(key=lambda each: (each[1].status != "waiting", -each[0]))
    earnable = [_badge(row, "can_be_earned", issuer) for row in mapped.values()]
    earnable.sort(
        key=lambda badge: (badge.name.casefold(), badge.kind, badge.course_id)
    )
    return [badge for _, badge in found] + earnable


_COLUMNS = (
    *("id", "kind", "course_id", "badge_name", "organization_id", "state", "reason"),
    *("renewal", "replaces", "badge_id", "badge_state", "missing_at", "public"),
    *("issued_at", "settled_at", "expires_at", "accept_url", "page_url"),
)


def _recorded(
    tenant: str, member_id: str, course: tuple[str, str] | None
) -> sa.Select[t.Any]:
    of_row = sa.and_(
        Template.tenant == Issuance.tenant, Template.id == Issuance.template_id
    )
    query = (
        sa.select(
            *(getattr(Issuance, name) for name in _COLUMNS),
            Template.image_url,
            Account.organization_id.label("connected_to"),
        )
        .outerjoin(Template, of_row)
        .outerjoin(Account, Account.tenant == Issuance.tenant)
        .where(
            Issuance.tenant == tenant,
            Issuance.member_id == member_id,
            Issuance.test.is_(False),
            Issuance.erased_at.is_(None),
        )
    )

    if course is not None:
        kind, course_id = course
        query = query.where(Issuance.kind == kind, Issuance.course_id == course_id)

    return query


def _mapped(tenant: str, course: tuple[str, str] | None) -> sa.Select[t.Any]:
    known = {
        "kind": Mapping.kind,
        "course_id": Mapping.course_id,
        "badge_name": Template.name,
    }
    columns: list[t.Any] = [known.get(name, sa.null()).label(name) for name in _COLUMNS]
    query = (
        sa.select(*columns, Template.image_url, sa.null().label("connected_to"))
        .join_from(Mapping, Mapping.template)
        .where(Mapping.tenant == tenant, Template.active)
    )

    if course is not None:
        kind, course_id = course
        query = query.where(Mapping.kind == kind, Mapping.course_id == course_id)

    return query


def _that_count(
    rows: cabc.Iterable[t.Any],
) -> list[tuple[t.Any, MemberStatus]]:
    """Choose from a member's rows for one course, newest first, those that the member
    is shown. A course that gives a badge each time has several.
    """
    known = [(row, status) for row in rows if (status := _status(row)) is not None]
    in_force = [row.id for row, status in known if status in _IN_FORCE]
    shown: list[tuple[t.Any, MemberStatus]] = []

    for row, status in known:
        if status == "on_its_way" or row.badge_id is None:
            # Until it is there, what it comes in the place of counts.
            is_second = (
                row.renewal
                or row.replaces is not None
                or row.reason == "awaits revocation"
                # Refused, as the member has the first.
                or row.state == "held"
            )
            is_hidden = is_second and any(id_ < row.id for id_ in in_force)
        else:
            # What is over counts as long as nothing has come after it.
            is_hidden = status not in _IN_FORCE and shown != []

        if not is_hidden:
            shown.append((row, status))

    return shown


def _status(row: t.Any) -> MemberStatus | None:
    """Say what a row is to its member. ``None``: nothing."""
    if row.state == "cancelled":
        return None

    if row.state in ("none", "failed"):
        # An admin is told of what failed, and can have it issued yet. What is of
        # another organization is not issued any more.
        return "on_its_way" if row.organization_id == row.connected_to else None

    if row.state in ("revoked", "replaced"):
        return "no_longer_valid"

    if (became := issuances.became(row)) is None:
        # Credly has refused it as the member has it, and does not say more.
        return "earned" if row.state == "held" else "waiting"

    return _STATUSES[became]


def _badge(row: t.Any, status: MemberStatus, issuer: str) -> MemberBadge:
    is_issued = row.state is not None and row.state not in ("none", "failed", "held")
    issued_at = row.issued_at or row.settled_at
    page_url = read_link(row.page_url)
    badge = MemberBadge(
        name=row.badge_name,
        image_url=read_link(row.image_url),
        status=status,
        course_id=row.course_id,
        kind=row.kind,
        issued_on=issued_at.date() if is_issued and issued_at else None,
        expires_on=row.expires_at.date() if row.expires_at else None,
        accept_url=read_link(row.accept_url) if status == "waiting" else None,
        page_url=page_url if status in _HAS_PAGE else None,
    )

    if status != "earned" or page_url is None or row.public is False:
        return badge

    return dataclasses.replace(
        badge, linkedin_url=_linkedin_url(badge, page_url, row.badge_id, issuer)
    )


def _linkedin_url(
    badge: MemberBadge, page_url: str, badge_id: str | None, issuer: str
) -> str:
    query = {"startTask": "CERTIFICATION_NAME", "name": badge.name}

    if issuer:
        query["organizationName"] = issuer

    for name, day in (("issue", badge.issued_on), ("expiration", badge.expires_on)):
        if day is not None:
            query |= {f"{name}Year": str(day.year), f"{name}Month": str(day.month)}

    query["certUrl"] = page_url

    if badge_id is not None:
        query["certId"] = badge_id

    return "https://www.linkedin.com/profile/add?" + urllib.parse.urlencode(
        query, safe="", quote_via=urllib.parse.quote
    )
