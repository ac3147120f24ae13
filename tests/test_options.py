"""Options of a mapping, and optional facts of a member: through to Credly's request."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import completion_withdrawn
from flask_credly import course_completed
from flask_credly import IdEvidence
from flask_credly import Member
from flask_credly import PastCompletion
from flask_credly import UrlEvidence
from flask_credly.issuing import backfill
from flask_credly.ledger import backfills
from flask_credly.ledger import issuances
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.options import add_months
from flask_credly.options import find_locale
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator

ADA = Member(
    id="42",
    email="ada@example.org",
    first_name="Ada",
    last_name="Example",
    middle_name="Byron",
    locale="fr_BE",
    country="Belgium",
    state_or_province="Liège",
)

PAGE = UrlEvidence("Final project", "https://learn.example.org/projects/7", "Graded A")
NUMBER = IdEvidence("Certificate", "C-2026-7")

WHEN = dt.datetime(2026, 1, 31, 23, 30, tzinfo=dt.UTC)

USUAL = {
    "recipient_email",
    "issued_to_first_name",
    "issued_to_last_name",
    "badge_template_id",
    "issued_at",
    "issuer_earner_id",
}


def set_options(host: Host, **options: t.Any) -> None:
    # What it has read may be of a snapshot of before.
    host.db.session.rollback()
    (mapping,) = accounts.list_mappings(host.db.session, host.state.tenant)
    accounts.change_options(host.state, mapping.id, Options(**options))
    host.db.session.rollback()


def sent(credly: CredlySimulator) -> dict[str, t.Any]:
    """What the last request for a badge held."""
    last = [each for each in credly.received if each.kind == "issue"][-1]
    return t.cast(dict[str, t.Any], last.json)


def issued_with(connected: Connected, member: Member = ADA, **given: t.Any) -> t.Any:
    """What is sent besides the usual."""
    connected.host.complete(member=member, **given)
    connected.host.drain()
    assert connected.host.row().state == "issued"
    body = sent(connected.credly)
    return {name: value for name, value in body.items() if name not in USUAL}


def test_nothing_is_sent_that_is_not_set(connected: Connected) -> None:
    assert issued_with(connected, a_member()) == {}
    assert connected.host.row().options is None
    assert connected.host.row().extras is None


def test_what_a_member_has_is_sent(connected: Connected) -> None:
    assert issued_with(connected) == {
        "issued_to_middle_name": "Byron",
        "country_name": "Belgium",
        "state_or_province": "Liège",
    }


@every_database
def test_what_a_host_makes_of_json_is_its_own_affair(
    make_connected: MakeConnected,
) -> None:
    def never(value: object) -> t.NoReturn:
        raise AssertionError("asked for")

    functions = {"json_serializer": never, "json_deserializer": never}
    connected = make_connected(SQLALCHEMY_ENGINE_OPTIONS=functions)
    host, _, _ = connected
    set_options(host, withdrawn="silent", evidence=True, group="Spring")

    assert issued_with(connected, evidence=[NUMBER]) == {
        "issued_to_middle_name": "Byron",
        "country_name": "Belgium",
        "state_or_province": "Liège",
        "issuer_earner_group": {"name": "Spring"},
        "evidence": [{"type": "IdEvidence", "title": "Certificate", "id": "C-2026-7"}],
    }

    completion_withdrawn.send(host.app, member_id="42", course_id="py-101")
    host.drain()
    assert host.row().state == "revoked"


def test_a_dict_may_say_it_and_another_object_may_mean_something_else(
    connected: Connected,
) -> None:
    host = connected.host

    class User:
        id, email, first_name, last_name = "1", "u@example.org", "Una", "User"

        @property
        def country(self) -> str:
            raise AssertionError("asked for")

    host.complete(member=t.cast(t.Any, User()))
    host.complete(member=t.cast(t.Any, dataclasses.asdict(ADA)))

    assert [row.extras and row.extras["country"] for row in host.rows()] == [
        None,
        "Belgium",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("value", [7, b"x", "x" * 256, "", "  ", "\0", ["x"]])
@pytest.mark.parametrize(
    "name", ["middle_name", "locale", "country", "state_or_province"]
)
def test_what_cannot_be_used_costs_no_badge(
    connected: Connected, name: str, value: t.Any
) -> None:
    set_options(connected.host, locale="member")

    member = dataclasses.replace(a_member(), **{name: value})

    assert issued_with(connected, member) == {}
    assert connected.host.row().extras is None
    assert connected.host.log() == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        *((code, code) for code in ("en", "zh-CN", "pt", "es-ES", "es-US", "pt-BR")),
        ("es", "es-ES"),
        ("zh", "zh-CN"),
        ("pt", "pt"),
        ("fr", "fr"),
        ("es-MX", "es-ES"),
        ("pt_br", "pt-BR"),
        ("FR-ca", "fr-CA"),
        ("de-AT", "de"),
        ("nl", None),
        ("klingon", None),
        ("e", None),
        ("-", None),
        ("", None),
    ],
)
def test_a_language_becomes_one_of_credlys(wanted: str, found: str | None) -> None:
    assert find_locale(wanted) == found


@pytest.mark.parametrize(
    ("chosen", "members", "found"),
    [
        ("", "fr", None),
        ("member", "fr-BE", "fr"),
        ("member", "nl", None),
        ("member", None, None),
        ("ja", "fr", "ja"),
    ],
)
def test_the_language_of_the_mail(
    connected: Connected, chosen: str, members: str | None, found: str | None
) -> None:
    set_options(connected.host, locale=chosen)
    member = dataclasses.replace(a_member(), locale=members)

    assert issued_with(connected, member).get("locale") == found


def test_credly_does_not_write(connected: Connected) -> None:
    set_options(connected.host, mail=False)

    assert issued_with(connected, a_member()) == {
        "suppress_badge_notification_email": True
    }


def test_a_group_tag(connected: Connected) -> None:
    set_options(connected.host, group="Class of 2026")

    assert issued_with(connected, a_member()) == {
        "issuer_earner_group": {"name": "Class of 2026"}
    }


@pytest.mark.parametrize(
    ("expires", "sent"),
    [
        ("never", False),
        (1, "2026-02-28 23:59:59 +0000"),
        (600, "2076-01-31 23:59:59 +0000"),
    ],
)
def test_until_when_a_badge_holds(
    connected: Connected, expires: t.Any, sent: t.Any
) -> None:
    set_options(connected.host, expires=expires)

    assert issued_with(connected, a_member(), completed_at=WHEN) == {"expires_at": sent}


@pytest.mark.parametrize(
    ("day", "months", "then"),
    [
        ("2026-01-31", 1, "2026-02-28"),
        ("2028-01-31", 1, "2028-02-29"),
        ("2028-02-29", 12, "2029-02-28"),
        ("2028-02-29", 48, "2032-02-29"),
        ("2026-12-15", 1, "2027-01-15"),
        ("2026-11-30", 3, "2027-02-28"),
        ("2026-10-31", 600, "2076-10-31"),
    ],
)
def test_months_are_clamped_to_their_end(day: str, months: int, then: str) -> None:
    found = add_months(dt.date.fromisoformat(day), months)

    assert found == dt.date.fromisoformat(then)


def test_a_day_is_one_of_utc() -> None:
    east = dt.timezone(dt.timedelta(hours=14))
    at = dt.datetime(2026, 3, 1, 9, tzinfo=east)

    assert Options(expires=1).expires_at(at) == dt.datetime(
        2026, 3, 28, 23, 59, 59, tzinfo=dt.UTC
    )


class TestEvidence:
    def test_is_sent_where_the_mapping_says_so(self, connected: Connected) -> None:
        set_options(connected.host, evidence=True)

        assert issued_with(connected, a_member(), evidence=[PAGE, NUMBER]) == {
            "evidence": [
                {
                    "type": "UrlEvidence",
                    "name": "Final project",
                    "value": "https://learn.example.org/projects/7",
                    "description": "Graded A",
                },
                {"type": "IdEvidence", "title": "Certificate", "id": "C-2026-7"},
            ]
        }
        assert connected.host.log() == []

    def test_is_not_sent_otherwise(self, connected: Connected) -> None:
        bad = UrlEvidence("x", "http://example.org")

        assert issued_with(connected, a_member(), evidence=[PAGE, bad]) == {}
        # Nobody misses it.
        assert connected.host.log() == []

    @pytest.mark.parametrize(
        "url",
        [
            "https://example.org",
            "https://example.org:8443/a(b)?c=%C3%A9&d[]=1#e",
            "https://8.8.8.8/",
            "https://[2001:4860:4860::8888]/x",
            "https://example.org/" + "x" * 1980,
        ],
    )
    def test_such_an_address_is_sent(self, connected: Connected, url: str) -> None:
        set_options(connected.host, evidence=True)
        body = issued_with(connected, a_member(), evidence=[UrlEvidence("x", url)])

        assert body["evidence"][0]["value"] == url

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("http://example.org/x", "https://"),
            ("javascript:alert(1)", "https://"),
            ("https:/example.org", "https://"),
            ("https://", "https://"),
            ("https:///x", "https://"),
            (" https://example.org", "https://"),
            ("https://example.org/a b", "https://"),
            ("https://example.org/é", "https://"),
            ("https://example.org\\@127.0.0.1", "https://"),
            ("https://[::1", "https://"),
            ("https://example.org:99999/", "https://"),
            ("https://example.org/" + "x" * 1981, "longer"),
            ("https://ada@example.org/", "user name"),
            ("https://ada:secret@example.org/", "user name"),
            ("https://127.0.0.1/", "private"),
            ("https://127.1/", "private"),
            ("https://0x7f000001/", "private"),
            ("https://2130706433/", "private"),
            ("https://127.0.0.1./", "private"),
            ("https://10.1.2.3/", "private"),
            ("https://192.168.0.1:443/", "private"),
            ("https://169.254.169.254/latest", "private"),
            ("https://0.0.0.0/", "private"),
            ("https://[::1]/", "private"),
            ("https://[fe80::1]/", "private"),
            ("https://[fd00::1]/", "private"),
            ("https://[::ffff:127.0.0.1]/", "private"),
            (7, "https://"),
            (None, "https://"),
        ],
    )
    def test_such_an_address_is_left_out_with_an_entry(
        self, connected: Connected, url: t.Any, words: str
    ) -> None:
        host = connected.host
        set_options(host, evidence=True)
        given = [UrlEvidence("Bad", url), NUMBER]
        body = issued_with(connected, a_member(), evidence=given)

        assert [each["type"] for each in body["evidence"]] == ["IdEvidence"]

        ((error, details),) = host.log()
        assert error == "Evidence left out"
        assert details.startswith(
            "Badge “Python Badge” was issued. Evidence 1 was left"
        )
        assert words in details
        # Whoever reads the entry shall not follow it, nor know what it held.
        assert not isinstance(url, str) or not url[8:] or url[8:] not in details

    @pytest.mark.parametrize(
        "evidence",
        [
            7,
            "https://example.org",
            {"name": "x"},
            ["https://example.org"],
            [None],
            [UrlEvidence("", "https://example.org")],
            [UrlEvidence(t.cast(t.Any, 7), "https://example.org")],
            [UrlEvidence("x" * 256, "https://example.org")],
            [IdEvidence("")],
            [IdEvidence("x", "y" * 256)],
            [IdEvidence("x", t.cast(t.Any, 7))],
            (1 // 0 for _ in range(1)),
        ],
    )
    def test_what_is_none_costs_no_badge(
        self, connected: Connected, evidence: t.Any
    ) -> None:
        set_options(connected.host, evidence=True)

        assert issued_with(connected, a_member(), evidence=evidence) == {}
        assert [error for error, _ in connected.host.log()] == ["Evidence left out"]

    def test_five_are_sent_at_most(self, connected: Connected) -> None:
        set_options(connected.host, evidence=True)
        given = (IdEvidence(f"Number {number}") for number in range(1000))
        body = issued_with(connected, a_member(), evidence=given)

        assert len(body["evidence"]) == 5
        ((_, details),) = connected.host.log()
        assert "only 5 are sent" in details

    def test_none_is_none(self, connected: Connected) -> None:
        set_options(connected.host, evidence=True)

        assert issued_with(connected, a_member(), evidence=[]) == {}
        assert connected.host.log() == []

    def test_the_entry_is_written_once_and_when_it_is_issued(
        self, connected: Connected
    ) -> None:
        host = connected.host
        set_options(host, evidence=True)
        connected.credly.posts_allowed = 3
        connected.credly.fail("issue", status=422, times=2)
        host.complete(evidence=[7])
        assert host.log() == []

        host.drain(2)
        assert [error for error, _ in host.log()] == ["Badge issuance failed"]

        issuances.retry(host.state.engine, host.state.tenant, host.row().id)
        host.drain(2)
        assert [error for error, _ in host.log()] == [
            "Badge issuance failed",
            "Evidence left out",
        ]

    def test_what_credly_says_of_it_does_not_repeat_it(
        self, connected: Connected
    ) -> None:
        host = connected.host
        set_options(host, evidence=True)
        said = f"Evidence {PAGE.url} of Ada Byron Example with {NUMBER.id} is invalid"
        connected.credly.fail(
            "issue", status=422, times=2, body={"data": {"message": said}}
        )
        host.complete(member=ADA, evidence=[PAGE, NUMBER])
        host.drain(2)

        error = host.row().error or ""
        assert host.row().state == "failed"
        assert "is invalid" in error
        assert not any(part in error for part in (PAGE.url, "Byron", NUMBER.id))


@every_database
def test_the_row_keeps_the_options_of_when_it_was_recorded(
    make_connected: MakeConnected,
) -> None:
    connected = make_connected()
    host, _, _ = connected
    first = {"expires": 12, "group": "Ünïcode “1”", "mail": False}
    set_options(host, **first)
    host.complete("1", evidence=[PAGE, 7])
    # In the host's own transaction, too.
    host.db.session.execute(sa.update(Mapping).values(course_title="Python"))
    course_completed.send(host.app, member=ADA, course_id=COURSES[0].id)
    host.db.session.commit()
    set_options(host)
    host.complete("3")

    assert [row.options for row in host.rows()] == [first, first, None]
    assert [row.extras for row in host.rows()] == [
        {
            "evidence": [
                {
                    "type": "UrlEvidence",
                    "name": PAGE.name,
                    "value": PAGE.url,
                    "description": PAGE.description,
                }
            ],
            "left_out": [[2, "type"]],
        },
        {
            "middle_name": "Byron",
            "locale": "fr_BE",
            "country": "Belgium",
            "state_or_province": "Liège",
        },
        None,
    ]
    # Nothing that is not said is JSON's null.
    assert (
        host.db.session.scalar(
            sa.select(sa.func.count()).where(
                Issuance.extras.is_(None), Issuance.options.is_(None)
            )
        )
        == 1
    )

    host.drain()
    assert {row.state for row in host.rows()} == {"issued"}
    assert connected.credly.count("issue") == 3


@every_database
def test_a_row_that_comes_back_has_the_options_and_facts_of_now(
    connected: Connected,
) -> None:
    host, _, _ = connected
    set_options(host, group="Before")
    host.complete(member=ADA)
    (mapping,) = accounts.list_mappings(host.db.session, host.state.tenant)
    template_id = mapping.template_id
    accounts.remove_mapping(host.state, mapping.id)
    host.drain()
    assert host.row().state == "cancelled"

    accounts.add_mapping(host.state, COURSES[0], template_id)
    set_options(host, group="Now", evidence=True)
    host.complete(member=a_member("42"), evidence=[NUMBER])

    row = host.row()
    assert (row.state, row.options) == ("none", {"group": "Now", "evidence": True})
    assert row.extras is not None and list(row.extras) == ["evidence"]


@every_database
def test_a_row_that_follows_its_mapping_takes_over_the_options(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    host.complete()
    other = credly.add_template("Other")
    accounts.sync_templates(host.state)
    (mapping,) = accounts.list_mappings(host.db.session, host.state.tenant)
    accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
    set_options(host, group="Now")
    host.drain()

    assert (host.row().template_id, host.row().options) == (other, {"group": "Now"})
    assert sent(credly)["issuer_earner_group"] == {"name": "Now"}


def test_the_automatic_retry_keeps_the_options_and_an_admins_takes_those_of_now(
    connected: Connected,
) -> None:
    host = connected.host
    set_options(host, group="Before")
    connected.credly.posts_allowed = 3
    connected.credly.fail("issue", status=422, times=2)
    host.complete()
    set_options(host, group="Now")
    host.drain(2)

    assert host.row().state == "failed"
    assert sent(connected.credly)["issuer_earner_group"] == {"name": "Before"}

    issuances.retry(host.state.engine, host.state.tenant, host.row().id)
    host.drain(2)
    assert host.row().state == "issued"
    assert sent(connected.credly)["issuer_earner_group"] == {"name": "Now"}


def test_a_retry_asks_for_the_member_as_it_is_now(
    make_connected: MakeConnected,
) -> None:
    # No middle name any more; of the country the hook does not know.
    now = dataclasses.replace(ADA, middle_name="", country=None, locale="de")
    host, credly, _ = make_connected(member=lambda _: now)
    set_options(host, locale="member", evidence=True)
    credly.fail("issue", status=422)
    host.complete(member=ADA, evidence=[NUMBER])
    host.drain(2)

    assert {k: v for k, v in sent(credly).items() if k not in USUAL} == {
        "locale": "de",
        "country_name": "Belgium",
        "state_or_province": "Liège",
        "evidence": [{"type": "IdEvidence", "title": "Certificate", "id": "C-2026-7"}],
    }
    assert host.row().extras is not None
    assert "middle_name" not in host.row().extras


@every_database
def test_past_completions_bring_facts_and_evidence(
    make_connected: MakeConnected,
) -> None:
    host, credly, _ = make_connected(
        past_completions=lambda course, since: [
            PastCompletion(ADA, WHEN, evidence=[NUMBER]),
            (a_member("43"), WHEN),
        ]
    )
    set_options(host, evidence=True, expires=12)
    (mapping,) = accounts.list_mappings(host.db.session, host.state.tenant)

    for _ in range(2):
        backfills.start(host.state.engine, host.state.tenant, mapping.id)
        backfill.run(host.state)

    host.drain()
    assert [row.state for row in host.rows()] == ["issued", "issued"]
    bodies = [t.cast(t.Any, each.json) for each in credly.received]
    bodies = [each for each in bodies if each and "recipient_email" in each]
    assert [each["expires_at"] for each in bodies] == ["2027-01-31 23:59:59 +0000"] * 2
    assert [len(each.get("evidence", ())) for each in bodies] == [1, 0]


@every_database
def test_what_a_stopped_run_left_comes_back_with_the_options_of_now(
    make_connected: MakeConnected,
) -> None:
    given: list[t.Any] = [(ADA, WHEN)]
    host, _, _ = make_connected(past_completions=lambda course, since: given)
    (mapping,) = accounts.list_mappings(host.db.session, host.state.tenant)
    run = backfills.start(host.state.engine, host.state.tenant, mapping.id)
    backfill.run(host.state)
    assert run is not None
    backfills.stop(host.state.engine, host.state.tenant, run)
    given[:] = [PastCompletion(a_member("42"), WHEN, [NUMBER])]
    set_options(host, group="Now")
    backfills.start(host.state.engine, host.state.tenant, mapping.id)
    backfill.run(host.state)

    row = host.row()
    assert (row.state, row.options) == ("none", {"group": "Now"})
    assert row.extras is not None and list(row.extras) == ["evidence"]


def test_a_test_badge_is_issued_with_the_options(connected: Connected) -> None:
    host = connected.host
    set_options(host, mail=False, locale="member", expires="never")
    (mapping,) = accounts.list_mappings(host.db.session, host.state.tenant)
    names = {"email": "a@example.org", "first_name": "A", "last_name": "B"}
    issuances.add_test(host.state.engine, host.state.tenant, mapping.id, **names)
    host.drain()

    body = sent(connected.credly)
    assert {name: body[name] for name in body if name not in USUAL} == {
        "suppress_badge_notification_email": True,
        "expires_at": False,
    }


def test_an_option_that_credly_refuses_fails_in_its_words(connected: Connected) -> None:
    host = connected.host
    set_options(host, locale="xx-XX")
    host.complete()
    host.drain(2)

    row = host.row()
    assert (row.state, row.attempts) == ("failed", 2)
    assert "Locale is invalid" in (row.error or "")


def test_an_undone_removal_brings_the_options_back(connected: Connected) -> None:
    host = connected.host
    set_options(host, group="Kept")
    (mapping,) = accounts.list_mappings(host.db.session, host.state.tenant)
    template_id = mapping.template_id
    accounts.remove_mapping(host.state, mapping.id)
    accounts.add_mapping(host.state, COURSES[0], template_id, undo=True)
    host.complete()

    assert host.row().options == {"group": "Kept"}


class TestPersonalData:
    @pytest.fixture
    def issued(self, connected: Connected) -> Host:
        set_options(connected.host, evidence=True, locale="member", group="2026")
        issued_with(connected, evidence=[PAGE, 7])
        return connected.host

    def test_is_exported(self, issued: Host) -> None:
        exported = issued.credly.export_member("42")
        (badge,) = exported["badges"]

        assert badge["extras"]["middle_name"] == "Byron"
        assert badge["sent_to_credly"][6:] == [
            "issued_to_middle_name",
            "country_name",
            "state_or_province",
            "locale",
            "evidence",
        ]

    def test_is_erased(self, issued: Host) -> None:
        issued.credly.erase_member("42")

        row = issued.row()
        assert (row.extras, row.options) == (None, None)
        # That names nobody, and still says what was wrong.
        ((error, details),) = issued.log()
        assert error == "Evidence left out"
        assert "erased" not in details

    def test_is_removed(self, issued: Host) -> None:
        accounts.remove(issued.state)

        assert issued.row().extras is None

    def test_is_forgotten_in_time(self, make_host: MakeHost) -> None:
        host = make_host(CREDLY_PERSONAL_DATA_DAYS=30)
        simulator = CredlySimulator()

        with host.app.app_context():
            host.db.session.add(
                Issuance(
                    tenant="default",
                    member_id="42",
                    kind="course",
                    course_id="py-101",
                    organization_id=simulator.organization_id,
                    template_id=simulator.organization_id,
                    badge_name="Python Badge",
                    email="",
                    first_name="",
                    last_name="",
                    completed_at=WHEN,
                    recorded_at=WHEN,
                    settled_at=WHEN,
                    state="issued",
                    extras={"country": "Belgium"},
                )
            )
            host.db.session.commit()
            host.app.test_cli_runner().invoke(args=["credly", "prune"])

            assert host.row().extras is None
