"""An application that speaks a language of its own."""

from __future__ import annotations

import collections.abc as cabc
import functools
import io
import pathlib

from babel.messages.catalog import Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from flask import Flask
from flask_babel import Babel
from flask_sqlalchemy import SQLAlchemy

from tests.catalogue import POT

GERMAN: dict[str, str | tuple[str, ...]] = {
    "Already held": "<b>Schon</b> ausgestellt",
    "Badge issuance failed": "Ausstellung gescheitert",
    "Change[[ mapping for %(course)s]]": "Ändern[[, Zuordnung von %(course)s]]",
    "Copied.": "Kopiert.",
    "Credly was removed.": "Credly wurde entfernt.",
    "Enter your %(label)s.": "Hier fehlt: %(label)s.",
    "Error": "Fehler",
    "Failed": "Gescheitert",
    "Requested": 'Angefragt" onclick="x',
    "Member": "Mitglied",
    "Not connected": "Nicht verbunden",
    "Organization ID": "Organisationskennung",
    "Remove mapping": "Zuordnung %(löschen)s",
    "Saved %(time)s": "%(zeit)s gespeichert",
    "Show": "Zeigen",
    "%(number)s badge is queued again.": (
        "Ein Badge wird erneut versucht.",
        "%(number)s Badges werden erneut versucht.",
    ),
    "%(number)s found.": ("%(number)s Treffer.", "%(number)s Treffer."),
}


def write_catalogue(
    folder: pathlib.Path,
    language: str,
    translate: cabc.Callable[[Message, int], tuple[str, ...] | str],
    *,
    domain: str = "credly",
) -> None:
    """Make a catalogue from the template, as a host does."""
    path = folder / language / f"LC_MESSAGES/{domain}.mo"
    path.parent.mkdir(parents=True)
    path.write_bytes(_compile(language, translate))


@functools.cache
def _compile(
    language: str, translate: cabc.Callable[[Message, int], tuple[str, ...] | str]
) -> bytes:
    with POT.open("rb") as file:
        catalog = read_po(file, locale=language)

    for message in catalog:
        if message.id:
            message.string = translate(message, catalog.num_plurals)

    compiled = io.BytesIO()
    write_mo(compiled, catalog)
    return compiled.getvalue()


def german(message: Message, forms: int) -> tuple[str, ...] | str:
    plural = isinstance(message.id, tuple)
    key = message.id[0] if plural else message.id
    return GERMAN.get(key, ("",) * forms if plural else "")


def speaking(
    language: str, folder: pathlib.Path
) -> cabc.Callable[[Flask, SQLAlchemy], None]:
    """Make a host speak a language, with its catalogues in a folder."""

    def setup(app: Flask, db: SQLAlchemy) -> None:
        Babel(
            app,
            default_translation_directories=str(folder),
            locale_selector=lambda: language,
        )

    return setup
