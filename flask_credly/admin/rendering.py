"""Renders our templates, and puts them into the host's layout.

Ours are rendered by a Jinja environment of our own: none of the host's options, such as
its delimiters, its ``undefined`` or what it escapes, changes what they mean. The host's
layout is rendered by the host's environment, with our blocks as they are.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import pathlib
import re
import secrets
import typing as t

import jinja2
import jinja2.ext
import jinja2.nodes
from flask import current_app
from flask import g
from flask import url_for
from flask.templating import DispatchingJinjaLoader
from markupsafe import Markup

from .. import assets
from .. import i18n
from ..models import Template
from ..state import get_state
from . import forms
from . import guard
from .query import write_key

OWN_LAYOUT = "credly/base.html"

# Of nobody else: who serves a picture learns of each visit.
_PICTURE = re.compile(r"https://([a-z0-9-]+\.)+credly\.com/[!-~]*", re.IGNORECASE)

_KEPT = "credly_rendering"
_TITLE, _CONTENT = "credly_title", "credly_content"

_PARTS = """
{%- block title %}{% endblock %}{{ credly_cut }}{% block content %}{% endblock -%}
"""


class _HostsFirst(jinja2.BaseLoader):
    """Finds what the host has put in the place of one of ours."""

    def get_source(
        self, environment: jinja2.Environment, template: str
    ) -> tuple[str, str | None, cabc.Callable[[], bool] | None]:
        host = current_app.jinja_env

        for loader in _loaders(host.loader):
            if loader.has_source_access:
                with contextlib.suppress(jinja2.TemplateNotFound):
                    return loader.get_source(host, template)

        raise jinja2.TemplateNotFound(template)

    def load(
        self,
        environment: jinja2.Environment,
        name: str,
        globals: cabc.MutableMapping[str, t.Any] | None = None,
    ) -> jinja2.Template:
        # Templates that the host has compiled have no source any more.
        for loader in _loaders(current_app.jinja_env.loader):
            if not loader.has_source_access:
                with contextlib.suppress(jinja2.TemplateNotFound):
                    return loader.load(environment, name, globals)

        return super().load(environment, name, globals)


class _Flush(jinja2.ext.Extension):
    """Leaves the indentation of our templates out of the pages."""

    def preprocess(
        self, source: str, name: str | None, filename: str | None = None
    ) -> str:
        # What a host has put in their place may have to keep it.
        if filename and pathlib.Path(filename).is_relative_to(assets.TEMPLATES):
            return re.sub(r"^[ \t]+", "", source, flags=re.MULTILINE)

        return source


def _loaders(loader: jinja2.BaseLoader | None) -> cabc.Iterator[jinja2.BaseLoader]:
    """Take a host's loader apart: one without sources fails among others."""
    inner: cabc.Iterable[jinja2.BaseLoader | None]

    if isinstance(loader, jinja2.ChoiceLoader):
        inner = loader.loaders
    elif type(loader) is DispatchingJinjaLoader:
        places: tuple[t.Any, ...] = (loader.app, *loader.app.iter_blueprints())
        inner = [each.jinja_loader for each in places]
    elif loader is not None:
        yield loader
        return
    else:
        return

    for each in inner:
        yield from _loaders(each)


class _Kept(t.NamedTuple):
    """What is made once for an application.

    :param ours: The environment of our templates.
    :param parts: The layout that parts a page into its blocks.
    :param page: A template of the host's that extends its layout by them. ``None``: the
        pages stand in ours.
    """

    ours: jinja2.Environment
    parts: jinja2.Template
    page: jinja2.Template | None


def _kept() -> _Kept:
    extensions = current_app.extensions

    # Not before the first page: the host may still change its environment.
    if _KEPT not in extensions:
        ours, layout = _make_environment(), get_state().settings.layout
        parts = ours.from_string(_PARTS)
        own = layout == OWN_LAYOUT
        page = None if own else _extend(current_app.jinja_env, layout)
        extensions[_KEPT] = _Kept(ours, parts, page)

    kept: _Kept = extensions[_KEPT]
    return kept


def _picture(template: Template) -> str:
    """Get the address of a template's picture, if it is one of Credly's."""
    url = template.image_url or ""
    return url if _PICTURE.fullmatch(url) else ""


