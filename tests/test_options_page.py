"""The page of a mapping's options, without a browser."""

from __future__ import annotations

import datetime as dt
import re

import pytest
import sqlalchemy as sa
from conftest import Connected

from flask_credly import accounts
from flask_credly.models import AuditEntry
from flask_credly.models import Mapping
from flask_credly.options import add_months
from flask_credly.options import LOCALES
from flask_credly.options import Options
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import HX
from tests.support.pages import mapped as mapped
from tests.support.pages import text_of
from tests.support.pages import WINDOW

Mapped = tuple[Browser, Connected, int]


def options_of(connected: Connected) -> dict[str, object] | None:
    connected.host.db.session.rollback()
    return connected.host.db.session.scalars(sa.select(Mapping)).one().options


def in_months(months: int) -> str:
    """The last day of a badge that is earned today."""
    day = add_months(dt.datetime.now(dt.UTC).date(), months)
    return f"{day.day} {day:%B %Y}"


def chosen(html: str) -> list[str]:
    return re.findall(r'<option value="([^"]*)"[^>]* selected>', html)


class TestPage:
    def test_a_row_leads_there_and_says_nothing_of_what_is_usual(
        self, mapped: Mapped
    ) -> None:
        browser, _, mapping_id = mapped
        html = browser.get(WINDOW).text
        (row,) = re.findall(r'<li class="credly-row".*?</li>', html, re.S)

        assert f'href="{WINDOW}/mappings/{mapping_id}/options"' in row
        assert "·" not in row

    def test_it_shows_what_is_set(self, mapped: Mapped) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"

        assert chosen(browser.get(path).text) == [""] * 6

        options = Options("zh-CN", False, 18, True, "Class “A” & <b>", "renew", "tell")
        accounts.change_options(connected.host.state, mapping_id, options)
        html = browser.get(path).text

        assert chosen(html) == ["zh-CN", "off", "months", "renew", "tell", "on"]
        assert 'value="18"' in html
        assert "Class “A” &amp; &lt;b&gt;" in html
        assert f"expires on {in_months(18)}." in html
        assert "Evidence is public on the badge's page." in html
        assert "Applies to new badges. Badges already issued keep theirs." in html
        assert all(f'value="{code}"' in html for code in LOCALES)

    def test_all_of_it_is_saved_shown_in_the_row_and_noted(
        self, mapped: Mapped
    ) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        answer = browser.post(
            path,
            page=path,
            locale="member",
            mail="off",
            expires="months",
            months=" 012 ",
            evidence="on",
            withdrawn="silent",
            group=" Class\tof 2026 ",
        )

        assert (answer.status_code, answer.location) == (303, WINDOW)
        assert options_of(connected) == {
            "locale": "member",
            "mail": False,
            "expires": 12,
            "evidence": True,
            "group": "Class of 2026",
            "withdrawn": "silent",
        }
        text = text_of(browser.get(WINDOW))
        assert (
            "E-mail in the member's language · No e-mail from Credly · Expires"
            " after 12 months · With evidence · Revoked if the completion is withdrawn"
            " · Group tag: Class of 2026" in text
        )
        assert (
            "Options saved: Python 101. The new expiry applies to new badges."
            " Badges already issued keep theirs." in text
        )

        entry = connected.host.db.session.scalars(
            sa.select(AuditEntry).order_by(AuditEntry.id.desc())
        ).first()
        assert entry is not None
        assert (entry.action, entry.target) == (
            "change options",
            "Python 101 → Python Badge",
        )

    def test_what_is_usual_again_is_not_kept(self, mapped: Mapped) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        accounts.change_options(connected.host.state, mapping_id, Options(group="x"))
        browser.post(path, page=path, months="12")

        # The number counts where months are chosen alone.
        assert options_of(connected) is None
        text = text_of(browser.get(WINDOW))
        assert "Options saved: Python 101." in text
        assert "from now on" not in text

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            *(
                ({"months": months}, "Enter a number of months from 1 to 600.")
                for months in ("", "0", "601", "-1", "1.5", "abc", "٣", "9" * 5000)
            ),
            (
                {"months": "1", "group": "x" * 256},
                "Shorten the group tag to 255 characters.",
            ),
            ({"months": "1", "locale": "nl"}, "Choose an option from the list."),
            ({"months": "1", "mail": "maybe"}, "Choose an option from the list."),
            ({"months": "1", "evidence": "some"}, "Choose an option from the list."),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_is_lost(
        self, mapped: Mapped, fields: dict[str, str], words: str
    ) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        given = {"locale": "ja", "expires": "months", "group": "Kept", **fields}
        answer = browser.post(path, page=path, **given)

        assert answer.status_code == 422
        assert "<title>Error: Options" in answer.text
        assert words in answer.text
        assert f'value="{given["months"]}"' in answer.text
        assert f'value="{given["group"]}"' in answer.text
        assert "months" in chosen(answer.text)
        assert options_of(connected) is None

    def test_a_form_that_was_open_too_long_is_shown_again(self, mapped: Mapped) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        data = {"csrf_token": "old", "expires": "months", "months": "7"}
        answer = browser.client.post(path, data=data)

        assert answer.status_code == 422
        assert "This page has expired" in answer.text
        assert 'value="7"' in answer.text
        assert options_of(connected) is None

    def test_a_mapping_that_is_gone_is_said_so(self, mapped: Mapped) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        token = browser.token(path)
        accounts.remove_mapping(connected.host.state, mapping_id)

        for data in ({}, {"months": "x", "expires": "months"}, {"preview": "1"}):
            answer = browser.client.post(path, data={"csrf_token": token, **data})
            assert answer.status_code == 303
            assert "no longer exists" in text_of(browser.get(WINDOW))

        assert browser.get(path).status_code == 303

    def test_it_leads_back_to_the_page_of_the_list(self, mapped: Mapped) -> None:
        browser, _, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options?page=2"
        html = browser.get(path).text

        assert f'action="{path}"' in html
        assert browser.post(path, page=path).location == f"{WINDOW}?page=2"


