"""Requests to the API of one organization."""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import email.utils
import json
import re
import typing as t
import unicodedata
import urllib.parse

import requests

from .. import links
from ..errors import OutcomeUnknown
from . import answers
from . import badge as badges
from . import transport
from .badge import Badge
from .badge import STATES

MAX_PAGES = 200

_SEARCH = "high_volume_issued_badge_search"

_MAX_QUERY = 4000
"""Characters of a query that Credly tells us to ask with."""

NEWS = ("accepted", "rejected", "revoked")
"""States that a badge comes to after it was issued."""


@dataclasses.dataclass(frozen=True)
class BadgeRequest:
    """One badge to issue.

    :param earner_id: Our name of the member, Credly's ``issuer_earner_id``. Takes
        part in Credly's refusal of duplicates.
    :param issued_at: The time that goes onto the badge, aware: the same each time, as
        the badge is known by it. Credly takes none that is much in the future.
    :param locale: The language in which Credly writes. ``None``: its default.
    :param mail: Whether Credly writes to the member at all.
    :param expires_at: Until when it holds, aware. ``False``: for ever. ``None``: as the
        template says.
    :param evidence: As Credly takes it.
    :param group: The name of a group tag.
    """

    template_id: str
    earner_id: str
    email: str
    first_name: str
    last_name: str
    issued_at: dt.datetime
    middle_name: str | None = None
    country: str | None = None
    state_or_province: str | None = None
    locale: str | None = None
    mail: bool = True
    expires_at: dt.datetime | t.Literal[False] | None = None
    evidence: tuple[dict[str, str], ...] = ()
    group: str | None = None

    def personal(self) -> tuple[str, ...]:
        """Name what an answer may not repeat: the address, the whole name and what the
        evidence leads to. A part of it alone may be any word.
        """
        first, last = self.first_name, self.last_name
        names = [f"{first} {last}", f"{last} {first}", f"{last}, {first}"]

        if self.middle_name:
            names.append(f"{first} {self.middle_name} {last}")

        shown = (each.get("value") or each.get("id") for each in self.evidence)
        return (
            self.email,
            *(name.strip(" ,") for name in names),
            *filter(None, shown),
        )

    def body(self) -> dict[str, t.Any]:
        """Write it as Credly's page on issued badges names the fields."""
        optional = {
            "issued_to_middle_name": self.middle_name,
            "country_name": self.country,
            "state_or_province": self.state_or_province,
            "locale": self.locale,
            "suppress_badge_notification_email": None if self.mail else True,
            "expires_at": self.expires_at and _write_time(self.expires_at),
            "evidence": list(self.evidence) or None,
            "issuer_earner_group": {"name": self.group} if self.group else None,
        }
        return {
            "recipient_email": self.email,
            "issued_to_first_name": self.first_name,
            "issued_to_last_name": self.last_name,
            "badge_template_id": self.template_id,
            "issued_at": _write_time(self.issued_at),
            "issuer_earner_id": self.earner_id,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def replacement(self) -> dict[str, t.Any]:
        """Write it as a badge that takes the place of another: that one says to whom
        it goes.
        """
        body = self.body()
        del body["recipient_email"]
        return body


def _write_time(at: dt.datetime) -> str:
    return at.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S +0000")


@dataclasses.dataclass(frozen=True)
class BadgePage:
    """One page of a list of badges.

    :param rows: Those that can be read.
    :param ids: All that were listed, whatever else was said of them.
    :param newest_first: Whether the one that changed last comes first, and those that
        do not say when they did come last.
    """

    rows: list[Badge]
    ids: list[str]
    newest_first: bool
    is_last: bool


@dataclasses.dataclass(frozen=True)
class SearchPage:
    """One page of all badges of the organization.

    :param rows: Those that can be read, without all that is known of them.
    :param unread: The ids of the others. ``None``: that of one cannot be read either.
    :param next: What to ask for the next page with. ``None``: there is none, or it
        cannot be asked for.
    """

    rows: list[Badge]
    unread: list[str] | None
    next: str | None
    is_last: bool


@dataclasses.dataclass(frozen=True)
class TemplateRow:
    """A badge template as Credly lists it."""

    id: str
    name: str
    image_url: str | None
    allows_duplicates: bool


@dataclasses.dataclass(frozen=True)
class TemplatePage:
    """One page of the list of active templates."""

    rows: list[TemplateRow]
    is_last: bool


class Client:
    """Asks the API of one organization. May be used by several threads at once: each
    request has a connection of its own, kept alive for the next.

    :param api_url: Such as ``https://api.credly.com/v1``.
    :param organization_id: A UUID.
    :param timeout: Seconds for a whole request and its answer.

    Every method takes the access token and may raise :exc:`.Unauthorized`,
    :exc:`.RateLimited`, :exc:`.Refused`, :exc:`.OutcomeUnknown` or
    :exc:`.Unavailable`.
    """

    def __init__(self, api_url: str, organization_id: str, *, timeout: float) -> None:
        if not answers.is_uuid(organization_id):
            raise ValueError("An organization id is a UUID.")

        self._url = f"{api_url}/organizations/{organization_id}"
        self._own_host = links.own_host(api_url)
        self._timeout = timeout
        self._sessions: list[requests.Session] = []
        self._prepared: dict[tuple[str, str], requests.PreparedRequest] = {}
        self._date = ""

    def __enter__(self) -> t.Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for session in self._sessions:
            session.close()

    def connect(
        self, number: int, run: cabc.Callable[..., cabc.Iterable[t.Any]]
    ) -> None:
        """Open connections ahead of so many requests, so that these leave at once.

        :param run: Does it, as :func:`map` or several at once.
        """
        sessions = [self._take_session() for _ in range(number)]

        try:
            list(run(self._open, sessions))
        finally:
            self._sessions += sessions

    def _open(self, session: requests.Session) -> None:
        adapter = t.cast(transport.BoundedAdapter, session.get_adapter(self._url))

        try:
            adapter.open(
                self._prepare(session, "GET", self._url),
                proxies=session.proxies,
                verify=session.verify,
            )
        except requests.RequestException as e:
            failure = e
        else:
            return

        raise transport.translate(failure) from None

    def answered_at(self) -> dt.datetime | None:
        """Get the time that the last answer has on Credly's clock. ``None``: it does
        not say, or there was none.
        """
        try:
            return email.utils.parsedate_to_datetime(self._date).astimezone(dt.UTC)
        except (ValueError, OverflowError):
            return None

    def issue(self, token: str, badge: BadgeRequest) -> Badge:
        """Issue a badge.

        :raises AlreadyHeld: Credly refuses it as a duplicate.
        """
        body = self._ask(
            token, "POST", "badges", body=badge.body(), hide=badge.personal()
        )
        data = answers.data_of(body)

        if not isinstance(data, dict) or not _echoes(data, badge):
            raise OutcomeUnknown("Credly's response could not be read.")

        # It is issued, whatever else is said of it.
        said = badges.read(data, self._own_host)
        return said or Badge(data["id"].lower())

    def issue_many(
        self, token: str, asked: cabc.Sequence[BadgeRequest]
    ) -> tuple[list[Badge | None], bool]:
        """Issue several badges with one request. No two of one template may be for the
        same member.

        :return: Of each the badge, or ``None``: the answer does not say clearly that it
            was issued. And whether there was one badge in it for each that was asked
            for, and nothing else.
        :raises Refused: Among others with an ``index``: as clients in production take
            it, no badge was issued then.
        """
        hide = tuple(one for each in asked for one in each.personal())
        body = {"badges": [each.body() for each in asked]}
        data = answers.data_of(
            self._ask(token, "POST", "badges/batch", body=body, hide=hide)
        )
        rows = [row for row in data if isinstance(row, dict)] if _is_list(data) else []
        # By its name of the member, as it may come in any order.
        named: dict[tuple[str, str], list[dict[str, t.Any]]] = {}

        for row in rows:
            if isinstance(name := row.get("issuer_earner_id"), str):
                key = (plain_text(name), _template_of(row, "").lower())
                named.setdefault(key, []).append(row)

        ids = collections.Counter(str(row.get("id")).lower() for row in rows)
        found: list[Badge | None] = []

        for each in asked:
            mine = named.get((plain_text(each.earner_id), each.template_id), [])
            sure = (
                len(mine) == 1
                and _echoes(mine[0], each)
                and ids[mine[0]["id"].lower()] == 1
            )
            found.append(
                (badges.read(mine[0], self._own_host) or Badge(mine[0]["id"].lower()))
                if sure
                else None
            )

        return found, None not in found and len(data) == len(asked)

    def badge(self, token: str, badge_id: str) -> Badge:
        """Get one badge.

        :raises Refused: Among others with the status 404 or 410: there is none.
        """
        data = answers.data_of(self._ask(token, "GET", f"badges/{badge_id}"))
        said = badges.read(data, self._own_host)

        if said is None or said.id != badge_id.lower():
            raise OutcomeUnknown("Credly's response could not be read.")

        return said

    def revoke(self, token: str, badge_id: str, *, reason: str, tell: bool) -> Badge:
        """Revoke a badge.

        :param reason: Required by Credly. The earner may read it.
        :param tell: Whether Credly writes to the earner.
        """
        body = {"reason": reason, "suppress_revoke_notification_email": not tell}
        path = f"badges/{badge_id}/revoke"
        data = answers.data_of(self._ask(token, "PUT", path, body=body, hide=(reason,)))
        said = badges.read(data, self._own_host)

        if said is None or said.id != badge_id or said.state != "revoked":
            raise OutcomeUnknown("Credly's response could not be read.")

        return said

    def replace(self, token: str, badge_id: str, badge: BadgeRequest) -> Badge:
        """Issue a badge in the place of another. Get the new one.

        :param badge: The new one. Its address is not sent: the other's stays.
        """
        path = f"badges/{badge_id}/replace"
        body = self._ask(
            token, "POST", path, body=badge.replacement(), hide=badge.personal()
        )
        said = badges.read(answers.data_of(body), self._own_host)

        if (
            said is None
            or said.id == badge_id
            or said.template_id not in (None, badge.template_id)
        ):
            raise OutcomeUnknown("Credly's response could not be read.")

        return said

    def news(
        self, token: str, page: int, *, sort: str = "-state_updated_at"
    ) -> BadgePage:
        """Get one page of what became of badges.

        :param page: From 1.
        :param sort: The latest change first. "created_at": in an order that does not
            change while it is read.
        """
        query = {"filter": f"state::{','.join(NEWS)}", "sort": sort}
        rows, is_last = self._page(token, "badges", query, page)
        found = [said for row in rows if (said := badges.read(row, self._own_host))]
        times = [said.state_at for said in found]
        known = [at for at in times if at is not None]
        in_order = known == sorted(known)[::-1] and times[: len(known)] == known
        return BadgePage(
            # Had the service ignored the filter, there were others among them.
            [said for said in found if said.state in NEWS],
            [said.id for said in found],
            newest_first=in_order and len(found) == len(rows),
            is_last=is_last,
        )

    def search(self, token: str, query: str | None = None) -> SearchPage:
        """Get one page of all badges, whatever their state.

        :param query: As the page before says. ``None``: the first page.
        """
        query = query or urllib.parse.urlencode({"badge_format": "minimal"})
        body = self._ask(token, "GET", f"{_SEARCH}?{query}")
        rows = answers.data_of(body)
        about = body.get("metadata") if isinstance(rows, list) else None

        if not isinstance(about, dict) or "next_page_url" not in about:
            raise OutcomeUnknown("Credly's response could not be read.")

        found: list[Badge] = []
        unread: list[t.Any] = []

        for row in rows:
            if (said := badges.read(row, self._own_host)) is not None:
                found.append(said)
            else:
                unread.append(row.get("id") if isinstance(row, dict) else None)

        known = [id_.lower() for id_ in unread if answers.is_uuid(id_)]
        return SearchPage(
            found,
            known if len(known) == len(unread) else None,
            _query_of(about["next_page_url"]),
            is_last=about["next_page_url"] is None,
        )

    def find(
        self, token: str, badge: BadgeRequest, *, by_address: bool = False
    ) -> list[Badge]:
        """Look for the member's badges of the template: those that carry our name of
        the member, or those at the address, whoever's they are.
        """
        key, value = "issuer_earner_id", badge.earner_id

        if by_address:
            key, value = "recipient_email_all", badge.email

        # There is no known way to write these inside a filter's value.
        if not value or any(mark in value for mark in ("|", ",", "::")):
            return []

        wanted = f"{key}::{value}|badge_template_id::{badge.template_id}"
        wanted += f"|state::{','.join(STATES)}"
        query, hide = {"filter": wanted}, badge.personal()
        # Each row is checked: had the service ignored the filter, these would be
        # strangers' badges.
        return [
            shown
            for page in self._pages(token, "badges", query, hide=hide)
            for row in page
            if (shown := _read_badge(row, badge, self._own_host))
        ]

    def templates(self, token: str, page: int) -> TemplatePage:
        """Get one page of the active badge templates, sorted by name.

        :param page: From 1.
        """
        rows, is_last = self._page(
            token, "badge_templates", {"filter": "state::active", "sort": "name"}, page
        )
        # One that is listed twice is one, in whatever case its id is written.
        found = {each.id: each for row in rows if (each := _read_template(row))}
        return TemplatePage(list(found.values()), is_last)

    def _pages(
        self, token: str, path: str, query: dict[str, str], *, hide: tuple[str, ...]
    ) -> cabc.Iterator[list[t.Any]]:
        for number in range(1, MAX_PAGES + 1):
            rows, is_last = self._page(token, path, query, number, hide=hide)
            yield rows

            if is_last:
                return

        raise OutcomeUnknown("Credly's list did not end.")

    def _page(
        self,
        token: str,
        path: str,
        query: dict[str, str],
        number: int,
        *,
        hide: tuple[str, ...] = (),
    ) -> tuple[list[t.Any], bool]:
        # The answer's next_page_url has another path, perhaps another host, and may
        # lack the filter: it is never followed.
        query = {**query, "page": str(number)}
        path = f"{path}?{urllib.parse.urlencode(query)}"
        body = self._ask(token, "GET", path, hide=hide)
        rows = answers.data_of(body)

        if not isinstance(rows, list) or not isinstance(body.get("metadata"), dict):
            raise OutcomeUnknown("Credly's response could not be read.")

        total = body["metadata"].get("total_pages")
        is_last = not rows or (isinstance(total, int) and number >= total)
        return rows, is_last

    def _ask(
        self,
        token: str,
        method: str,
        path: str,
        *,
        body: dict[str, t.Any] | None = None,
        hide: tuple[str, ...] = (),
    ) -> t.Any:
        failure: requests.RequestException
        session = self._take_session()

        try:
            request = self._prepare(session, method, f"{self._url}/{path}")
            request.headers["Authorization"] = f"Bearer {token}"

            if body is not None:
                request.headers["Content-Type"] = "application/json"
                request.prepare_body(json.dumps(body).encode(), None)

            # Not by the session, which looks for cookies and where a redirect would
            # lead: neither is followed here.
            response = session.get_adapter(self._url).send(
                request,
                proxies=session.proxies,
                verify=t.cast(bool | str, session.verify),
            )
        except requests.RequestException as e:
            failure = e
        except ValueError:  # of a header, while requests prepares what is not followed
            raise OutcomeUnknown("Credly's response could not be read.") from None
        else:
            self._date = response.headers.get("Date", "")
            # An answer may repeat what was sent, and what it says goes into a log.
            answers.raise_for_status(response, hide=(token, *hide))
            return answers.read_json(response)
        finally:
            self._sessions.append(session)

        # Without the chain: its text holds the address, and that may hold an e-mail.
        raise transport.translate(failure) from None

    def _prepare(
        self, session: requests.Session, method: str, url: str
    ) -> requests.PreparedRequest:
        # Half of what a request costs here is to make it. All but its body is the same
        # each time.
        if (known := self._prepared.get((method, url))) is None:
            known = session.prepare_request(requests.Request(method, url))

            if method == "POST" and url.endswith(("/badges", "/badges/batch")):
                self._prepared[method, url] = known

        return known.copy()

    def _take_session(self) -> requests.Session:
        # The one that was used last: its connection is the most likely to be open.
        try:
            return self._sessions.pop()
        except IndexError:
            return transport.prepare(requests.Session(), self._url, self._timeout)


def _query_of(url: t.Any) -> str | None:
    # Its host and path are never followed: whoever answers may not say where the token
    # is sent.
    if not isinstance(url, str) or not re.match(r"https?://[^/?#]", url):
        return None

    try:
        pairs = urllib.parse.parse_qsl(
            urllib.parse.urlsplit(url).query, keep_blank_values=True
        )
    except ValueError:
        return None

    query = urllib.parse.urlencode(pairs)
    return query if 0 < len(query) <= _MAX_QUERY else None


def same_text(one: t.Any, other: str) -> bool:
    """Whether two texts are the same but for case and the way in which a letter with
    an accent is encoded: how addresses are compared.
    """
    return isinstance(one, str) and plain_text(one) == plain_text(other)


def plain_text(text: str) -> str:
    """Write a text as :func:`same_text` compares it."""
    text = text.strip().casefold()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _is_list(data: t.Any) -> t.TypeGuard[list[t.Any]]:
    return isinstance(data, list)


def _template_of(row: dict[str, t.Any], default: str) -> str:
    template = row.get("badge_template")
    found = template.get("id") if isinstance(template, dict) else None
    return found if isinstance(found, str) else default


def _echoes(data: dict[str, t.Any], badge: BadgeRequest) -> bool:
    """Whether the answer is about the badge that was asked for."""
    return (
        answers.is_uuid(data.get("id"))
        and _template_of(data, badge.template_id).lower() == badge.template_id
        and (
            "recipient_email" not in data
            or same_text(data["recipient_email"], badge.email)
        )
        and (
            not data.get("issuer_earner_id")
            or same_text(data["issuer_earner_id"], badge.earner_id)
        )
    )


def _read_badge(row: t.Any, badge: BadgeRequest, own_host: str | None) -> Badge | None:
    """Read a badge, if it is one of the template and of the member or the address."""
    shown = badges.read(row, own_host)

    if shown is None or shown.template_id != badge.template_id:
        return None

    concerned = same_text(shown.earner_id, badge.earner_id) or (
        badge.email and same_text(shown.email, badge.email)
    )
    return shown if concerned else None


def _read_template(row: t.Any) -> TemplateRow | None:
    # Drafts and archived ones may appear where the filter is not honoured.
    if (
        not isinstance(row, dict)
        or not answers.is_uuid(row.get("id"))
        or row.get("state", "active") != "active"
    ):
        return None

    name = row.get("name")
    image = row.get("image_url")
    image_ok = (
        isinstance(image, str)
        and re.fullmatch(r"https://[!-~]{1,1990}", image) is not None
    )
    return TemplateRow(
        id=row["id"].lower(),
        name=(answers.clean(name, 255) if isinstance(name, str) else "") or row["id"],
        image_url=image if image_ok else None,
        allows_duplicates=row.get("allow_duplicate_badges") is True,
    )
