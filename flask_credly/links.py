"""Which addresses are Credly's: whoever answers in its place may not send a member
anywhere else.
"""

from __future__ import annotations

import re
import typing as t
import urllib.parse


def own_host(api_url: str) -> str | None:
    """Get the API's host, if that is not one of Credly's."""
    host = urllib.parse.urlsplit(api_url).hostname
    return None if host is None or _is_credlys(host) else host


def _is_credlys(host: str) -> bool:
    return host == "credly.com" or host.endswith(".credly.com")


def read_link(value: t.Any, own_host: str | None = None) -> str | None:
    """Get a link, if it leads to Credly, or its sandbox, by https.

    :param own_host: A host that may stand in Credly's place.
    """
    # Not what one reader takes for the end of the host, and another does not.
    if not isinstance(value, str) or not re.fullmatch(
        r"https://[A-Za-z0-9.-]+(?::\d{1,5})?(?:[/?#][!-\[\]-~]*)?", value
    ):
        return None

    try:
        host = urllib.parse.urlsplit(value).hostname or ""
    except ValueError:
        return None

    is_ours = _is_credlys(host) or (own_host is not None and host == own_host)
    return value if is_ours and len(value) <= 500 else None