def environment() -> jinja2.Environment:
    """Get the environment of our templates for the current application."""
    return _kept().ours


def _make_environment() -> jinja2.Environment:
    state, host = get_state(), current_app.jinja_env
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [_HostsFirst(), jinja2.FileSystemLoader(assets.TEMPLATES)]
        ),
        autoescape=True,
        auto_reload=host.auto_reload,
        bytecode_cache=host.bytecode_cache,
        extensions=[_Flush],
    )
    own = {
        **made.globals,
        "url_for": url_for,
        "credly_assets": tags,
        "credly_version": assets.version,
        "credly_token": forms.token,
        "credly_picture": _picture,
        "credly_may_act": guard.may_act,
        "credly_masked": guard.mask,
        "credly_key": write_key,
        "credly_gettext": i18n.html_gettext,
        "credly_ngettext": i18n.html_ngettext,
        "credly_date": i18n.format_date,
        "credly_datetime": i18n.format_datetime,
        "credly_number": i18n.format_number,
        "credly_language": i18n.language,
        "credly_own_layout": state.settings.layout == OWN_LAYOUT,
        "credly_platform": state.settings.platform_name,
        "credly_has_past": state.past_completions is not None,
    }
    # What the host has put in our place may use what its other templates do.
    names: t.Any = made
    names.globals = collections.ChainMap(own, host.globals)
    names.filters = collections.ChainMap(made.filters, host.filters)
    names.tests = collections.ChainMap(made.tests, host.tests)
    return made


def render(template: str, **context: t.Any) -> Markup:
    """Render a part of a page."""
    return _render(template, context, _hosts_names())


def render_page(template: str, **context: t.Any) -> Markup:
    """Render a whole page, in the layout."""
    kept, names = _kept(), _hosts_names()

    if kept.page is None:
        return _render(template, {**context, "credly_layout": OWN_LAYOUT}, names)

    # No text can hold it.
    cut = secrets.token_hex(16)
    context = {**context, "credly_layout": kept.parts, "credly_cut": cut}
    title, _, content = _render(template, context, names).partition(cut)
    return Markup(kept.page.render({**names, _TITLE: title, _CONTENT: content}))


def tags() -> Markup:
    """Render the tags of the style sheet and the script, once a page."""
    if "credly_assets" in g:
        return Markup()

    g.credly_assets = True
    return render("credly/_assets.html")


def _render(
    template: str, context: dict[str, t.Any], names: dict[str, t.Any]
) -> Markup:
    ours = environment()
    # A processor of the host's may hide what is global.
    own = t.cast(t.Any, ours.globals).maps[0]
    return Markup(ours.get_template(template).render({**names, **own, **context}))


def _hosts_names() -> dict[str, t.Any]:
    """Get what the host's context processors give."""
    names: dict[str, t.Any] = {}
    current_app.update_template_context(names)
    return names


def _extend(host: jinja2.Environment, layout: str) -> jinja2.Template:
    """Make a template of the host's that extends its layout by our blocks: of nodes and
    functions, so that neither its delimiters nor what it does to values matter.
    """
    extends = jinja2.nodes.Extends(jinja2.nodes.Const(layout))
    tree = jinja2.nodes.Template([extends]).set_lineno(1).set_environment(host)
    made = host.from_string(t.cast(jinja2.nodes.Template, tree))
    block = _async_block if host.is_async else _block
    made.blocks = {"title": block(_TITLE), "content": block(_CONTENT)}
    return made


def _block(name: str) -> t.Any:
    def block(context: jinja2.runtime.Context) -> cabc.Iterator[str]:
        yield context[name]

    return block


def _async_block(name: str) -> t.Any:
    async def block(context: jinja2.runtime.Context) -> cabc.AsyncIterator[str]:
        yield context[name]

    return block


def layout_environment() -> jinja2.Environment:
    """Get the environment that renders the layout."""
    if get_state().settings.layout == OWN_LAYOUT:
        return environment()

    return current_app.jinja_env


def is_own_layout() -> bool:
    """Whether the page stands in our layout: not in a host's, nor in one that the host
    put in its place under the same name.
    """
    if get_state().settings.layout != OWN_LAYOUT:
        return False

    found = environment().get_template(OWN_LAYOUT).filename
    return found == str(assets.TEMPLATES / OWN_LAYOUT)
