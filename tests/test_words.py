"""The texts in other languages: the package's own, and a host's through Flask-Babel."""

from __future__ import annotations

import ast
import collections.abc as cabc
import dataclasses
import datetime as dt
import html.parser
import locale
import pathlib
import re
import shutil
import subprocess
import sys
import typing as t

import pytest
import sqlalchemy as sa
from babel.messages.catalog import Catalog
from babel.messages.catalog import Message
from babel.messages.pofile import read_po
from conftest import a_member
from conftest import Connected
from conftest import COURSES
from conftest import Host
from conftest import MakeHost
from conftest import missing
from flask import Flask
from flask import render_template_string
from flask_babel import Babel
from flask_sqlalchemy import SQLAlchemy
from markupsafe import Markup

from flask_credly import accounts
from flask_credly import Course
from flask_credly import i18n
from flask_credly import jobs
from flask_credly.ledger import audit
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Template
from tests.catalogue import catalogues
from tests.catalogue import compile_catalogue
from tests.catalogue import POT
from tests.catalogue import read
from tests.catalogue import read_sources
from tests.catalogue import render_catalogue
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import fail_one
from tests.support.pages import HX
from tests.support.pages import LIST
from tests.support.pages import mapped as mapped
from tests.support.pages import read_csv
from tests.support.pages import text_of
from tests.support.pages import WINDOW
from tests.support.words import german
from tests.support.words import speaking
from tests.support.words import write_catalogue

ROOT = pathlib.Path(__file__).parent.parent
BADGES = f"{WINDOW}/badges"

Translate = cabc.Callable[[str], str]


def pseudo(message: Message, forms: int) -> tuple[str, ...] | str:
    """Leave a text as it is, but for a mark at each end."""
    if isinstance(message.id, tuple):
        return tuple(f"«{message.id[min(form, 1)]}»" for form in range(forms))

    return f"«{message.id}»"


@pytest.fixture
def language() -> str:
    return "lb"


@pytest.fixture
def host(make_host: MakeHost, tmp_path: pathlib.Path, language: str) -> Host:
    """A host with Flask-Babel and two catalogues of its own: a little German, named as
    a language that the package does not have, and marks for Arabic, which it has.
    """
    write_catalogue(tmp_path, "lb", german)
    write_catalogue(tmp_path, "ar", pseudo)
    return make_host(setup=speaking(language, tmp_path), past_completions=past)


def past(course: Course, since: dt.datetime | None) -> t.Any:
    nameless = dataclasses.replace(a_member("3"), first_name="")
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return [
        (each, at) for each in (a_member("1"), a_member("2"), a_member("42"), nameless)
    ]


@pytest.fixture
def request_context(host: Host) -> cabc.Iterator[None]:
    with host.app.test_request_context():
        yield


@pytest.fixture
def german_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> cabc.Iterator[None]:
    """The locale of the whole process is German, as hosts set it by `setlocale`."""
    if shutil.which("localedef") is None:
        missing("localedef", "not on this machine")

    name = "de_DE.UTF-8"
    made = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / name)]

    if subprocess.run(made, stderr=subprocess.DEVNULL).returncode:
        missing("localedef", "no sources of German")

    monkeypatch.setenv("LOCPATH", str(tmp_path))
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, name)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.usefixtures("german_process")
def test_english_pages_have_english_months_whatever_the_processs_locale_is(
    make_host: MakeHost,
) -> None:
    at = dt.datetime(2026, 5, 3, 9, 5, tzinfo=dt.UTC)
    assert f"{at:%B}" == "Mai"

    with make_host().app.test_request_context():
        assert i18n.format_datetime(at) == "3 May 2026, 09:05 UTC"
        assert i18n.format_date(dt.date(2026, 10, 31)) == "31 October 2026"
        assert i18n.format_number(1234567) == "1,234,567"


class TestCatalogue:
    def test_the_template_is_up_to_date(self) -> None:
        """Otherwise: ``make words``."""
        with POT.open("rb") as file:
            found = read_po(file)

        assert ids(found) == ids(read_sources())

    def test_no_text_stands_in_a_template(self) -> None:
        for path in (ROOT / "templates").rglob("*.html"):
            source = re.sub(r"{#.*?#}|{%.*?%}", "", path.read_text(), flags=re.S)
            source = re.sub(r"{{.*?}}", "«»", source, flags=re.S)
            found = bare(re.sub('[\\w-]+="«»"', "", source))
            commands = {
                "flask credly backfill",
                "flask credly restored",
                "flask credly worker",
            }
            # A macro that writes attributes is no text.
            words = {
                text
                for text in found
                if re.search(r"\w\w", re.sub(r'hx-|[\w:-]*="[^"]*"?', "", text))
            }
            assert words <= {"Credly", *commands}, path

    def test_no_text_stands_in_the_script(self) -> None:
        source = (ROOT / "static/credly.js").read_text()
        code = re.sub(r"^\s*//.*", "", source, flags=re.M)

        assert set(re.findall(r'"([A-Z][^"]*)"', code)) == {"DOMContentLoaded"}

    def test_no_message_of_a_view_is_left_out(self) -> None:
        left = [
            f"{path.name}: {ast.unparse(node)}"
            for path in (ROOT / "flask_credly/admin").rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("flash", "ValidationError")
            and isinstance(node.args[0], (ast.Constant, ast.JoinedStr))
        ]

        assert left == []


