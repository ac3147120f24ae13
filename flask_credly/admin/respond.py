"""How a view answers: with a page, a fragment, or a way to another page."""

from __future__ import annotations

import typing as t

from flask import request
from flask import Response
from flask import session
from flask import url_for
from flask.typing import ResponseReturnValue
from flask_htmx import HTMX
from werkzeug.utils import redirect

from ..i18n import gettext
from ..i18n import gettext_noop
from .rendering import render
from .rendering import render_page

EXPIRED = gettext_noop("This page has expired. Please submit the form again.")

UNFIT = gettext_noop(
    "The Credly integration cannot use this database as it is. Ask the developer of"
    " this site to run the command flask credly doctor. It shows what to change."
)

_SAID = "credly_said"
_OURS = "credly_ours"
_REFUSAL = "Credly-Refusal"

# Not initialized on the app: a host may have its own.
_htmx = HTMX()


def wants_fragment() -> bool:
    """Whether htmx asks for a part of a page. Not when it asks for a whole one, for
    the browser's Back, or as a boosted link.
    """
    return bool(_htmx) and not _htmx.boosted and not _htmx.history_restore_request


def flash(message: str, *, wrong: bool = False) -> None:
    """Keep a message for the next page.

    :param wrong: Whether it is of a failure.
    """
    # Not Flask's flash: a host's layout would show it a second time.
    session[_SAID] = message, wrong


def take_message() -> tuple[str, bool]:
    """Get the kept message, once, and whether it is of a failure."""
    # Looked for first: without a SECRET_KEY a session can be read but not changed.
    message, wrong = session.pop(_SAID) if _SAID in session else ("", False)
    return message, wrong


def go_to(endpoint: str, **values: t.Any) -> Response:
    """Go to another page, with htmx or without."""
    url = url_for(endpoint, **values)

    if wants_fragment():
        return respond("", headers={"HX-Redirect": url})

    response = redirect(url, 303, Response)
    setattr(response, _OURS, True)
    return t.cast(Response, response)


def is_ours(response: Response) -> bool:
    """Whether the redirect was made here, and not by a host's guard."""
    return hasattr(response, _OURS)


def respond(
    html: str, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Send HTML: all of ours goes through here. What the host makes of a string, such
    as JSON, is for its own views.
    """
    response = Response(html, status, headers, mimetype="text/html")

    # The script shows no other refusal within a page: what a limit of requests or a
    # firewall answers is a page of its own.
    if status >= 400:
        response.headers[_REFUSAL] = "1"

    return response


def page(template: str, status: int = 200, **context: t.Any) -> Response:
    """Render a whole page, with the message that was kept for it."""
    message, wrong = take_message()
    html = render_page(template, message=message, wrong=wrong, **context)
    return respond(html, status)


def fragment(template: str, status: int = 200, **context: t.Any) -> Response:
    """Render a part of a page."""
    return respond(render(template, **context), status)


View = t.Callable[..., ResponseReturnValue]
ViewT = t.TypeVar("ViewT", bound=View)

_when_expired: dict[str | None, View] = {}


def when_expired(show: View) -> t.Callable[[ViewT], ViewT]:
    """Mark a view by what is shown where its form was open too long: what was typed,
    with a fresh token. Another view has nothing typed into it.

    :param show: Takes what the view takes.
    """

    def mark(view: ViewT) -> ViewT:
        _when_expired[f"credly.{view.__name__}"] = show
        return view

    return mark


def show_expired() -> ResponseReturnValue:
    """Answer a form of this request that was open too long."""
    show: View = _when_expired.get(request.endpoint, _start_again)
    return show(**(request.view_args or {}))


def _start_again(**_: t.Any) -> Response:
    flash(gettext(EXPIRED), wrong=True)
    return go_to("credly.show")


def do_not_store(response: Response) -> Response:
    """Keep a page of the host's, with something of ours on it, out of all caches,
    whatever the host says of it.
    """
    response.headers["Cache-Control"] = "no-store, private"
    return response
