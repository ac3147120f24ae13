"""Forms, addresses, and Credly's answers, of any shape. ``make fuzz`` runs thousands.

``CREDLY_TEST_EXAMPLES``: how many examples each test runs.
"""

from __future__ import annotations

import collections.abc as cabc
import copy
import datetime as dt
import json
import os
import re
import typing as t
import urllib.parse

import hypothesis
import pytest
import responses
import sqlalchemy as sa
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from hypothesis import strategies as st
from test_threats import ask
from test_threats import MakeWire
from test_threats import QUESTIONS
from test_threats import Send
from test_threats import wire as wire

from flask_credly.credly import Badge
from flask_credly.credly import Client
from flask_credly.credly import fetch_token
from flask_credly.errors import CredlyError
from flask_credly.models import AuditEntry
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.credly import API
from tests.support.credly import BADGE
from tests.support.credly import issued
from tests.support.credly import listed
from tests.support.credly import ORGANIZATION
from tests.support.credly import REQUEST
from tests.support.credly import TEMPLATE
from tests.support.pages import Browser
from tests.support.pages import HX
from tests.support.pages import WINDOW
from tests.support.surface import fill
from tests.support.surface import past_completions
from tests.support.surface import snapshot
from tests.support.surface import unsafe

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("CREDLY_TEST_EXAMPLES", "15"))

UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


def fuzz(examples: int = EXAMPLES) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# Halves of characters that need two, which no encoding has, are among these.
anything = st.text(st.characters(exclude_categories=()), max_size=30)
ODD = [
    "",
    "\0",
    "a\0b",
    "a\0@example.org",
    "\ud800",
    "%",
    "_",
    "\\",
    "'",
    "9" * 10,
    "9" * 17,
    "9" * 30,
    "9" * 5000,
    "-1",
    "+1",
    "1e5",
    "٣",
    "¹",
    "course:",
    ":",
    "course:\0",
    "x" * 5000,
    "ﷺ" * 600,
    "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 20,
]
texts = st.one_of(anything, st.sampled_from(ODD))


def encode(fields: list[tuple[str, str]]) -> bytes:
    """Write a form as a browser does, but for what no browser would send."""
    return urllib.parse.urlencode(
        [
            (
                name.encode("utf-8", "surrogatepass"),
                value.encode("utf-8", "surrogatepass"),
            )
            for name, value in fields
        ]
    ).encode()


@pytest.fixture
def site(make_host: MakeHost, credly: CredlySimulator) -> tuple[Host, str]:
    host = make_host(past_completions=past_completions)
    return host, fill(host, credly)


PARAMETERS = (
    "after",
    "before",
    "course",
    "id",
    "kind",
    "mapping",
    "page",
    "q",
    "said",
    "status",
    "template",
    "type",
    "undo",
)


@every_database
def test_no_address_breaks_a_page(
    site: tuple[Host, str], credly: CredlySimulator
) -> None:
    """Filters, searches, pages, cursors and ids: what is not understood is left out,
    and nothing is written or asked.
    """
    host, _ = site
    client = host.app.test_client()
    before = snapshot(host, credly)
    rules = [
        rule.rule
        for rule in host.app.url_map.iter_rules()
        if rule.rule.startswith(WINDOW) and "GET" in (rule.methods or ())
    ]
    numbers = st.one_of(
        st.integers(0, 10**20).map(str), st.sampled_from(["9" * 30, "9" * 5000, "-1"])
    )

    @fuzz()
    @hypothesis.given(
        st.sampled_from(rules),
        numbers,
        st.lists(st.tuples(st.sampled_from(PARAMETERS), texts), max_size=4),
        st.sampled_from([{}, HX]),
    )
    def check(
        rule: str, number: str, fields: list[tuple[str, str]], headers: dict[str, str]
    ) -> None:
        path = re.sub("<[a-z_]+:[a-z_]+>", number, rule)
        answer = client.get(
            path, query_string=encode(fields).decode(), headers=headers, buffered=True
        )
        assert answer.status_code in (200, 303, 404)

    for odd in ODD:
        for rule in rules:
            fields = [(name, odd) for name in PARAMETERS]
            check = hypothesis.example(rule, odd if odd.isdigit() else "1", fields, {})(
                check
            )

    for rule in rules:
        for number in ("2147483648", "9223372036854775808", "9" * 5000):
            check = hypothesis.example(rule, number, [], HX)(check)

    check()
    assert snapshot(host, credly) == before