OUTDATED = (
    r"\bgoes? on\b",
    r"\bstands? (below|there|in)\b",
    r"\bputs? right\b",
    r"\bany ?more\b",
    r"\bonce more\b",
    r"\bmeanwhile\b",
    r"\b(is|are) (already )?on (its|their) way\b",
    r"\bin force\b",
    r"\btaken? (\S+ ){0,3}back\b",
    r"\b(is|are) (being )?asked\b",
    r"\bbecame of\b",
    r"\bsays? (why|more|what|so)\b",
    r"\bLet \S+ (\S+ )?(say|name|return|take)\b",
    r"\bby itself\b",
    r"\bnot there\b",
    r"\bbadges? (is|are|waits?)( \S+)? ?waiting\b|\bbadges? waits?\b",
    r"\b(is|are) tried\b",
    r"\banew\b",
    r"\bmend(s|ed)?\b",
    r"\b(is|are|has|have) to be\b",
    r"\ball the same\b",
    r"\bin the meantime\b",
    r"^None (listens|so far|yet)\b",
    r"\bAll of them are\b",
    r"\bopen too long\b",
    r"\btoo often\b",
    r"\bCredly (took|tells|writes)\b",
    r"\bwas rung\b",
)
"""Turns of phrase that a reader has to read twice, and words that the pages have
another word for: a badge is queued, it does not wait.
"""

STATUS_WORDS = [
    *("Queued", "Issued", "Already held", "Failed", "Skipped"),
    *("Revoked", "Replaced"),
]


def spoken() -> cabc.Iterator[tuple[str, str]]:
    """Get each text of the package and its templates, and where it is. Shorter ones,
    keys and documentation are left out.
    """
    for message in filter(lambda each: each.id, read_sources()):
        for text in [message.id] if isinstance(message.id, str) else message.id:
            yield message.locations[0][0], text

    for path in sorted((ROOT / "flask_credly").rglob("*.py")):
        if "testing" in path.parts:  # speaks as Credly does
            continue

        tree = ast.parse(path.read_text())
        documents = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
        }

        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    str(each.value) if isinstance(each, ast.Constant) else "…"
                    for each in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue

            if id(node) not in documents and text.count(" ") > 2:
                yield str(path.relative_to(ROOT)), text


class TestPlainEnglish:
    def test_no_outdated_phrase_comes_back(self) -> None:
        found = [
            (place, phrase, text)
            for place, text in spoken()
            for phrase in OUTDATED
            if re.search(phrase, re.sub(r"%\(\w+\)s", "…", text), re.IGNORECASE)
        ]

        assert found == []

    def test_pages_and_commands_name_a_state_alike(self) -> None:
        from flask_credly.admin.badges import STATUSES
        from flask_credly.cli import work
        from flask_credly.ledger.issuances import STATES

        assert list(STATUSES) == list(STATES)
        assert list(STATUSES.values()) == STATUS_WORDS
        assert work.STATUS_NAMES["pending"] == "queued"
        assert work.STATUS_NAMES["held"] == "already held"

    def test_texts_end_alike(self) -> None:
        """A sentence has one full stop, and no text ends in a blank."""
        wrong = [
            (message.locations[0][0], text)
            for message in read_sources()
            for text in ([message.id] if isinstance(message.id, str) else message.id)
            if text != text.strip()
            or re.search(r"\.\.|\s{2}|[^.]\. [a-eg-z]\w+ ", text)
        ]

        assert wrong == []


def ids(catalog: Catalog) -> set[t.Any]:
    return {message.id for message in catalog if message.id}


