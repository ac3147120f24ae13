"""What the simulated Credly received, and what a client should not have done."""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import re
import typing as t

from .serving import Call
from .serving import Reply

Kind = t.Literal[
    "token",
    "templates",
    "template",
    "issue",
    "batch",
    "look-up",
    "search",
    "badge",
    "revoke",
    "replace",
    "organization",
    "other",
]

KINDS: tuple[Kind, ...] = t.get_args(Kind)

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "templates": ("filter", "sort", "page"),
    "look-up": ("filter", "sort", "page"),
    "search": ("filter", "badge_format", "search_after"),
}
_REPEATED_PAGE = re.compile(r"/api/v1/")
_FORBIDDEN = re.compile(r"/v1/organizations/[^/]+/badges/.+")


@dataclasses.dataclass(frozen=True)
class Received:
    """One request as it arrived.

    :param method: The HTTP method.
    :param path: The decoded path, as sent.
    :param query: The decoded query parameters.
    :param headers: The headers. ``Authorization`` is ``"***"``.
    :param json: The decoded JSON body, or the form of a token request with
        ``client_secret`` as ``"***"``. ``None`` if it could not be read.
    :param status: The status sent, ``None`` if the connection was just closed.
    :param at: The simulator's time.
    :param kind: What was asked for.
    :param organization_id: Of the organization whose request it is.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    json: object | None
    status: int | None
    at: float
    kind: Kind
    organization_id: str


class Record:
    """The requests of an organization, and the problems with them.

    :param is_secret: Whether a query parameter of this name and value is, or has
        in it, what must not be in an address.
    :param of_all: The record that gets the problems of all organizations.
    """

    def __init__(
        self, is_secret: cabc.Callable[[str, str], bool], of_all: Record | None
    ) -> None:
        self.problems: list[str] = []
        self.received: list[Received] = []
        self._of_all = of_all
        self._writes: collections.Counter[str] = collections.Counter()
        self._is_secret = is_secret

    def add_problem(self, text: str) -> None:
        self.problems.append(text)

        if self._of_all is not None:
            self._of_all.add_problem(text)

    def note(self, call: Call, text: str) -> None:
        self.add_problem(f"{call.method} {call.path}: {text}")

    def judge(self, call: Call, kind: Kind, secrets: cabc.Iterable[str]) -> None:
        """Note what a real server might let pass."""
        if not call.headers.get("User-Agent"):
            self.note(call, "no User-Agent")

        if call.timeout_missing:
            self.note(call, "no timeout")

        if _REPEATED_PAGE.match(call.path):
            self.note(call, "a page URL of an answer was followed")

        if kind == "other" and call.method != "GET" and _FORBIDDEN.match(call.path):
            self.note(call, "delete is not to be called")

        if kind != "token" and any(one.encode() in call.body for one in secrets):
            self.note(call, "the client secret in the body")

        self._judge_query(call, kind)

    def _judge_query(self, call: Call, kind: Kind) -> None:
        allowed = _PARAMETERS.get(kind, ())
        names = [name for name, _ in call.query]

        for name, value in call.query:
            if self._is_secret(name, value):
                self.note(call, f"credentials in the query string ({name!r})")
            elif name not in allowed and kind != "other":
                self.note(call, f"unknown query parameter {name!r}")

        if len(names) != len(set(names)):
            self.note(call, "a query parameter is repeated")

    def count_write(self, call: Call, kind: Kind, about: str, allowed: int) -> None:
        """Count a request that writes.

        :param about: What it writes.
        :param allowed: How many about the same are no problem.
        """
        key = f"{kind} {about}"
        self._writes[key] += 1

        if self._writes[key] > allowed:
            self.note(call, f"{kind} request no. {self._writes[key]} for {about}")

    def write(
        self,
        call: Call,
        kind: Kind,
        body: object,
        reply: Reply,
        *,
        at: float,
        organization_id: str,
    ) -> Received:
        """Keep a request, without what is secret in it."""
        headers = {name.title(): value for name, value in call.headers.items()}

        if "Authorization" in headers:
            headers["Authorization"] = "***"

        if isinstance(body, dict) and "client_secret" in body:
            body = body | {"client_secret": "***"}

        query = {
            name: "***" if self._is_secret(name, value) else value
            for name, value in call.query
        }
        received = Received(
            method=call.method,
            path=call.path,
            query=query,
            headers=headers,
            json=body,
            status=None if reply.silent else reply.status,
            at=at,
            kind=kind,
            organization_id=organization_id,
        )
        self.received.append(received)
        return received

    def clear(self) -> None:
        self.problems.clear()
        self.received.clear()
        self._writes.clear()


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {KINDS}.")