FIELDS = (
    "course",
    "course_text",
    "email",
    "first_name",
    "key",
    "last_name",
    "search",
    "template",
    "template_text",
    "undo",
)


@every_database
def test_no_form_breaks_a_page_or_writes_nonsense(
    site: tuple[Host, str], credly: CredlySimulator
) -> None:
    host, template_id = site
    browser = Browser(host.app)
    token = browser.token(WINDOW)
    valid = ["course:sql", "learning_path:data", template_id, "a@example.org", "Ada"]
    values = st.one_of(texts, st.sampled_from(valid))
    paths = [f"{WINDOW}/mappings{end}" for end in ("", "/1", "/1/test", "/999/test")]
    asked = len(credly.received)

    @fuzz()
    @hypothesis.given(
        st.sampled_from(paths),
        st.lists(st.tuples(st.sampled_from(FIELDS), values), max_size=6),
        st.sampled_from([{}, HX]),
    )
    def check(path: str, fields: list[tuple[str, str]], headers: t.Any) -> None:
        answer = browser.client.post(
            path,
            data=encode([("csrf_token", token), *fields]),
            content_type="application/x-www-form-urlencoded",
            headers=headers,
        )
        assert answer.status_code in (200, 303, 422)

        with host.app.app_context():
            session = host.db.session
            known = {(each.kind, each.id) for each in COURSES}

            for mapping in session.scalars(sa.select(Mapping)):
                assert (mapping.kind, mapping.course_id) in known
                assert mapping.template_id == template_id

            for row in session.scalars(sa.select(Issuance).where(Issuance.test)):
                assert re.fullmatch(r"[^@\s]+@[^@\s]+", row.email)
                assert row.first_name and row.last_name

                for text in (row.email, row.first_name, row.last_name):
                    assert text.isprintable() and len(text) <= 255

            # One mapping is left, so that each example meets the same.
            session.execute(sa.delete(Mapping).where(Mapping.id != 1))
            values = {"kind": "course", "course_id": "py-101"}
            session.execute(sa.update(Mapping).values(**values))
            session.commit()
            session.remove()

    for odd in ODD:
        for path in paths:
            same = [(name, odd) for name in FIELDS if name != "search"]
            check = hypothesis.example(path, same, {})(check)
            name = [
                ("email", f"{odd[:9]}@x.org"),
                ("first_name", odd),
                ("last_name", odd),
            ]
            check = hypothesis.example(path, name, HX)(check)
            mapping = [("course", "course:sql"), ("template", odd)]
            check = hypothesis.example(path, mapping, HX)(check)

    check()
    assert len(credly.received) == asked


