"""What a person reads on the pages: in English, or in the language of the request where
the host has Flask-Babel and a catalogue of ours.
"""

from __future__ import annotations

import datetime as dt
import functools
import html
import logging
import re
import sys
import typing as t

from flask import current_app
from flask import has_request_context
from markupsafe import Markup

logger = logging.getLogger("flask_credly")

DOMAIN = "credly"
"""The catalogues are called so: translations/de/LC_MESSAGES/credly.mo."""

_DOMAIN = "credly_words"


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
    if _catalogue() is None:
        return f"{at:%-d %b %Y, %H:%M} UTC"

    form = "d MMM y, HH:mm 'UTC'"
    return str(_flask_babel().format_datetime(at, form, rebase=False))


def format_date(day: dt.date) -> str:
    """Word a day."""
    if _catalogue() is None:
        return f"{day:%-d %B %Y}"

    return str(_flask_babel().format_date(day, "d MMMM y", rebase=False))


def language() -> tuple[str, str]:
    """Get the language of the texts and its direction, as HTML has them."""
    if _catalogue() is None:
        return "en", "ltr"

    locale = _flask_babel().get_locale()
    parts = (locale.language, locale.script, locale.territory)
    return "-".join(filter(None, parts)), locale.text_direction


def _flask_babel() -> t.Any:
    # Looked up and not imported: a host need not have it, and one that uses it has
    # imported it.
    return sys.modules.get("flask_babel")


def _catalogue() -> t.Any:
    """Get what there is for the language of this request. ``None``: English it is."""
    # Our texts are on pages only, and a host's locale selector reads the request.
    if not has_request_context():
        return None

    flask_babel = _flask_babel()
    extensions = current_app.extensions

    # Others than Flask-Babel have taken this name too.
    if flask_babel is None or not isinstance(
        extensions.get("babel"), flask_babel.BabelConfiguration
    ):
        return None

    # One for each app, as it remembers catalogues by their language alone.
    if _DOMAIN not in extensions:
        extensions[_DOMAIN] = flask_babel.Domain(domain=DOMAIN)

    found = extensions[_DOMAIN].get_translations()
    return found if found.files else None


def _find(message: str) -> str:
    catalogue = _catalogue()
    return message if catalogue is None else catalogue.ugettext(message)


def _find_plural(one: str, many: str, number: int) -> tuple[str, str]:
    """Find a translation, and the English in its place."""
    catalogue = _catalogue()
    english = one if number == 1 else many

    if catalogue is None:
        return english, english

    return catalogue.ungettext(one, many, number), english


def format_number(number: int) -> str:
    """Write a number as the language does."""
    more = "+" if isinstance(number, AtLeast) else ""

    if _catalogue() is None:
        return f"{int(number):,}{more}"

    return f"{_flask_babel().format_decimal(int(number))}{more}"


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
