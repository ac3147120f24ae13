"""Many withdrawn completions: an admin decides about their badges."""

from __future__ import annotations

from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import ngettext
from ..issuing import notifier
from ..ledger import withdrawals
from .badges import names_of
from .community import here
from .forms import WithdrawnForm
from .guard import actor
from .query import number as number_in_address
from .query import read_number
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import go_to
from .respond import page
from .respond import when_expired


def confirm_withdrawn() -> ResponseReturnValue:
    """Ask what becomes of the badges."""
    return _page(WithdrawnForm())


def _withdrawn_expired() -> Response:
    return _page(WithdrawnForm.sent(), 422, gettext(EXPIRED))


@when_expired(_withdrawn_expired)
def decide_withdrawn() -> ResponseReturnValue:
    """Have them revoked, or keep them."""
    form = WithdrawnForm.sent()

    if not form.validate():
        return _page(form, 422)

    state = here()
    revoke = form.decision.data == "revoke"
    number = withdrawals.decide(
        state.engine,
        state.tenant,
        read_number(form.shown.data) or 0,
        revoke=revoke,
        by=actor(),
    )

    if not number:
        problem = gettext(
            "The number of badges has changed. Nothing was done. Check the number and"
            " submit again."
        )
        return _page(form, 422, problem)

    if revoke:
        notifier.notify(state)
        said = ngettext(
            "%(number)s badge is queued for revocation.",
            "%(number)s badges are queued for revocation.",
            number,
        )
    else:
        said = ngettext(
            "%(number)s badge is kept.", "%(number)s badges are kept.", number
        )

    flash(said)
    return go_to("credly.badges")


def _page(
    form: WithdrawnForm, status: int = 200, problem: str | None = None
) -> Response:
    number = read(withdrawals.count) if read(accounts.get) is not None else 0

    if not number:
        return go_to("credly.badges")

    found = read(
        withdrawals.page,
        before=number_in_address("before"),
        after=number_in_address("after"),
    )
    return page(
        "credly/withdrawn.html",
        status,
        form=form,
        number=number,
        problem=problem,
        found=found,
        **names_of(found.rows),
    )
