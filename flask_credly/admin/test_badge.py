"""A badge that counts for no member: the admin's own try."""

from __future__ import annotations

from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..issuing import notifier
from ..ledger import gates
from ..ledger import issuances
from .community import here
from .courses import list_courses
from .courses import name_anew
from .forms import PersonForm
from .guard import actor
from .mappings import gone
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import go_to
from .respond import page
from .respond import when_expired


def edit_test(mapping_id: int) -> ResponseReturnValue:
    """Ask who shall get a test badge."""
    return _test_page(mapping_id, PersonForm())


def _test_expired(mapping_id: int) -> Response:
    return _test_page(mapping_id, PersonForm.sent(), 422, gettext(EXPIRED))


@when_expired(_test_expired)
def send_test(mapping_id: int) -> ResponseReturnValue:
    """Issue a badge of a mapping that counts for no member."""
    form = PersonForm.sent()

    if not form.validate():
        return _test_page(mapping_id, form, 422)

    state = here()
    added = issuances.add_test(
        state.engine,
        state.tenant,
        mapping_id,
        email=form.email.data,
        first_name=form.first_name.data,
        last_name=form.last_name.data,
        by=actor(),
    )

    if added is None:
        return gone()

    notifier.notify(state)
    gate = gates.read(state.engine, state.tenant)

    if gate is not None and gate.is_open:
        flash(gettext("The test badge is queued. This page shows its status."))
    else:
        flash(gettext("The test badge is queued. It is sent when issuing resumes."))

    return go_to("credly.show_badge", issuance_id=added)


def _test_page(
    mapping_id: int, form: PersonForm, status: int = 200, problem: str | None = None
) -> Response:
    mapping = read(accounts.get_mapping, mapping_id)

    if mapping is None:
        return gone()

    name_anew([mapping], list_courses())
    return page("credly/test.html", status, mapping=mapping, form=form, problem=problem)
