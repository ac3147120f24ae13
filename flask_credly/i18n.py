"""What a person reads on the pages: in the language that ``CREDLY_LANGUAGE`` names, or
that Flask-Babel finds for the request. English where there is no catalogue for it.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import functools
import html
import importlib
import logging
import pathlib
import re
import sys
import typing as t

from flask import current_app
from flask import Flask
from flask import has_request_context
from markupsafe import Markup

logger = logging.getLogger("flask_credly")

DOMAIN = "credly"
"""The name of the catalogues: translations/de/LC_MESSAGES/credly.mo."""

_FOLDER = pathlib.Path(__file__).parent / "translations"
_KEY = "credly_language"

# A language in place of a near one that has no catalogue.
_NEAR = {"pt": ["pt_BR"]}

# Python's own are those of the locale that the host has set for the process.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class AtLeast(int):
    """A number that was not counted to its end."""


_Text = t.TypeVar("_Text", str, Markup)


def gettext_noop(message: str) -> str:
    """Mark a constant for the catalogue. It is translated where it is shown."""
    return message


def gettext(message: str, /, **values: t.Any) -> str:
    """Translate a message, and put the values in for its ``%(name)s``. Numbers are
    written as the language does.
    """
    return _fill(_find(message), message, values)


def ngettext(one: str, many: str, number: int, /, **values: t.Any) -> str:
    """Translate a message that depends on a number, which is ``%(number)s`` in it."""
    found, english = _find_plural(one, many, number)
    return _fill(found, english, {"number": number, **values})


def html_gettext(message: str, /, **values: t.Any) -> Markup:
    """Translate for a template. Neither the catalogue nor a value can bring tags in,
    but for a value that is markup.

    What stands in ``[[]]`` is for screen readers only.
    """
    return _fill(_markup(_find(message)), _markup(message), values)


def html_ngettext(one: str, many: str, number: int, /, **values: t.Any) -> Markup:
    """Translate for a template, like :func:`ngettext`."""
    found, english = _find_plural(one, many, number)
    return _fill(_markup(found), _markup(english), {"number": number, **values})


def format_datetime(at: dt.datetime) -> str:
    """Word a time, in UTC."""
    spoken = _spoken()

    if spoken is None:
        return f"{at.day} {_MONTHS[at.month - 1][:3]} {at:%Y, %H:%M} UTC"

    dates, locale = _dates(), spoken.locale
    day = dates.format_skeleton("yMMMd", at, locale=locale)
    time = dates.format_skeleton("Hm", at, locale=locale)
    form = str(dates.get_datetime_format("medium", locale=locale))
    return form.replace("'", "").format(f"{time} UTC", day)


def format_date(day: dt.date) -> str:
    """Word a day."""
    spoken = _spoken()

    if spoken is None:
        return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"

    return str(_dates().format_date(day, "long", locale=spoken.locale))


def language() -> tuple[str, str]:
    """Get the language of the texts and its direction, as HTML has them."""
    spoken = _spoken()

    if spoken is None:
        return "en", "ltr"

    locale = spoken.locale
    parts = (locale.language, locale.script, locale.territory)
    return "-".join(filter(None, parts)), locale.text_direction


def languages() -> list[str]:
    """List the languages that the package has catalogues of, and English."""
    found = (path.parts[-3] for path in _FOLDER.glob(f"*/LC_MESSAGES/{DOMAIN}.mo"))
    return sorted([*found, "en"])


def init_app(app: Flask, language: str | None) -> None:
    """Have the pages of an application in one language, or in that of the request.

    :raises RuntimeError: If Babel, which writes its dates and numbers, is missing.
    """
    app.extensions[_KEY] = _Speech(language)


@dataclasses.dataclass(frozen=True)
class _Spoken:
    """A language that there are texts in."""

    locale: t.Any
    catalogue: t.Any


class _Speech:
    """What one application speaks. Each has its own, as hosts have catalogues too."""

    def __init__(self, fixed: str | None) -> None:
        self._fixed: t.Any = None
        self._is_fixed = fixed is not None
        self._read: dict[str, _Spoken | None] = {}

        if fixed not in (None, "en"):
            # Loaded only where it is used: without languages a host needs no Babel.
            try:
                babel = importlib.import_module("babel")
            except ImportError as error:
                raise RuntimeError(
                    "CREDLY_LANGUAGE needs Babel, which is not installed. Run"
                    " 'pip install babel'."
                ) from error

            self._fixed = babel.Locale.parse(fixed)

    def now(self) -> _Spoken | None:
        """Get the language of this request. ``None``: English."""
        if self._is_fixed:
            return self._fixed and self._get(self._fixed, [])

        flask_babel = _flask_babel()

        # Others than Flask-Babel have taken this name too.
        if flask_babel is None or not isinstance(
            current_app.extensions.get("babel"), flask_babel.BabelConfiguration
        ):
            return None

        folders = flask_babel.get_babel().translation_directories
        return self._get(flask_babel.get_locale(), folders)

    def _get(self, locale: t.Any, folders: cabc.Iterable[str]) -> _Spoken | None:
        name = str(locale)

        if name not in self._read:
            self._read[name] = _read(locale, folders)

        return self._read[name]


def _read(locale: t.Any, folders: cabc.Iterable[str]) -> _Spoken | None:
    """Read our catalogue of a language, and the host's over it."""
    support = importlib.import_module("babel.support")
    wanted = [locale, *_NEAR.get(locale.language, [])]
    texts = support.Translations()

    for folder in (str(_FOLDER), *folders):
        found = support.Translations.load(folder, wanted, DOMAIN)
        texts.merge(found)

        # Not merged by itself.
        if hasattr(found, "plural"):
            texts.plural = found.plural

    return _Spoken(locale, texts) if texts.files else None