class TestGerman:
    def test_a_page(self, browser: Browser) -> None:
        page = browser.get(LIST)

        assert "Nicht verbunden" in page.text
        assert '<html lang="lb">' in page.text

    def test_what_has_no_translation_is_english(self, browser: Browser) -> None:
        assert "Set Up Credly" in re.sub(r"<[^>]+>", "", browser.get(LIST).text)

    def test_the_errors_of_a_form(self, browser: Browser) -> None:
        page = text_of(browser.post(WINDOW))

        assert page.count("Hier fehlt: Organisationskennung.") == 2
        assert page.count("Hier fehlt: Client ID.") == 2

    def test_a_message_for_the_next_page(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, _, _ = mapped
        answer = browser.post(f"{WINDOW}/remove")

        assert "Credly wurde entfernt." in browser.get(answer.location).text

    def test_what_the_script_says(self, browser: Browser) -> None:
        page = browser.get(f"{WINDOW}/connection")

        assert 'data-show="Zeigen"' in page.text
        assert 'data-copied="Kopiert."' in page.text

    def test_names_in_the_log_and_the_ledger_are_translated_where_they_are_shown(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        fail_one(connected)
        page = browser.get(f"{WINDOW}/errors?type=Badge issuance failed").text
        option = '<option value="Badge issuance failed" selected>Ausstellung'

        assert connected.host.log()[0][0] == "Badge issuance failed"
        assert option in page
        assert page.count("Ausstellung gescheitert") == 3
        assert page.count("Badge issuance failed") == 1
        assert "Gescheitert" in browser.get(f"{BADGES}?status=failed").text

    def test_a_file(self, mapped: tuple[Browser, Connected, int]) -> None:
        browser, connected, _ = mapped
        fail_one(connected)
        head, row = read_csv(browser.get(f"{BADGES}.csv").text)
        log = read_csv(browser.get(f"{WINDOW}/errors.csv").text)

        assert (head[1], row[9]) == ("Mitglied", "Gescheitert")
        assert [log[0][1], log[1][1]] == ["Fehler", "Ausstellung gescheitert"]

    @pytest.mark.parametrize(
        ("number", "said"),
        [
            (1, "Ein Badge wird erneut versucht."),
            (0, "0 Badges werden erneut versucht."),
            (1234, "1.234 Badges werden erneut versucht."),
        ],
    )
    @pytest.mark.usefixtures("request_context")
    def test_numbers(self, number: int, said: str) -> None:
        one = "%(number)s badge is queued again."
        many = "%(number)s badges are queued again."

        assert i18n.ngettext(one, many, number) == said
        assert i18n.html_ngettext(one, many, number) == said

    @pytest.mark.usefixtures("request_context")
    def test_times(self) -> None:
        at = dt.datetime(2026, 5, 1, 9, 5, tzinfo=dt.UTC)

        assert i18n.format_datetime(at) == "1. Mee 2026 09:05 UTC"

    def test_a_translation_brings_no_tags_in(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        connected.host.complete()
        page = browser.get(BADGES).text

        assert "&lt;b&gt;Schon&lt;/b&gt; ausgestellt" in page
        assert "<b>" not in page
        assert 'data-label="Angefragt&quot; onclick=&quot;x"' in page

    @pytest.mark.usefixtures("request_context")
    def test_a_value_brings_no_tags_in_unless_it_is_markup(self) -> None:
        message = "Change[[ mapping for %(course)s]]"
        before = 'Ändern<span class="credly-hidden">, Zuordnung von '

        assert i18n.html_gettext(message, course="<i>]]") == (
            f"{before}&lt;i&gt;]]</span>"
        )
        assert i18n.html_gettext(message, course=Markup("<i>")) == (
            f"{before}<i></span>"
        )

    def test_a_translation_that_cannot_be_filled_in_gives_way_to_english(
        self,
        mapped: tuple[Browser, Connected, int],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        browser, _, _ = mapped

        assert re.search("Saved\\s+<time", browser.get(WINDOW).text)
        assert "is not valid" in caplog.text

    def test_a_region_has_the_words_of_its_language(
        self, make_host: MakeHost, tmp_path: pathlib.Path
    ) -> None:
        write_catalogue(tmp_path, "lb", german)
        host = make_host(setup=speaking("lb_LU", tmp_path))
        page = host.app.test_client().get(LIST)

        assert "Nicht verbunden" in page.text
        assert '<html lang="lb-LU">' in page.text

    def test_a_hosts_own_words_in_its_layout(
        self, make_host: MakeHost, tmp_path: pathlib.Path
    ) -> None:
        """Its layout has its own ``_``, for its own catalogue."""
        layout = """<html>{{ _("Failed") }} {% trans %}Error{% endtrans %}
        {% block content %}{% endblock %}"""
        write_catalogue(tmp_path, "lb", german)
        own = {"Failed": "Durchgefallen", "Error": "Irrtum"}
        (tmp_path / "own").mkdir()
        write_catalogue(
            tmp_path / "own",
            "lb",
            lambda message, forms: (
                own.get(message.id, "")
                if isinstance(message.id, str)
                else ("",) * forms
            ),
            domain="messages",
        )

        def setup(app: Flask, db: SQLAlchemy) -> None:
            from jinja2 import ChoiceLoader
            from jinja2 import DictLoader

            folders = f"{tmp_path};{tmp_path / 'own'}"
            Babel(
                app,
                default_translation_directories=folders,
                locale_selector=lambda: "lb",
            )
            loaders = [DictLoader({"host.html": layout}), app.jinja_env.loader]
            app.jinja_env.loader = ChoiceLoader(loaders)  # type: ignore[arg-type]

        host = make_host(setup=setup, CREDLY_LAYOUT="host.html")
        page = host.app.test_client().get(LIST).text

        assert page.startswith("<html>Durchgefallen Irrtum")
        assert "Nicht verbunden" in page

        with host.app.test_request_context():
            card = render_template_string("{{ credly_card() }}{{ _('Failed') }}")

        assert "Nicht verbunden" in card
        assert card.endswith("Durchgefallen")


class TestOtherLanguages:
    ONE = "%(number)s badge is queued again."
    MANY = "%(number)s badges are queued again."

    def test_as_many_plural_forms_as_a_language_has(
        self, make_host: MakeHost, tmp_path: pathlib.Path
    ) -> None:
        def polish(message: Message, forms: int) -> tuple[str, ...] | str:
            return (
                ("jeden", "%(number)s kilka", "%(number)s wiele")[:forms]
                if (isinstance(message.id, tuple))
                else ""
            )

        write_catalogue(tmp_path, "pl", polish)
        host = make_host(setup=speaking("pl", tmp_path))

        with host.app.test_request_context():
            found = [i18n.ngettext(self.ONE, self.MANY, each) for each in (1, 3, 5)]

        assert found == ["jeden", "3 kilka", "5 wiele"]

    @pytest.mark.parametrize("language", ["sv"])
    def test_without_a_catalogue_it_is_english(self, browser: Browser) -> None:
        page = browser.get(LIST)

        assert "Not connected" in page.text
        assert '<html lang="en">' in page.text

    def test_each_application_has_its_own(
        self, make_host: MakeHost, tmp_path: pathlib.Path
    ) -> None:
        def other(message: Message, forms: int) -> tuple[str, ...] | str:
            return ("",) * forms if isinstance(message.id, tuple) else "Anders"

        write_catalogue(tmp_path / "one", "lb", german)
        write_catalogue(tmp_path / "two", "lb", other)
        hosts = [
            make_host(setup=speaking("lb", tmp_path / "one")),
            make_host(setup=speaking("lb", tmp_path / "two")),
            make_host(),
        ]
        pages = [host.app.test_client().get(LIST).text for host in hosts * 2]

        for said, page in zip(
            ["Nicht verbunden", "Anders", "Not connected"] * 2, pages, strict=True
        ):
            assert said in page

    def test_without_a_request_it_is_english(
        self, make_host: MakeHost, tmp_path: pathlib.Path
    ) -> None:
        """A selector that reads the request is not asked."""
        write_catalogue(tmp_path, "lb", german)
        host = make_host(setup=speaking("lb", tmp_path))

        assert i18n.gettext("Failed") == "Failed"

        with host.app.app_context():
            assert i18n.gettext("Failed") == "Failed"

    def test_another_extension_of_that_name_is_left_alone(self, host: Host) -> None:
        host.app.extensions["babel"] = object()

        with host.app.test_request_context():
            assert i18n.gettext("Failed") == "Failed"


OURS = dict(catalogues())

FOREIGN_PUNCTUATION = {
    "ar": r"[\u0600-\u06ff][,;?]",
    "de": r"[\"“]\w|\w„|\w…| …| %%",
    "es": r"[\"“”„]|^[^¿]*\?(?!\w)| %%",
    "fr": r"[\"“”„]|[\w ][;?!](?!\w)|[\w ]:(?!\w|//)|[\w ]»|«[^\xa0]| %%",
    "ja": r"[ぁ-ヿ一-鿿）][:?()]|[()][ぁ-ヿ一-鿿]",
    "pt_BR": r"[\"„«»]",
}
"""What stands wrong in a language: another one's marks, or a plain space before one."""


@pytest.mark.parametrize("language", OURS)
class TestOurs:
    """The languages that come with the package."""

    def test_the_catalogue_is_up_to_date(self, language: str) -> None:
        """Otherwise: ``make words``."""
        path = OURS[language]

        assert render_catalogue(language, path) == path.read_text()
        assert compile_catalogue(language, path) == path.with_suffix(".mo").read_bytes()

    def test_every_message_is_translated(self, language: str) -> None:
        missing = [
            message.id
            for message in read(language, OURS[language])
            if message.id and not all(strings(message))
        ]

        assert missing == []

    def test_nothing_is_marked_as_uncertain(self, language: str) -> None:
        assert "fuzzy" not in OURS[language].read_text()

    def test_each_form_has_the_places_of_the_english(self, language: str) -> None:
        """A form for one number, or for none, may leave the number out."""
        wrong = []

        for message in read(language, OURS[language]):
            if not message.id:
                continue

            ids = message.id if isinstance(message.id, tuple) else (message.id,)
            wanted = places(ids[-1])
            free = {"number"} if len(ids) > 1 else set()
            wrong += [
                (message.id, string)
                for string in strings(message)
                if not wanted - free <= places(string) <= wanted
                or "%" in re.sub(r"%\(\w+\)s|%%", "", string)
            ]

        assert wrong == []

    def test_what_screen_readers_say_is_marked_as_in_english(
        self, language: str
    ) -> None:
        wrong = [
            message.id
            for message in read(language, OURS[language])
            for string in strings(message)
            if [string.count("[["), string.count("]]")]
            != [strings(message, "id")[0].count(mark) for mark in ("[[", "]]")]
        ]

        assert wrong == []

    def test_as_many_plural_forms_as_the_language_has(self, language: str) -> None:
        catalog = read(language, OURS[language])

        assert catalog.plural_expr == Catalog(locale=language).plural_expr
        assert {
            len(message.string) for message in catalog if isinstance(message.id, tuple)
        } == {catalog.num_plurals}

    def test_spaces_and_ends_are_as_in_english(self, language: str) -> None:
        """A text stands beside others: a space at its edge is meant."""
        wrong = [
            message.id
            for message in read(language, OURS[language])
            if message.id
            for string in strings(message)
            if edges(string) != edges(strings(message, "id")[-1])
        ]

        assert wrong == []

    def test_punctuation_is_that_of_the_language(self, language: str) -> None:
        """A space that may break would begin a line with what follows it."""
        wrong = [
            string
            for message in read(language, OURS[language])
            if message.id
            for string in strings(message)
            if re.search(FOREIGN_PUNCTUATION[language], re.sub(r"\[\[|]]", "", string))
        ]

        assert wrong == []

    def test_a_repair_is_not_called_a_correction(self, language: str) -> None:
        """A repair takes over what Credly has. A correction issues another badge."""
        found = texts(language)
        repair, _ = found["Repair – Credly Integration"].split(" – ")

        assert repair != found["Correct…"].rstrip("\xa0…")

    def test_through_flask_babel(
        self, make_host: MakeHost, tmp_path: pathlib.Path, language: str
    ) -> None:
        host = make_host(setup=speaking(language, tmp_path))
        page = host.app.test_client().get(LIST).text

        assert f'<html lang="{language.replace("_", "-")}"' in page
        assert texts(language)["Not connected"] in page

    def test_by_the_setting(self, make_host: MakeHost, language: str) -> None:
        host = make_host(CREDLY_LANGUAGE=language)
        page = host.app.test_client().get(LIST).text

        assert f'<html lang="{language.replace("_", "-")}"' in page
        assert texts(language)["Not connected"] in page

    def test_a_hosts_own_words_win(
        self, make_host: MakeHost, tmp_path: pathlib.Path, language: str
    ) -> None:
        def own(message: Message, forms: int) -> tuple[str, ...] | str:
            if isinstance(message.id, tuple):
                return ("",) * forms

            return "As we say" if message.id == "Not connected" else ""

        write_catalogue(tmp_path, language, own)
        host = make_host(setup=speaking(language, tmp_path))
        page = host.app.test_client().get(LIST).text

        assert "As we say" in page
        assert texts(language)["Integrations"] in page

    def test_numbers_and_times_are_written(
        self, make_host: MakeHost, language: str
    ) -> None:
        host = make_host(CREDLY_LANGUAGE=language)
        at = dt.datetime(2026, 5, 31, 9, 5, tzinfo=dt.UTC)

        with host.app.test_request_context():
            said = [
                i18n.format_datetime(at),
                i18n.format_date(at.date()),
                *(
                    i18n.ngettext(TestOtherLanguages.ONE, TestOtherLanguages.MANY, each)
                    for each in (0, 1, 2, 3, 11, 100, 1234)
                ),
            ]

        assert "2026" in said[0] and "31" in said[0] and "UTC" in said[0]
        assert all("%" not in each and each for each in said)
        assert re.search(r"1\D?234", said[-1])


def test_the_setting_wins_over_flask_babel(
    make_host: MakeHost, tmp_path: pathlib.Path
) -> None:
    host = make_host(setup=speaking("de", tmp_path), CREDLY_LANGUAGE="en")

    assert "Not connected" in host.app.test_client().get(LIST).text


def test_portuguese_of_elsewhere_is_better_than_english(
    make_host: MakeHost, tmp_path: pathlib.Path
) -> None:
    host = make_host(setup=speaking("pt_PT", tmp_path))
    page = host.app.test_client().get(LIST).text

    assert texts("pt_BR")["Not connected"] in page
    assert '<html lang="pt-PT">' in page


def strings(message: Message, of: str = "string") -> tuple[str, ...]:
    found = getattr(message, of)
    return found if isinstance(found, tuple) else (found,)


def places(text: str) -> set[str]:
    return set(re.findall(r"%\((\w+)\)s", text))


def edges(text: str) -> tuple[str, str]:
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]


def texts(language: str) -> dict[str, str]:
    return {
        message.id: message.string
        for message in read(language, OURS[language])
        if isinstance(message.id, str)
    }


class TestEnglish:
    @pytest.mark.parametrize(
        ("number", "said"), [(1, "1 badge"), (0, "0 badges"), (1234, "1,234 badges")]
    )
    def test_numbers(self, number: int, said: str) -> None:
        one, many = "%(number)s badge", "%(number)s badges"

        assert i18n.ngettext(one, many, number) == said
        assert i18n.html_ngettext(one, many, number) == said

    def test_a_message_without_its_value_is_our_mistake(self) -> None:
        with pytest.raises(KeyError):
            i18n.gettext("Saved %(time)s", at="now")

    def test_a_host_without_flask_babel_needs_none(self) -> None:
        code = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("babel", "flask_babel", "pytz"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_credly import Credly

app = Flask("host")
app.config.update(SECRET_KEY="k", SQLALCHEMY_DATABASE_URI="sqlite://")
db, credly = SQLAlchemy(app), Credly()
credly.courses(lambda: [])
credly.is_admin(lambda: True)
credly.init_app(app)

with app.app_context():
    db.create_all()

for path in ("/integrations/", "/integrations/credly"):
    page = app.test_client().get(path)
    assert page.status_code == 200, page.text
    assert '<html lang="en">' in page.text

assert not {"babel", "flask_babel", "pytz"} & set(sys.modules)
"""
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

        assert done.returncode == 0, done.stderr

    def test_no_module_imports_it(self) -> None:
        for path in (ROOT / "flask_credly").rglob("*.py"):
            assert not re.search(r"(from|import) (flask_)?babel", path.read_text())

    @pytest.mark.parametrize("language", ["de", "pt-BR"])
    def test_a_language_by_the_setting_says_that_it_needs_babel(
        self,
        make_host: MakeHost,
        monkeypatch: pytest.MonkeyPatch,
        language: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, "babel", None)

        with pytest.raises(RuntimeError, match="CREDLY_LANGUAGE.*pip install babel"):
            make_host(CREDLY_LANGUAGE=language)


SAID = ("alt", "aria-label", "data-label", "label", "placeholder", "title")


class Bare(html.parser.HTMLParser):
    """Collects what a reader sees and no «» stand around. Times are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._depth = 0
        self._aside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "time"):
            self._aside = tag

        for name, value in attrs:
            if value and (name in SAID or name.startswith("data-credly-copy")):
                self.found |= bare(html.escape(value))
            elif value and tag == "div" and name in WORDS:
                self.found |= bare(html.escape(value))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._aside:
            self._aside = ""

    def handle_data(self, data: str) -> None:
        if self._aside:
            return

        for part in re.split("([«»])", data):
            if part in ("«", "»"):
                self._depth += 1 if part == "«" else -1
            elif not self._depth and not re.fullmatch(r"[\s\d]*", part):
                self.found.add(" ".join(part.split()))

    def finish(self) -> None:
        self.close()
        assert self._depth == 0


WORDS = {"data-show", "data-copy", "data-copied", "data-wrong", "data-silent"}


def bare(page: str) -> set[str]:
    parser = Bare()
    # An address is kept in one piece by tags.
    parser.feed(re.sub(r'<span class="credly-whole">(.*?)</span>', r"\1", page))
    parser.finish()
    return {
        re.sub(r"^Python Badge \d+$", "Python Badge", each) for each in parser.found
    }


DATA = {
    "",
    "Credly",
    "→",
    "–",
    "Ada Example",
    "Example",
    "Python 101",
    "Python Badge",
    "SQL basics",
    "Data path",
    "Gone",
    "Old Badge",
    "flask credly worker",
}
"""What is the host's, Credly's, or a name."""


def a_day(year: int) -> dt.datetime:
    return dt.datetime(year, 1, 2, tzinfo=dt.UTC)


A_BADGE = "https://www.credly.com/badges/1"


@pytest.mark.parametrize("language", ["ar"])
class TestNothingIsForgotten:
    """In a language in which every text stands in «»."""

    @pytest.fixture
    def filled(
        self, mapped: tuple[Browser, Connected, int]
    ) -> tuple[Browser, Connected, int]:
        """Something of everything."""
        browser, connected, mapping_id = mapped
        host, credly, template_id = connected
        old = credly.add_template("Old Badge", allow_duplicate_badges=True)
        accounts.sync_templates(host.state)
        accounts.add_mapping(host.state, COURSES[2], old)
        accounts.add_mapping(host.state, Course("gone", "Gone"), template_id)
        credly.change_template(old, state="archived")
        accounts.sync_templates(host.state)
        host.complete("1")
        host.drain()
        fail_one(connected, "42")
        fail_one(connected, "43")
        host.complete("44")
        session = host.db.session
        session.execute(
            sa.insert(LogEntry),
            [
                {
                    "tenant": "default",
                    "at": dt.datetime.now(dt.UTC),
                    "error": error,
                    "details": "stored",
                }
                for error in ("Connection expired", "API Rate Limit", "API Rate Limit")
            ],
        )
        session.commit()

        for action in audit.ACTIONS:
            audit.note_alone(
                host.state.engine, "default", audit.COMMAND_LINE, action, "Gone"
            )

        for outcome in audit.OUTCOMES:
            audit.note_alone(host.state.engine, "default", "", "pause", outcome=outcome)

        return browser, connected, mapping_id

    def check(self, browser: Browser, connected: Connected, *paths: str) -> None:
        host = connected.host
        stored = {
            *(details for _, details in host.log()),
            *(row.error for row in host.rows()),
            *(row.email for row in host.rows()),
            *(row.badge_id for row in host.rows()),
            *(row.accept_url for row in host.rows()),
            connected.credly.organization_id,
            connected.credly.client_id,
        }
        host.db.session.commit()

        for path in paths:
            for headers in (None, HX):
                page = browser.get(path, headers=headers)
                assert page.status_code == 200, path
                assert bare(page.text) - stored - DATA == set(), path

    @pytest.mark.slow
    def test_pages(self, filled: tuple[Browser, Connected, int]) -> None:
        browser, connected, mapping_id = filled
        page = browser.get(WINDOW).text
        ids = {row.state: row.id for row in connected.host.rows()}
        self.check(
            browser,
            connected,
            LIST,
            WINDOW,
            f"{WINDOW}?mapping=new",
            f"{WINDOW}?mapping={mapping_id}",
            f"{WINDOW}/connection",
            f"{WINDOW}/mappings/{mapping_id}/test",
            BADGES,
            f"{BADGES}?status=failed",
            f"{BADGES}?q=nobody",
            *(f"{BADGES}/{row_id}" for row_id in ids.values()),
            *(
                f"{BADGES}/{ids['issued']}/{action}"
                for action in ("revoke", "correct", "again")
            ),
            f"{BADGES}/retry",
            f"{WINDOW}/errors",
            f"{WINDOW}/errors?q=nothing",
            f"{WINDOW}/activity",
            f"{WINDOW}/remove",
        )

        assert '<html lang="ar" dir="rtl">' in page
        assert "«Course was deleted.»" in page
        assert "«Badge template no longer active in Credly." in page

    def test_a_members_badges(self, filled: tuple[Browser, Connected, int]) -> None:
        _, connected, _ = filled
        host = connected.host
        session = host.db.session
        table = Issuance.__table__
        this = table.c.id == 1
        first = session.execute(sa.select(table).where(this)).mappings().one()
        assert first["member_id"] == "1"

        for changes in (
            {"badge_state": "pending"},
            {"badge_state": "accepted", "public": True, "page_url": A_BADGE},
            {"badge_state": "accepted", "expires_at": a_day(2099)},
            {"badge_state": "accepted", "expires_at": a_day(2026)},
            {"badge_state": "rejected"},
            {"badge_state": "revoked"},
            {"state": "failed"},
            {"member_id": "another"},
        ):
            session.execute(sa.update(table).where(this).values({**first, **changes}))
            session.commit()

            with host.app.test_request_context():
                page = render_template_string("{{ credly_badges('1') }}")

            assert bare(page) - DATA - {"2 يناير 2026"} == set(), changes

    @pytest.mark.parametrize(
        "path",
        ["banners", "mappings/new", "mappings/{}", "mappings/{}/row"],
    )
    def test_parts_of_pages(
        self, filled: tuple[Browser, Connected, int], path: str
    ) -> None:
        browser, connected, mapping_id = filled
        answer = browser.get(f"{WINDOW}/{path.format(mapping_id)}", headers=HX)

        assert answer.status_code == 200
        assert bare(answer.text) - DATA == set()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "values",
        [
            {"expired": True},
            {"paused_until": True, "pause_reason": "rate limit"},
            {"paused_until": True, "pause_reason": "unavailable"},
            {"switched_off": True},
            {"templates_failed_at": True},
            {"templates_synced_at": None},
        ],
        ids=str,
    )
    def test_states(
        self,
        filled: tuple[Browser, Connected, int],
        monkeypatch: pytest.MonkeyPatch,
        values: dict[str, t.Any],
    ) -> None:
        browser, connected, _ = filled
        later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
        values = {
            name: later if name.endswith(("_until", "_at")) and value else value
            for name, value in values.items()
        }
        session = connected.host.db.session
        session.execute(sa.update(Account).values(**values))
        session.commit()

        for overdue in (False, True):
            if overdue:
                session.execute(
                    sa.update(Issuance)
                    .where(Issuance.due_at.is_not(None))
                    .values(due_at=dt.datetime.now(dt.UTC) - dt.timedelta(hours=1))
                )
                session.commit()

            for workers in (0, 1, None):
                monkeypatch.setattr(
                    "flask_credly.issuing.workers.count", lambda _, it=workers: it
                )
                self.check(browser, connected, LIST, WINDOW)

    def test_empty_pages(self, browser: Browser, connected: Connected) -> None:
        browser = Browser(connected.host.app)
        self.check(browser, connected, LIST, WINDOW, BADGES, f"{BADGES}/retry")
        accounts.remove_mapping(
            connected.host.state,
            accounts.list_mappings(connected.host.db.session, "default")[0].id,
        )
        self.check(browser, connected, WINDOW, f"{WINDOW}/errors")
        self.check(browser, connected, f"{WINDOW}/activity")
        accounts.remove(connected.host.state)
        self.check(browser, connected, LIST, WINDOW)

    def test_long_lists(self, filled: tuple[Browser, Connected, int]) -> None:
        browser, connected, _ = filled
        session = connected.host.db.session
        session.execute(
            sa.insert(Template),
            [
                {
                    "id": f"{number:08}-0000-4000-8000-000000000000",
                    "tenant": "default",
                    "name": f"Python Badge {number}",
                    "active": True,
                }
                for number in range(300)
            ],
        )
        session.commit()

        for number in range(30):
            course = Course(f"c{number}", "Python 101")
            accounts.add_mapping(connected.host.state, course, connected.template_id)

        for number in range(60):
            connected.host.complete(f"m{number}")

        self.check(browser, connected, f"{WINDOW}?mapping=new", f"{WINDOW}?page=2")
        self.check(browser, connected, BADGES)

        for text in ("Python", "nothing", "Old"):
            answer = browser.post(
                f"{WINDOW}/mappings",
                page=f"{WINDOW}?mapping=new",
                headers=HX,
                search="template",
                template_text=text,
            )
            assert bare(answer.text) - DATA - {text} == set()

    def test_backfills(
        self,
        filled: tuple[Browser, Connected, int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        browser, connected, mapping_id = filled
        ask = f"{WINDOW}/mappings/{mapping_id}/backfill"
        page = browser.get(ask).text
        assert "«Failed or skipped»" in page and "«Will be skipped»" in page
        self.check(browser, connected, ask)

        with monkeypatch.context() as patched:
            patched.setattr("flask_credly.admin.backfills.SECONDS", -1)
            self.check(browser, connected, ask)

        place = browser.post(ask, page=ask).location
        self.check(browser, connected, WINDOW, place)
        jobs.backfill()
        self.check(browser, connected, WINDOW, place, f"{place}?said=3")
        answer = browser.post(f"{place}/stop", page=place)
        assert "«Stopped." in browser.get(answer.location).text
        self.check(browser, connected, WINDOW, place, ask)

        place = browser.post(ask, page=ask).location
        jobs.backfill()
        connected.host.drain(2)
        assert "«Finished:" in browser.get(place).text
        self.check(browser, connected, place, ask)

        broken = dataclasses.replace(
            connected.host.state, past_completions=lambda *_: 1 / 0
        )
        monkeypatch.setitem(connected.host.app.extensions, "credly", broken)
        self.check(browser, connected, ask)

    @pytest.mark.slow
    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_answers(
        self, filled: tuple[Browser, Connected, int], headers: t.Any
    ) -> None:
        """What is said after a form was sent."""
        browser, connected, mapping_id = filled
        host, credly, template_id = connected
        stored = {
            *(details for _, details in host.log()),
            *(row.error for row in host.rows()),
            *(row.email for row in host.rows()),
            credly.organization_id,
            credly.client_id,
            "name@example.org",
            *("x" * 501, "a@b.example", "Because", "A", "B"),
        }
        failed = next(row.id for row in host.rows() if row.state == "failed")
        issued = next(row.id for row in host.rows() if row.state == "issued")
        host.db.session.commit()
        row = f"{WINDOW}/mappings/{mapping_id}"
        new = {"page": f"{WINDOW}?mapping=new"}
        good = {"course": "course:sql", "template": template_id}
        who = {"email": "a@b.c", "first_name": "A", "last_name": "B"}
        corrected = {
            **{"first_name": "A", "last_name": "B"},
            **{"completed": "2026-01-31", "template": template_id},
        }
        sent: list[tuple[str, dict[str, str]]] = [
            (WINDOW, {"page": f"{WINDOW}/connection"}),
            (WINDOW, {"organization_id": "x", "client_id": "a b"}),
            (WINDOW, {"client_id": "x" * 300, "csrf_token": "wrong"}),
            (f"{WINDOW}/mappings", new),
            (f"{WINDOW}/mappings", {**good, "course": "course:py-101"}),
            (f"{WINDOW}/mappings", {**good, "course": "course:nothing"}),
            (f"{WINDOW}/mappings", {**good, "template": "nothing"}),
            (f"{WINDOW}/mappings", {**good, "csrf_token": "wrong"}),
            (f"{WINDOW}/mappings", good),
            (f"{row}/test", {}),
            (f"{row}/test", {"email": "nothing"}),
            (f"{row}/test", who),
            (row, {"course": "course:py-101", "template": template_id}),
            (f"{WINDOW}/badges/{failed}/retry", {}),
            (f"{WINDOW}/badges/{issued}/retry", {}),
            (f"{WINDOW}/badges/retry", {}),
            (f"{BADGES}/{issued}/check", {}),
            (f"{BADGES}/{issued}/revoke", {}),
            (f"{BADGES}/{issued}/revoke", {"reason": "x" * 501}),
            (f"{BADGES}/{issued}/revoke", {"reason": "a@b.example"}),
            (f"{BADGES}/{issued}/correct", {}),
            (f"{BADGES}/{issued}/correct", {**corrected, "completed": "nothing"}),
            (f"{BADGES}/{issued}/correct", {**corrected, "completed": "2999-01-01"}),
            (f"{BADGES}/{issued}/correct", {**corrected, "template": "nothing"}),
            (f"{BADGES}/{issued}/again", {}),
            (f"{BADGES}/{issued}/again", {**who, "tell": "no", "reason": "Because"}),
            (f"{BADGES}/{issued}/revoke", {"reason": "Because", "tell": "no"}),
            (f"{BADGES}/{failed}/revoke", {"reason": "Because", "tell": "no"}),
            (f"{WINDOW}/test", {}),
            (f"{WINDOW}/test", {"csrf_token": "wrong"}),
            (f"{WINDOW}/templates", {}),
            (f"{WINDOW}/pause", {}),
            (f"{WINDOW}/resume", {}),
            (f"{row}/remove", {}),
            (f"{row}/remove", {}),
            (f"{WINDOW}/remove", {}),
        ]

        for path, fields in sent:
            answer = browser.post(path, headers=headers, **fields)
            texts = [answer.text]

            if url := answer.location or answer.headers.get("HX-Redirect"):
                assert "«" in (said := flash_of(browser.get(url).text)), path
                texts = [said]

            for text in texts:
                assert bare(text) - stored - DATA == set(), (path, fields)

    def test_connecting(self, filled: tuple[Browser, Connected, int]) -> None:
        browser, connected, _ = filled
        credly = connected.credly
        credly.fail("token", status=503)
        known = {credly.organization_id, *DATA}
        other = "11111111-2222-4333-8444-555555555555"

        for changes in ({}, {"client_id": "wrong"}, {"organization_id": other}):
            answer = browser.connect(credly, **changes)
            assert "«Your previous connection is still in use.»" in answer.text
            assert bare(answer.text) - known == set()

        answer = browser.connect(credly)
        said = flash_of(browser.get(answer.location).text)
        assert said.startswith("<p>«Connected to Credly.")
        assert bare(said) == set()

    def test_files(self, filled: tuple[Browser, Connected, int]) -> None:
        browser, _, _ = filled

        for path in (f"{BADGES}.csv", f"{WINDOW}/errors.csv"):
            head, *rows = read_csv(browser.get(path).text)
            assert all(re.fullmatch("«.*»", cell) for cell in head)
            assert rows


def test_nothing_is_forgotten_in_a_refusal(
    make_host: MakeHost, tmp_path: pathlib.Path
) -> None:
    write_catalogue(tmp_path, "ar", pseudo)
    host = make_host(setup=speaking("ar", tmp_path), is_admin=lambda: False)

    for headers in (None, HX):
        page = host.app.test_client().get(LIST, headers=headers)
        assert page.status_code == 403
        assert bare(page.text) == set()


def flash_of(page: str) -> str:
    found = re.search(r'id="credly-flash"[^>]*>(.*?)</div>', page, re.S)
    return found[1] if found else ""
