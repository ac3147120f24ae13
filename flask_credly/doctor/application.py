"""Whether the application is set up right: settings, keys, hooks and pages."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import logging
import os
import re
import typing as t
import urllib.parse

import jinja2
import jinja2.nodes
from werkzeug.exceptions import HTTPException

from .. import keys
from ..admin.blueprint import ROUTES
from ..admin.rendering import is_own_layout
from ..admin.rendering import layout_environment
from ..catalog import read_courses
from ..settings import HOW_TO_READ
from ..settings import ignored
from ..settings import Settings
from ..settings import unknown
from ..state import Community
from .finding import Case
from .finding import error
from .finding import Finding
from .finding import ok
from .finding import warning

logger = logging.getLogger("flask_credly")


def check_settings(case: Case) -> Finding:
    if strange := unknown(case.config):
        return warning(
            f"Unknown settings: {', '.join(strange)}.",
            " ".join(
                f"Write {meant} in place of {name}." if meant else f"Remove {name}."
                for name, meant in strange.items()
            ),
        )

    if names := ignored(case.config, os.environ):
        return warning(
            f"Environment variables that are not used: {', '.join(names)}.",
            f"{HOW_TO_READ} Otherwise remove them.",
        )

    if late := _changed(case.state.settings, case.config):
        return warning(
            "Set after credly.init_app(app) and therefore not used:"
            f" {', '.join(late)}.",
            "Read the configuration before credly.init_app(app).",
        )

    if not logger.isEnabledFor(logging.ERROR):
        return warning(
            "The logger flask_credly is disabled. Errors, and completions that could"
            " not be recorded, are not in the log.",
            "Pass disable_existing_loggers=False to logging.config, or configure"
            " logging before flask_credly is imported.",
        )

    settings = case.state.settings
    queue = (
        f"Queue: {settings.queue!r} at {_redis_place(settings.redis_url)}."
        if isinstance(settings.queue, str)
        else "The queue comes from the function in CREDLY_QUEUE."
    )
    return ok(f"Credly API: {settings.api_url}. {queue}")


def check_key(case: Case) -> Finding:
    if not keys.can_seal(case.config):
        return error(
            "No key is configured to encrypt the Client Secret.",
            f"Set CREDLY_ENCRYPTION_KEYS. Make a key with {keys.MAKE_A_KEY}",
        )

    if keys.is_weak(case.config):
        return warning(
            f"CREDLY_ENCRYPTION_KEYS is not set. {keys.WEAK}",
            "Set CREDLY_ENCRYPTION_KEYS, restart all processes, then run"
            f" flask credly rotate-keys. Make a key with {keys.MAKE_A_KEY}",
        )

    if keys.is_derived(case.config):
        return warning(
            "CREDLY_ENCRYPTION_KEYS is not set. A key derived from SECRET_KEY is used.",
            "Set CREDLY_ENCRYPTION_KEYS, restart all processes, then run"
            f" flask credly rotate-keys. Make a key with {keys.MAKE_A_KEY}",
        )

    return ok("CREDLY_ENCRYPTION_KEYS is set.")


def check_hooks(case: Case) -> Finding:
    optional = {
        "member": case.state.load_member,
        "past_completions": case.state.past_completions,
        "actor": case.state.name_actor,
    }
    given = ["courses", "is_admin", *(name for name in optional if optional[name])]
    missing = [name for name in optional if not optional[name]]
    text = f"Registered: {', '.join(given)}."

    for each in case.shared.communities:
        if wrong := _try_courses(each):
            return wrong

    return ok(f"{text} Not registered: {', '.join(missing)}." if missing else text)


def _try_courses(state: Community) -> Finding | None:
    whose = f" for {state.tenant}" if state.has_tenants else ""

    try:
        # As on a page, where it is called.
        host = state.settings.host
        base = f"http://{host}" if host else None

        with state.app.test_request_context(state.page("/credly"), base_url=base):
            try:
                read_courses(state.list_courses())
            finally:
                state.session.remove()
    except (TypeError, ValueError) as e:
        logger.debug("The @credly.courses hook failed.", exc_info=True)
        return error(
            f"The @credly.courses hook failed{whose}, so no course can be mapped. {e}",
            "Return a list of Course objects.",
        )
    except Exception as e:
        # Its text may hold an address with a password.
        logger.debug("The @credly.courses hook failed.", exc_info=True)
        return error(
            f"The @credly.courses hook failed{whose} ({type(e).__name__}), so no"
            " course can be mapped.",
            "Set the logger flask_credly to DEBUG for the traceback.",
        )

    return None


def check_pages(case: Case) -> Finding:
    layout = case.state.settings.layout

    # CREDLY_ENCRYPTION_KEYS stand in for it only where something is encrypted.
    if not case.config.get("SECRET_KEY"):
        return error(
            "SECRET_KEY is not set. Every page with a form fails.",
            "Set SECRET_KEY to the same value in every process.",
        )

    if (shadowed := _shadowed(case)) is not None:
        path, endpoint = shadowed
        return error(
            f"{case.state.page(path)} leads to {endpoint or 'no page'} instead of"
            " Flask-Credly.",
            "Move that route, or set CREDLY_URL_PREFIX.",
        )

    try:
        if is_own_layout():
            return ok("The pages use Flask-Credly's own layout and htmx.")

        blocks = _blocks(layout_environment(), layout)
    except jinja2.TemplateNotFound as e:
        return error(
            f"The template {e.name} does not exist. Every page fails.",
            "Correct CREDLY_LAYOUT or the template.",
        )
    except jinja2.TemplateSyntaxError as e:
        return error(
            f"{e.name or layout} has a syntax error. Every page fails.",
            f"Correct line {e.lineno}.",
        )

    if blocks is not None and "content" not in blocks:
        return error(
            f"{layout} has no block named content. Every page is empty.",
            "Add {% block content %}{% endblock %} to it.",
        )

    return ok(
        f"The pages use the layout {layout}, and its htmx if it loads 2.0 or later."
    )


def _shadowed(case: Case) -> tuple[str, str | None] | None:
    """Find an address of ours that leads elsewhere, and where."""
    addresses = case.state.app.url_map.bind(case.state.settings.host or "localhost")
    ours = [(method, path, view.__name__) for method, path, view in ROUTES]

    for method, path, name in [*ours, ("GET", "/static/credly.css", "static")]:
        path = re.sub("<.*?>", "1", path)
        found = None

        try:
            url = f"{case.state.settings.url_prefix}{path}"
            found = t.cast(str, addresses.match(url, method)[0])
        except HTTPException:
            pass

        if found != f"credly.{name}":
            return path, found

    return None


def _blocks(environment: jinja2.Environment, name: str) -> set[str] | None:
    """Get the blocks of a template and of those that it stands in. ``None``: they are
    named at run time only.
    """
    if environment.loader is None:
        return None

    try:
        source, *_ = environment.loader.get_source(environment, name)
    except RuntimeError:  # of a loader of compiled templates
        return None

    found = set(environment.get_template(name).blocks)

    for outer in environment.parse(source).find_all(jinja2.nodes.Extends):
        named = outer.template
        more = (
            _blocks(environment, named.value)
            if isinstance(named, jinja2.nodes.Const)
            else None
        )

        if more is None:
            return None

        found |= more

    return found


def _changed(settings: Settings, config: cabc.Mapping[str, t.Any]) -> list[str]:
    """Name the settings that have another value by now than those in force."""
    try:
        now = Settings.from_config(config)
    except ValueError as e:
        return [str(e).partition(" ")[0]]

    return [
        f"CREDLY_{field.name.upper()}"
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) != getattr(now, field.name)
    ]


def _redis_place(url: str) -> str:
    """Write the address of a Redis, without a password wherever it may stand."""
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    netloc = f"{name}@{host}" if name else host
    kept = [each for each in urllib.parse.parse_qsl(parts.query) if each[0] == "db"]
    query = urllib.parse.urlencode(kept)
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()