class TestCompletedAgain:
    def test_each_time_is_offered_where_the_template_allows_it(
        self, mapped: Mapped
    ) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"

        assert 'value="each"' not in browser.get(path).text
        answer = browser.post(path, page=path, again="each")
        assert answer.status_code == 422
        assert "Allow duplicates for it in Credly" in answer.text

        self.allow(connected, True)
        assert 'value="each"' in browser.get(path).text
        assert browser.post(path, page=path, again="each").status_code == 303
        assert options_of(connected) == {"again": "each"}
        assert "Another badge on each completion" in browser.get(WINDOW).text
        assert "until you allow duplicates" not in browser.get(WINDOW).text

    def test_a_template_that_does_not_allow_it_any_more_is_named(
        self, mapped: Mapped
    ) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        self.allow(connected, True)
        browser.post(path, page=path, again="each")
        self.allow(connected, False)

        assert "until you allow duplicates" in browser.get(WINDOW).text
        # Other options can be changed all the same.
        assert chosen(browser.get(path).text)[3] == "each"
        answer = browser.post(path, page=path, again="each", mail="off")
        assert answer.status_code == 303
        assert options_of(connected) == {"again": "each", "mail": False}

    def test_renewing_is_from_now_on(self, mapped: Mapped) -> None:
        browser, connected, mapping_id = mapped
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        browser.post(path, page=path, again="renew")

        text = text_of(browser.get(WINDOW))
        assert "Later completions now replace the badge." in text
        assert "Renewed on each completion" in text

    def allow(self, connected: Connected, allow: bool) -> None:
        connected.credly.change_template(
            connected.template_id, allow_duplicate_badges=allow
        )
        accounts.sync_templates(connected.host.state)


class TestPreview:
    @pytest.mark.parametrize(
        ("fields", "said_of"),
        [
            ({"expires": "months", "months": "10"}, 10),
            ({"expires": "months", "months": "600"}, 600),
            ({"expires": "months", "months": "0"}, "Enter a number of months"),
            ({"expires": "never", "months": "10"}, ""),
            ({"months": "10"}, ""),
        ],
    )
    def test_the_date_is_shown_and_nothing_saved(
        self, mapped: Mapped, fields: dict[str, str], said_of: int | str
    ) -> None:
        browser, connected, mapping_id = mapped
        # Not where the tests are collected, perhaps on the day before.
        words = in_months(said_of) if isinstance(said_of, int) else said_of
        path = f"{WINDOW}/mappings/{mapping_id}/options"
        whole = browser.post(path, page=path, preview="1", **fields)
        part = browser.post(f"{path}?preview=typing", page=path, headers=HX, **fields)

        said = [
            re.findall(r"credly-preview.*?>(.*?)</p>", each.text)
            for each in (whole, part)
        ]
        wrong = "Enter" in words
        assert (words in said[1][0], bool(said[1][0])) == (True, bool(words))
        # Once, where the field says it.
        assert said[0] == ([""] if wrong else said[1])
        assert whole.text.count(words) == 2 or not wrong
        assert whole.status_code == (422 if wrong else 200)
        assert part.status_code == 200
        assert "<form" not in part.text
        assert options_of(connected) is None