def test_credly_is_asked_only_with_what_it_could_have_given(
    site: tuple[Host, str], credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form to connect."""
    # Each may be tried as often as one likes: that is not what is asked here.
    monkeypatch.setattr("flask_credly.ledger.audit._wait", lambda *_: dt.timedelta())
    host, _ = site
    browser = Browser(host.app)
    token = browser.token(f"{WINDOW}/connection")
    names = ("organization_id", "client_id", "client_secret")
    before = snapshot(host, credly)[0]
    values = st.one_of(
        texts,
        st.uuids().map(str),
        st.text(st.characters(codec="ascii"), min_size=1, max_size=10),
        st.sampled_from([credly.organization_id, credly.organization_id.upper()]),
    )

    def is_good(name: str, value: str) -> bool:
        # What is no text arrives as it was quoted.
        value = re.sub("[\ud800-\udfff]", "%ED%A0%80", value.strip())

        if name == "organization_id":
            return re.fullmatch(UUID, value) is not None

        return re.fullmatch("[!-~]{1,255}", value) is not None

    @fuzz()
    @hypothesis.given(
        st.fixed_dictionaries(dict.fromkeys(names, values)), st.sampled_from([{}, HX])
    )
    def check(fields: dict[str, str], headers: t.Any) -> None:
        asked = len(credly.received)
        answer = browser.client.post(
            WINDOW,
            data=encode([("csrf_token", token), *fields.items()]),
            content_type="application/x-www-form-urlencoded",
            headers=headers,
        )
        assert answer.status_code == 422

        if len(credly.received) > asked:
            assert all(is_good(name, value) for name, value in fields.items())

    check()

    # That it was tried is noted, and nothing else.
    with host.app.app_context():
        host.db.session.execute(sa.delete(AuditEntry))
        host.db.session.commit()

    assert snapshot(host, credly)[0] == before


def test_no_body_of_a_request_breaks_a_page(
    site: tuple[Host, str], credly: CredlySimulator
) -> None:
    """Not even one that is no form, or says that it is another kind."""
    host, _ = site
    client = host.app.test_client()
    before = snapshot(host, credly)
    kinds = (
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded; charset=utf-16",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/json",
        "text/plain; charset=\xff",
        "",
    )
    parts = st.sampled_from(
        [
            b"--x\r\n",
            b'Content-Disposition: form-data; name="csrf_token"\r\n\r\n',
            b'Content-Disposition: form-data; name="course"\r\n\r\n',
            b"Content-Type: text/plain; charset=utf-7\r\n\r\n",
            b"csrf_token=%ff%fe&course=%00",
            b"--x--\r\n",
        ]
    )
    bodies = st.lists(st.one_of(parts, st.binary(max_size=30)), max_size=6)

    @fuzz()
    @hypothesis.given(
        st.sampled_from([path for _, path in unsafe(host.app)]),
        bodies.map(b"".join),
        st.sampled_from(kinds),
    )
    def check(path: str, body: bytes, kind: str) -> None:
        answer = client.post(path, data=body, content_type=kind)
        assert answer.status_code in (303, 400, 413, 415, 422)

    check()
    assert snapshot(host, credly) == before


# Credly's answers

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        texts,
        st.sampled_from([BADGE, TEMPLATE, BADGE.upper(), "pending", "active", 10**400]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["data", "id", "message", "errors"]), anything),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)

TEMPLATE_ANSWER = {
    "data": [
        {
            "id": TEMPLATE,
            "name": "Python Badge",
            "state": "active",
            "image_url": "https://images.credly.com/x.png",
            "allow_duplicate_badges": False,
        }
    ],
    "metadata": {"total_pages": 1, "current_page": 1},
}
RIGHT: dict[str, t.Any] = {
    "token": {"access_token": "t", "token_type": "Bearer", "expires_in": 7200},
    "issue": issued(),
    "look-up": listed(issued()),
    "templates": TEMPLATE_ANSWER,
}


def places(
    value: t.Any, path: tuple[t.Any, ...] = ()
) -> cabc.Iterator[tuple[t.Any, ...]]:
    """Every place inside of a JSON value."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )

    for key, each in inner:
        yield from places(each, (*path, key))


def put(value: t.Any, path: tuple[t.Any, ...], new: t.Any) -> t.Any:
    """Put something else in one place."""
    if not path:
        return new

    value = copy.deepcopy(value)
    inner = value

    for key in path[:-1]:
        inner = inner[key]

    inner[path[-1]] = new
    return value


def answers(question: str) -> st.SearchStrategy[bytes]:
    """Bodies that are right but for one place, any JSON, and anything."""
    right = RIGHT[question]
    wrong_in_one = st.builds(
        lambda path, new: put(right, path, new),
        st.sampled_from(list(places(right))),
        values,
    )
    return st.one_of(
        st.one_of(wrong_in_one, values).map(lambda each: json.dumps(each).encode()),
        wrong_in_one.map(lambda each: json.dumps(each).encode()[:-3]),
        st.just(json.dumps(right).encode("utf-16")),
        st.just(b"[" * 100_000),
        st.binary(max_size=50),
    )


header_texts = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"),
    max_size=20,
)
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "Content-Type", "Location", "Set-Cookie", "Date"]),
    st.one_of(
        header_texts,
        st.sampled_from(["9" * 400, "-1", "inf", "Wed, 99 Foo 9999 99:99:99 GMT"]),
    ),
    max_size=2,
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_answer_is_more_than_it_says(question: str) -> None:
    """Nothing but an error of ours comes out of the client, and nothing counts as
    issued, found or listed that has no id of the right form and what was asked for.
    """

    @fuzz()
    @hypothesis.given(
        st.sampled_from(
            [200, 200, 201, 202, 204, 304, 400, 401, 404, 422, 429, 500, 599]
        ),
        headers,
        answers(question),
    )
    def check(status: int, given: dict[str, str], body: bytes) -> None:
        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            address = re.compile(r"https://.*")
            given = {**given, "Content-Type": given.get("Content-Type", "text/html")}
            kind = given.pop("Content-Type")

            for method in ("GET", "POST"):
                mock.add(
                    method,
                    address,
                    status=status,
                    headers=given,
                    body=body,
                    content_type=kind,
                )

            try:
                found = ask_mocked(question)
            except CredlyError as e:
                assert e.detail and e.detail.isprintable()
                assert len(e.detail) < 500
                return

        assert status in (200, 201)

        if question == "issue":
            data = json.loads(body)["data"]
            assert isinstance(found, Badge)
            assert re.fullmatch(UUID, found.id) and found.id == data["id"]
            assert data.get("recipient_email", REQUEST.email) == REQUEST.email
        elif question == "look-up":
            for shown in t.cast(list[Badge], found):
                (row, *_) = [
                    each for each in json.loads(body)["data"] if each["id"] == shown.id
                ]
                assert re.fullmatch(UUID, shown.id)
                assert row["state"] == shown.state
                assert row["badge_template"]["id"].lower() == REQUEST.template_id
        elif question == "token":
            assert re.fullmatch("[!-~]+", t.cast(t.Any, found).value)
            assert 0 <= t.cast(t.Any, found).expires_in <= 366 * 86_400
        elif question == "templates":
            for template in t.cast(t.Any, found).rows:
                assert re.fullmatch(UUID, template.id)
                assert template.name.isprintable() and len(template.name) <= 255
                image = template.image_url
                assert image is None or image.startswith("https://")

    check()


