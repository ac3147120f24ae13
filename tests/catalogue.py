"""Gathers the texts that can be translated: ``make words``."""

from __future__ import annotations

import io
import pathlib

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
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
    buffer = io.BytesIO()
    write_po(buffer, read_sources(), width=88, omit_header=True, include_lineno=False)
    return HEAD + buffer.getvalue().decode()


if __name__ == "__main__":
    POT.write_text(render())
