"""A Credly that is quick and believes everything: where a client's speed is measured,
the service must not be what is slow. It keeps the books: a client's own count proves
nothing. The simulator of ``flask_credly.testing`` is the strict one.

``python -m benchmarks.fake`` prints its port. ``GET /books``, ``/reset``, ``/wait``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
import json
import math
import time
import typing as t
import urllib.parse

PAGE = 50
SEARCH_PAGE = 500
SCOPE = "badge_templates issued_badges"


@dataclasses.dataclass
class Books:
    """What was asked for, and how it is answered until the next reset.

    :param latency: Seconds until an answer. Timers take a little longer: see ``held``.
    :param limit: Requests a window. 0: no limit.
    :param templates: How many there are.
    :param renamed: How many of them have another name than at first.
    :param badges: How many the search lists: of the members m1, m2 and so on.
    """

    latency: float = 0
    limit: int = 0
    window: float = 2
    templates: int = 1
    renamed: int = 0
    badges: int = 0

    issued: int = 0
    duplicates: int = 0
    refused: int = 0
    closed_windows: int = 0
    most_refused: int = 0
    tokens: int = 0
    look_ups: int = 0
    pages: int = 0
    held: float = 0
    """Seconds for which answers were held back in all."""


def template_id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000001"


class Service:
    """Answers requests."""

    def __init__(self) -> None:
        self.reset({})

    def reset(self, given: dict[str, str]) -> None:
        self.books = Books(**{name: json.loads(text) for name, text in given.items()})
        self.badges: dict[tuple[str, str], dict[str, t.Any]] = {}
        self._window_ends = 0.0
        self._in_window = 0

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Get status, extra headers and body."""
        path, _, query = path.partition("?")
        books = self.books

        if path == "/oauth/token":
            books.tokens += 1
            token = {"access_token": "token", "token_type": "Bearer", "scope": SCOPE}
            return 200, "", json.dumps({**token, "expires_in": 7200}).encode()

        if books.limit and (left := self._refuse()):
            return 429, f"Retry-After: {math.ceil(left)}\r\n", b'"Retry later"'

        if path.endswith("/badge_templates"):
            books.pages += 1
            return 200, "", self._list_templates(query)

        if path.endswith("/high_volume_issued_badge_search"):
            books.pages += 1
            return 200, "", self._search(query)

        if path.endswith("/badges/batch"):
            rows = [self._issue(each) for each in json.loads(body)["badges"]]
            return 201, "", json.dumps({"data": rows, "metadata": {}}).encode()

        if method == "POST":
            row = self._issue(json.loads(body))
            return 201, "", json.dumps({"data": row, "metadata": {}}).encode()

        books.look_ups += 1
        return 200, "", self._look_up(query)

    def _refuse(self) -> float | None:
        now = time.monotonic()

        if now >= self._window_ends:
            self._window_ends = now + self.books.window
            self._in_window = 0

        self._in_window += 1
        over = self._in_window - self.books.limit

        if over <= 0:
            return None

        self.books.refused += 1
        self.books.closed_windows += over == 1
        self.books.most_refused = max(self.books.most_refused, over)
        return self._window_ends - now

    def _issue(self, asked: dict[str, str]) -> dict[str, t.Any]:
        books = self.books
        books.issued += 1
        key = (asked["recipient_email"], asked["badge_template_id"])
        books.duplicates += key in self.badges
        id_ = f"{next(_numbers):08x}-0000-4000-8000-000000000002"
        self.badges[key] = badge = _badge(id_, asked)
        return badge

    def _look_up(self, query: str) -> bytes:
        text = dict(urllib.parse.parse_qsl(query)).get("filter", "")
        wanted = dict(part.split("::") for part in text.split("|"))
        found = [
            badge
            for (email, template), badge in self.badges.items()
            if template == wanted["badge_template_id"]
            and email == wanted.get("recipient_email_all", email)
            and badge["issuer_earner_id"]
            == wanted.get("issuer_earner_id", badge["issuer_earner_id"])
        ]
        metadata = {"current_page": 1, "total_pages": 1, "count": len(found)}
        return json.dumps({"data": found, "metadata": metadata}).encode()

    def _search(self, query: str) -> bytes:
        start = int(dict(urllib.parse.parse_qsl(query)).get("search_after", "0"))
        end = min(start + SEARCH_PAGE, self.books.badges)
        address = f'"https://api.example.org/search?search_after={end}"'
        next_ = address if end < self.books.badges else "null"
        rows = ",".join(map(_listed, range(start + 1, end + 1)))
        text = f'{{"data":[{rows}],"metadata":{{"next_page_url":{next_}}}}}'
        return text.encode()

    def _list_templates(self, query: str) -> bytes:
        page = int(dict(urllib.parse.parse_qsl(query)).get("page", "1"))
        numbers = range(self.books.templates)[(page - 1) * PAGE : page * PAGE]
        metadata = {
            "current_page": page,
            "total_pages": -(-self.books.templates // PAGE),
            "count": len(numbers),
            "total_count": self.books.templates,
        }
        rows = [self._template(number) for number in numbers]
        return json.dumps({"data": rows, "metadata": metadata}).encode()

    def _template(self, number: int) -> dict[str, t.Any]:
        new = " (new)" if number < self.books.renamed else ""
        return {
            "id": template_id(number),
            "name": f"Badge {number:05}{new}",
            "state": "active",
            "image_url": f"https://images.example.org/{number}.png",
            "allow_duplicate_badges": False,
        }


_numbers = itertools.count(1)  # no badge has the id of another, also after a reset


def _badge(id_: str, asked: dict[str, str]) -> dict[str, t.Any]:
    return {
        "id": id_,
        "state": "pending",
        "recipient_email": asked["recipient_email"],
        "issuer_earner_id": asked.get("issuer_earner_id"),
        "issued_at": asked.get("issued_at"),
        "badge_template": {"id": asked["badge_template_id"], "name": "Badge"},
        "user": {},
    }


def _listed(number: int) -> str:
    """Write a badge as the search shows it, with the installation of the benchmark."""
    id_ = f"{number:08x}-0000-4000-8000-000000000003"
    earner = hashlib.sha256(f"installation:m{number}".encode()).hexdigest()[:40]
    return (
        f'{{"id":"{id_}","state":"pending","state_updated_at":null,'
        '"issued_at":"2026-01-01T00:00:00.000Z",'
        '"created_at":"2026-01-01T00:00:00.000Z",'
        '"updated_at":"2026-01-01T00:00:00.000Z","expires_at":null,'
        '"issued_to":"Ada Example","issued_to_first_name":"Ada",'
        f'"issued_to_last_name":"Example","issuer_earner_id":"{earner}",'
        f'"recipient_email":"m{number}@example.org","public":false,'
        f'"badge_template":{{"id":"{template_id(0)}","name":"Badge"}},"user":{{}}}}'
    )


class _Connection(asyncio.Protocol):
    # Not on streams: those cost more than the rest of it.

    def __init__(self, service: Service) -> None:
        self._service = service
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = t.cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")

        if not end:
            return

        _, found, length = head.lower().partition(b"\r\ncontent-length:")
        size = int(length.split(b"\r\n", 1)[0]) if found else 0

        if len(rest) < size:
            return

        # A client sends no second request before it has the answer.
        self._received = b""
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self._take(method, path, rest)

    def _take(self, method: str, path: str, body: bytes) -> None:
        given = dict(urllib.parse.parse_qsl(path.partition("?")[2]))

        if path.startswith("/reset"):
            self._service.reset(given)

        if path.startswith("/wait"):
            self._wait_for(int(given["issued"]), time.monotonic() + 60)
        elif path.startswith(("/books", "/reset")):
            books = dataclasses.asdict(self._service.books)
            self._send(200, "", json.dumps(books).encode())
        else:
            answer = self._service.answer(method, path, body)

            if latency := self._service.books.latency:
                now = time.monotonic()
                asyncio.get_running_loop().call_later(
                    latency, self._send_late, now, *answer
                )
            else:
                self._send(*answer)

    def _send_late(self, since: float, *answer: t.Any) -> None:
        self._service.books.held += time.monotonic() - since
        self._send(*answer)

    def _wait_for(self, issued: int, until: float) -> None:
        books = self._service.books

        if books.issued >= issued or time.monotonic() > until:
            self._send(200, "", json.dumps(dataclasses.asdict(books)).encode())
        else:
            asyncio.get_running_loop().call_later(0.01, self._wait_for, issued, until)

    def _send(self, status: int, headers: str, body: bytes) -> None:
        head = (
            f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n"
        )
        self._transport.write(head.encode() + body)


async def serve() -> None:
    """Listen, until the process is ended."""
    service = Service()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(service), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
