"""Gathers the texts that can be translated, and compiles the translations:
``make words``.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import io
import pathlib

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.messages.pofile import write_po

ROOT = pathlib.Path(__file__).parent.parent
POT = ROOT / "flask_credly/translations/credly.pot"

# Without the time that it was made at: the same texts make the same file.
HEAD = r"""# The texts of Flask-Credly's pages.
#
# What stands in [[ ]] is read out by screen readers only. Keep the brackets, and the
# names in %( )s.
msgid ""
msgstr ""
"Project-Id-Version: Flask-Credly\n"
"MIME-Version: 1.0\n"
"Content-Type: text/plain; charset=utf-8\n"
"Content-Transfer-Encoding: 8bit\n"

"""
KEYWORDS = {
    "gettext_noop": None,
    "gettext": None,
    "ngettext": (1, 2),
    "credly_gettext": None,
    "credly_ngettext": (1, 2),
}
SOURCES = [("flask_credly", "**.py", "python"), ("templates", "**.html", "jinja2")]


@functools.cache
def read_sources() -> Catalog:
    """Gather the texts of the code and the templates."""
    catalog = Catalog()

    for folder, pattern, method in SOURCES:
        found = extract_from_dir(
            ROOT / folder,
            method_map=[(pattern, method)],
            options_map={pattern: {"silent": "false"}},
            keywords=KEYWORDS,
        )

        for name, line, message, comments, context in found:
            place = (f"{folder}/{name}", line)
            catalog.add(message, None, [place], (), comments, context=context)

    return catalog


def render() -> str:
    """Write the template of a catalogue."""
    return HEAD + _messages(read_sources())


def catalogues() -> cabc.Iterator[tuple[str, pathlib.Path]]:
    """List the languages that the package has, each with its catalogue."""
    for path in sorted(POT.parent.glob("*/LC_MESSAGES/credly.po")):
        yield path.parts[-3], path


def read(language: str, path: pathlib.Path) -> Catalog:
    """Read a catalogue of the package."""
    with path.open("rb") as file:
        return read_po(file, locale=language)


def render_catalogue(language: str, path: pathlib.Path) -> str:
    """Write a catalogue anew, with the texts of the code as it is now."""
    catalog = read(language, path)
    catalog.update(read_sources(), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    plural = f'"Language: {language}\\n"\n"Plural-Forms: {catalog.plural_forms}\\n"\n\n'
    return HEAD.removesuffix("\n") + plural + _messages(catalog)


def compile_catalogue(language: str, path: pathlib.Path) -> bytes:
    """Compile a catalogue. The same texts make the same file."""
    catalog = read(language, path)
    catalog.creation_date = catalog.revision_date = dt.datetime(2026, 1, 1)

    for message in catalog:
        # A form that is missing would be shown as nothing.
        if isinstance(message.string, tuple) and not all(message.string):
            message.string = ""

    buffer = io.BytesIO()
    write_mo(buffer, catalog)
    return buffer.getvalue()


def _messages(catalog: Catalog) -> str:
    buffer = io.BytesIO()
    write_po(buffer, catalog, width=88, omit_header=True, include_lineno=False)
    return buffer.getvalue().decode()


if __name__ == "__main__":
    POT.write_text(render())

    for language, path in catalogues():
        path.write_text(render_catalogue(language, path))
        path.with_suffix(".mo").write_bytes(compile_catalogue(language, path))
