"""An organization at the simulated Credly, and what a test does with it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import secrets
import threading
import time
import typing as t
import uuid

from . import rules
from . import shapes
from .book import Book
from .entry import Change
from .entry import Mail
from .lists import Cursors
from .manners import Manners
from .record import check_kind
from .record import Kind
from .record import Received
from .record import Record
from .rules import Row

TOKEN_SECONDS = 7200
_SECRET_PARAMETERS = (
    "client_id",
    "client_secret",
    "access_token",
    "bearer_token",
    "token",
    "api_key",
)


@dataclasses.dataclass
class Token:
    """An access token that was given."""

    scopes: tuple[str, ...]
    expires_at: float
    revoked: bool = False


class Service:
    """What the organizations of one simulator share."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self.offset: float = 0.0
        self.organizations: list[Organization] = []
        self.users: dict[str, str] = {}

    def clock(self) -> float:
        """Get the simulator's time in epoch seconds."""
        return time.time() + self.offset

    def secrets(self) -> list[str]:
        """Get the client secrets."""
        return [each.client_secret for each in self.organizations]

    def is_secret(self, name: str, value: str) -> bool:
        """Whether a query parameter is, or holds, what must not be in an address."""
        return name.lower() in _SECRET_PARAMETERS or any(
            each.is_secret(value) for each in self.organizations
        )