def _flask_babel() -> t.Any:
    # Looked up and not imported: a host need not have it, and one that uses it has
    # imported it.
    return sys.modules.get("flask_babel")


def _dates() -> t.Any:
    return importlib.import_module("babel.dates")


def _spoken() -> _Spoken | None:
    # Our texts are on pages only, and a host's locale selector reads the request.
    if not has_request_context():
        return None

    speech = current_app.extensions.get(_KEY)
    return None if speech is None else t.cast(_Speech, speech).now()


def _find(message: str) -> str:
    spoken = _spoken()
    return message if spoken is None else spoken.catalogue.ugettext(message)


def _find_plural(one: str, many: str, number: int) -> tuple[str, str]:
    """Find a translation, and the English in its place."""
    spoken = _spoken()
    english = one if number == 1 else many

    if spoken is None:
        return english, english

    return spoken.catalogue.ungettext(one, many, number), english


def format_number(number: int) -> str:
    """Write a number as the language does."""
    more = "+" if isinstance(number, AtLeast) else ""

    spoken = _spoken()

    if spoken is None:
        return f"{int(number):,}{more}"

    numbers = importlib.import_module("babel.numbers")
    return f"{numbers.format_decimal(int(number), locale=spoken.locale)}{more}"


@functools.lru_cache(2048)
def _markup(text: str) -> Markup:
    # An apostrophe stays as it is: our attributes stand in double quotes.
    text = html.escape(text, quote=False).replace('"', "&quot;")
    hidden = r'<span class="credly-hidden">\1</span>'
    return Markup(re.sub(r"\[\[(.*?)\]\]", hidden, text))


def _fill(found: _Text, english: _Text, values: dict[str, t.Any]) -> _Text:
    if not values:
        return found

    values = {
        name: format_number(value) if isinstance(value, int) else value
        for name, value in values.items()
    }

    try:
        return found % values
    except (KeyError, TypeError, ValueError):
        if found == english:
            raise

        logger.warning(
            "The translation %r of %r is not valid. The English text is shown.",
            found,
            english,
        )
        return english % values