def ask_mocked(question: str) -> object:
    if question == "token":
        return fetch_token(
            "https://www.credly.com/oauth/token", "id", "secret", timeout=1
        )

    with Client(API, ORGANIZATION, timeout=1) as client:
        if question == "issue":
            return client.issue("token", REQUEST)

        if question == "look-up":
            return client.find("token", REQUEST)

        return client.templates("token", 1)


@pytest.mark.parametrize("question", ["token", "issue"])
def test_no_bytes_break_the_client(wire: MakeWire, question: str) -> None:
    """What comes over the wire need not be HTTP at all."""
    body = json.dumps(RIGHT[question]).encode()
    right = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    pieces = st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/9.9 999999 x\r\n",
            b"HTTP/1.1 \xff\r\n",
            b"Content-Length: -1\r\n",
            b"Content-Length: 99999999999999999999\r\n",
            b"Content-Length: 5\r\nContent-Length: 6\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Content-Encoding: deflate, gzip, br, zstd\r\n",
            b"Location: http://[\r\n",
            b"Set-Cookie: \xff=\x00\r\n",
            b"Connection: upgrade\r\n",
            b"\r\n",
            b"ffffffffffffffff\r\n",
            b"-1\r\n",
            body,
        ]
    )
    raw = st.one_of(
        st.lists(st.one_of(pieces, st.binary(max_size=20)), max_size=8).map(b"".join),
        st.builds(
            lambda at, new: right[:at] + new + right[at + 1 :],
            st.integers(0, len(right)),
            st.binary(max_size=3),
        ),
        st.integers(0, len(right)).map(lambda end: right[:end]),
    )
    next_answer = [b""]

    def answer(send: Send) -> None:
        send(next_answer[0])

    url = wire(answer).url

    @fuzz()
    @hypothesis.given(raw)
    def check(sent: bytes) -> None:
        next_answer[0] = sent

        try:
            ask(question, url, timeout=2)
        except CredlyError as e:
            assert e.detail.isprintable()

    check()