class Organization(Manners):
    """An organization at the simulated Credly, with its credentials, templates, badges,
    switches and faults, and the record of its requests. Create one with
    :meth:`CredlySimulator.add_organization`.

    A request belongs to the organization whose credentials it carries, or otherwise to
    the one in its address.
    """

    organization_id: str
    """A UUID."""

    name: str
    """Its name, as its templates and badges show it."""

    client_id: str
    """Client ID of its OAuth application."""

    client_secret: str
    """Client secret of its OAuth application."""

    def __init__(
        self,
        service: Service,
        organization_id: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
    ) -> None:
        super().__init__(service.lock)
        others = service.organizations
        number = len(others) + 1
        self.service = service
        self.organization_id = (organization_id or str(uuid.uuid4())).lower()
        self.name = f"Example Academy {number}" if number > 1 else "Example Academy"
        self.client_id = client_id or secrets.token_urlsafe(32)
        self.client_secret = client_secret or secrets.token_urlsafe(32)
        self._tokens: dict[str, Token] = {}
        self.cursors: Cursors = Cursors()
        self._client_exists = True
        of_all = others[0].record if others else None
        self.record: Record = Record(service.is_secret, of_all)
        self.book: Book = Book(
            service.clock, service.users, self.record.add_problem, self
        )
        others.append(self)

    def row(self) -> Row:
        """Return the organization as Credly shows it."""
        return shapes.organization_row(self.organization_id, self.name)

    def clock(self) -> float:
        """Get the simulator's time in epoch seconds."""
        return self.service.clock()

    def now(self) -> dt.datetime:
        """Get the simulator's time, in UTC."""
        return dt.datetime.fromtimestamp(self.clock(), dt.UTC)

    # Templates

    def add_template(
        self,
        name: str,
        *,
        id: str | None = None,
        state: str = "active",
        allow_duplicate_badges: bool = False,
        image: bool = True,
        expires: int | dt.datetime | None = None,
        notify_expiring: bool = False,
    ) -> str:
        """Add a badge template, and return its id.

        :param name: Its name. Two templates may have the same one.
        :param id: A UUID. Random by default.
        :param state: ``"active"``, ``"archived"`` or ``"draft"``.
        :param allow_duplicate_badges: Whether an earner can get it twice.
        :param image: Whether it has an image. A draft never shows one.
        :param expires: When its badges expire, unless the request says otherwise: a
            number of months after their date of issue, or a fixed time.
        :param notify_expiring: Whether an earner gets a mail 60 days before a badge
            expires.
        """
        _check_state(state)
        template_id = (id or str(uuid.uuid4())).lower()

        with self.lock:
            self.book.add_template(
                template_id,
                self.row(),
                name=name,
                state=state,
                allow_duplicate_badges=allow_duplicate_badges,
                image=image,
                expires=expires,
                notify_expiring=notify_expiring,
            )

        return template_id

    def change_template(self, id: str, **changes: t.Any) -> None:
        """Change a template as its owner would: ``state=``, ``name=``, ``expires=`` or
        any other key of its row.

        :param id: The template's id.
        """
        if "state" in changes:
            _check_state(changes["state"])

        if "expires" in changes:
            changes |= shapes.expiry_keys(changes.pop("expires"))

        with self.lock:
            self.book.change_template(id, changes)

    def delete_template(self, id: str) -> None:
        """Delete a template. Issued badges stay."""
        with self.lock:
            del self.book.templates[id]

    # Badges

    @property
    def badges(self) -> list[Row]:
        """The badges in the order in which they were issued, even if the response was
        lost."""
        return self.badges_for()

    def badges_for(
        self,
        member_email: str | None = None,
        earner_id: str | None = None,
        template_id: str | None = None,
        *,
        in_force: bool = False,
    ) -> list[Row]:
        """Return the badges of an earner, of a template, or of both.

        :param member_email: The address on the badge, in any case.
        :param earner_id: The ``issuer_earner_id``.
        :param template_id: The template's id.
        :param in_force: Whether to return only badges that are pending or accepted, and
            neither replaced nor expired.
        """
        with self.lock:
            return self.book.select(member_email, earner_id, template_id, in_force)

    def award(
        self,
        template_id: str,
        recipient_email: str,
        *,
        first_name: str = "Example",
        last_name: str = "Earner",
        issuer_earner_id: str | None = None,
        issued_at: dt.datetime | None = None,
        **fields: t.Any,
    ) -> str:
        """Issue a badge as somebody would by hand or from another system, and return
        its id.

        :param fields: Any other fields of a request to issue.
        """
        with self.lock:
            at = self.clock()
            issued_at = issued_at or self.now()
            body = {
                "badge_template_id": template_id,
                "recipient_email": recipient_email,
                "issued_to_first_name": first_name,
                "issued_to_last_name": last_name,
                "issuer_earner_id": issuer_earner_id,
                "issued_at": rules.stamp(issued_at),
                **fields,
            }
            return t.cast(str, self.book.issue(body, at, "issuer")["id"])

    def accept(self, badge_id: str) -> None:
        """Accept a badge as its earner would."""
        with self.lock:
            self.book.accept(badge_id)

    def reject(self, badge_id: str) -> None:
        """Reject a badge as its earner would, even after accepting it."""
        with self.lock:
            self.book.reject(badge_id)

    def make_public(self, badge_id: str) -> None:
        """Show an accepted badge to everybody, as its earner would."""
        with self.lock:
            self.book.set_public(badge_id, True)

    def make_private(self, badge_id: str) -> None:
        """Hide an accepted badge from all others, as its earner would."""
        with self.lock:
            self.book.set_public(badge_id, False)

    def revoke_badge(self, badge_id: str, reason: str = "Issued in error") -> None:
        """Revoke a badge as the issuer would in Credly's own pages. It no longer
        prevents a new one: see :attr:`states_in_the_way`.
        """
        with self.lock:
            at = self.clock()
            self.book.revoke(badge_id, at, "issuer", reason=reason, told=True)

    def replace_badge(
        self, badge_id: str, template_id: str | None = None, **changes: t.Any
    ) -> str:
        """Replace a badge as the issuer would in Credly's own pages, and return the new
        badge's id.

        :param template_id: The new badge's template. By default, the same one.
        :param changes: Other fields of a request to replace, such as
            ``issued_to_last_name="Roe"``. ``issued_at`` defaults to now.
        :raises Refusal: If Credly would refuse it.
        """
        with self.lock:
            old, at = self.book.find(badge_id).row, self.clock()
            body = {"issued_at": rules.stamp(self.now())} | changes
            body["badge_template_id"] = template_id or old["badge_template"]["id"]
            return t.cast(str, self.book.replace(badge_id, body, at, "issuer")["id"])

    def delete_badge(self, badge_id: str) -> None:
        """Delete a badge for good, as the issuer would. No list shows it any more."""
        with self.lock:
            self.book.delete(badge_id)

    @property
    def mails(self) -> list[Mail]:
        """The mails that Credly would have sent, in order. If
        ``suppress_badge_notification_email`` is set for a badge, only the mail about
        its revocation is included.
        """
        with self.lock:
            self.book.agenda.settle()
            return list(self.book.mails)

    def history(self, badge_id: str) -> list[Change]:
        """Return the changes of a badge since it was issued."""
        with self.lock:
            return list(self.book.find(badge_id).history)

    def add_account(self, *emails: str) -> str:
        """Give these addresses to one Credly user, whom all organizations share, and
        return the user's id.
        """
        user_id = str(uuid.uuid4())

        with self.lock:
            users = self.service.users
            users.update({email.casefold(): user_id for email in emails})

        return user_id

    # The record

    @property
    def problems(self) -> list[str]:
        """Requests that a real server might accept but that a client should not send.
        The simulator's list includes those of all its organizations.
        """
        return self.record.problems

    @property
    def received(self) -> list[Received]:
        """The requests in the order in which they arrived."""
        with self.lock:
            return list(self.record.received)

    def count(self, kind: Kind) -> int:
        """Count the requests of one kind."""
        check_kind(kind)
        return sum(request.kind == kind for request in self.received)

    def reset(self) -> None:
        """Delete badges, mails, record, faults and problems, and end the rate limit.
        Templates, credentials, tokens and switches stay.
        """
        with self.lock:
            self.book.clear()
            self.record.clear()
            self._faults.clear()
            self.cursors.clear()
            self._rate_limit = None

    # Credentials

    def revoke_tokens(self) -> None:
        """Make all access tokens invalid."""
        with self.lock:
            for token in self._tokens.values():
                token.revoked = True

    @property
    def has_client(self) -> bool:
        """Whether the OAuth application exists."""
        return self._client_exists

    def revoke_client(self) -> None:
        """Delete the OAuth application: its tokens and its secret are invalid."""
        with self.lock:
            self._client_exists = False
            self.revoke_tokens()

    def restore_client(self) -> None:
        """Restore the OAuth application. Its old tokens stay invalid."""
        with self.lock:
            self._client_exists = True

    def new_secret(self) -> str:
        """Replace the client secret. Tokens stay valid."""
        with self.lock:
            self.client_secret = secrets.token_urlsafe(32)
            return self.client_secret

    def knows(self, credentials: tuple[str, str]) -> bool:
        """Whether these are the Client ID and Client Secret."""
        known = (self.client_id, self.client_secret)
        return self._client_exists and credentials == known

    def give_token(self, scopes: tuple[str, ...]) -> str:
        """Make an access token."""
        value = secrets.token_urlsafe(32)
        self._tokens[value] = Token(scopes, self.clock() + TOKEN_SECONDS)
        return value

    def find_token(self, value: str) -> Token | None:
        """Return a token, whether or not it is still valid."""
        return self._tokens.get(value)

    def is_secret(self, value: str) -> bool:
        """Whether a text is a token or contains the secret."""
        return value in self._tokens or self.client_secret in value


def _check_state(state: str) -> None:
    if state not in rules.STATES:
        raise ValueError(f"state is {state!r}; it must be one of {rules.STATES}.")
