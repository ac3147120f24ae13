"""Where the templates and static files are, and what they are called in a URL."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    # A wheel carries the folder inside the package, a checkout beside it. The inside
    # is tried first: site-packages may hold someone else's "templates".
    for parent in (_PACKAGE, _PACKAGE.parent):
        if (path := parent / name).is_dir():
            return path

    raise RuntimeError(f"flask_credly was installed without its '{name}' folder.")


TEMPLATES = _folder("templates")
STATIC = _folder("static")


@functools.cache
def version(filename: str) -> str:
    """Make the part of a static file's URL that changes with its content."""
    return hashlib.sha256((STATIC / filename).read_bytes()).hexdigest()[:8]
