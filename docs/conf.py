"""How the documentation is built: ``make docs``."""

from __future__ import annotations

import importlib.metadata

project = "Flask-Credly"
author = "Flask-Credly contributors"
release = importlib.metadata.version("Flask-Credly")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# "systemd" and the like are not known to the highlighter; they are shown as text.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"Flask-Credly {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
