"""The configuration window: the form to connect, or what there is once connected."""

from __future__ import annotations

import datetime as dt
import math
import typing as t

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..errors import CredlyError
from ..errors import SecretUnreadable
from ..i18n import gettext
from ..i18n import gettext_noop
from ..i18n import ngettext
from ..issuing import notifier
from ..issuing import unrecorded
from ..issuing import workers
from ..ledger import backfills
from ..ledger import comparisons
from ..ledger import gates
from ..ledger import log
from ..ledger import overview
from ..ledger import removing
from ..ledger import retrying
from ..ledger import undone
from ..models import Account
from .community import here
from .courses import name_anew
from .forms import ConnectForm
from .guard import actor
from .guard import may_act
from .index import AT_MOST
from .log import fold
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import UNFIT
from .respond import wants_fragment
from .respond import when_expired
from .rows import EditRow
from .rows import section

REFUSED = gettext_noop(
    "Unable to connect to Credly. Please check your Organization ID and OAuth"
    " credentials."
)
UNREACHABLE = gettext_noop(
    "Credly could not be reached, so your details were not checked or saved. Try again"
    " in a few minutes."
)
OTHER_ORGANIZATION = gettext_noop(
    "Another organization is connected. Remove the integration first. This"
    " deletes its mappings and error log."
)
STILL_REMOVING = gettext_noop(
    "The previous connection is still being removed: %(percent)s %% done. Your details"
    " were not saved. You can connect when this is finished."
)
UNREADABLE = gettext_noop(
    "The stored Client Secret cannot be decrypted with the configured keys. Ask the"
    " developer of this site to restore the key, or enter the Client Secret again."
)
NO_KEY = gettext_noop(
    "The Client Secret cannot be encrypted, so it was not saved. Ask the"
    " developer of this site to set CREDLY_ENCRYPTION_KEYS."
)


def show() -> ResponseReturnValue:
    """Show the window."""
    wanted = request.args.get("mapping", "")
    is_open = may_act() and (wanted == "new" or wanted.isdecimal())
    return show_with([EditRow.of(wanted)] if is_open else [])


def show_with(rows: list[EditRow], status: int = 200) -> Response:
    """Show the window with some mapping rows open."""
    connected = read(accounts.get)

    if connected is None and not may_act():
        return go_to("credly.index")

    # It shows how far that is.
    if connected is None and read(removing.going_on) is not None:
        return go_to("credly.index")

    if connected is None:
        return page("credly/connect.html", form=ConnectForm(), connection=None)

    latest = read(log.page, size=10)
    under_way = read(backfills.under_way)
    listed = section(rows)
    taken_back = read(undone.latest, going_on=True)
    brought_back = read(retrying.brought_back)
    name_anew(
        [*(each.run for each in under_way), *taken_back, *brought_back],
        listed["courses"],
    )
    return page(
        "credly/window.html",
        status,
        log=latest,
        folds=fold(latest, connected),
        backfills=under_way,
        undos=taken_back,
        comparison=read(comparisons.known),
        retrying=read(retrying.going_on),
        brought_back=brought_back,
        healed=read(
            backfills.healed, since=dt.datetime.now(dt.UTC) - backfills.LOOK_BACK
        ),
        **in_the_way(connected),
        **listed,
    )


def in_the_way(connected: Account) -> dict[str, t.Any]:
    """Gather what the banners show."""
    state = here()
    count = workers.count(state)
    return {
        "connection": connected,
        "gone": read(accounts.mapped_and_gone),
        "kept_for": state.settings.personal_data_days,
        "overview": read(overview.read, config=state.app.config, at_most=AT_MOST),
        "workers": count,
        "trouble": state.web_queue.trouble,
        "unrecorded": unrecorded.read(state),
        "heals": state.heals,
    }


def how_far(
    connected: Account, progress: t.Any, size: int, *, can_stop: bool
) -> dict[str, t.Any]:
    """Gather what a page shows of a run, with the banners.

    :param progress: A ``Progress`` of the ledger's.
    :param size: How many badges it is about.
    """
    # A screen reader shall not read every number.
    quarter = 4 if progress.is_over else min(3, 4 * progress.done // max(1, size))
    return {
        "progress": progress,
        "size": size,
        "quarter": quarter,
        "can_stop": can_stop,
        "address": {},
        **in_the_way(connected),
    }


def banners() -> ResponseReturnValue:
    """Show once more what is in the way, on a page that stays open."""
    connected = read(accounts.get)

    if connected is None or not wants_fragment():
        return go_to("credly.show")

    return fragment("credly/_banners.html", **in_the_way(connected))


def edit() -> ResponseReturnValue:
    """Show the form once more, to enter other credentials."""
    connected = read(accounts.get)
    return page("credly/connect.html", form=_prefilled(connected), connection=connected)


def _connect_expired() -> Response:
    return _again(ConnectForm.sent(), gettext(EXPIRED))


@when_expired(_connect_expired)
def connect() -> ResponseReturnValue:
    """Verify and save the credentials."""
    form = ConnectForm.sent()

    if not form.validate():
        return _again(form)

    try:
        found = accounts.connect(
            here(),
            organization_id=form.organization_id.data,
            client_id=form.client_id.data,
            client_secret=form.client_secret.data,
            by=actor(),
        )
    except accounts.TooOften as e:
        response = _again(form, _too_often(e.wait), 429)
        response.retry_after = math.ceil(e.wait.total_seconds())
        return response
    except accounts.NotVerified as e:
        return _again(form, gettext(REFUSED), step=_refused_step(e))
    except accounts.CouldNotVerify:
        return _again(form, gettext(UNREACHABLE))
    except accounts.OtherOrganization:
        return _again(form, gettext(OTHER_ORGANIZATION))
    except accounts.StillRemoving as e:
        percent = e.removal.percent
        return _again(form, gettext(STILL_REMOVING, percent=percent))
    except accounts.NoKey:
        return _again(form, gettext(NO_KEY))
    except accounts.Unfit:
        return _again(form, gettext(UNFIT))

    if found.complete:
        said = ngettext(
            "Connected to Credly. %(number)s badge template loaded.",
            "Connected to Credly. %(number)s badge templates loaded.",
            found.templates,
        )
    else:
        said = ngettext(
            "Connected to Credly. %(number)s badge template loaded so far. The"
            " rest load in the background.",
            "Connected to Credly. %(number)s badge templates loaded so far. The"
            " rest load in the background.",
            found.templates,
        )

    flash(said)
    return go_to("credly.show")


def test() -> ResponseReturnValue:
    """Try the stored credentials."""
    try:
        accounts.check(here(), by=actor())
    except SecretUnreadable:
        flash(gettext(UNREADABLE), wrong=True)
    except accounts.TooOften as e:
        flash(_too_often(e.wait), wrong=True)
    except accounts.NotVerified:
        flash(gettext(REFUSED), wrong=True)
    except accounts.CouldNotVerify:
        said = gettext("Credly could not be reached. Try again in a few minutes.")
        flash(said, wrong=True)
    except accounts.NotConnected:
        flash(gettext("Credly is no longer connected."), wrong=True)
    else:
        flash(gettext("The connection works."))

    return go_to("credly.show")


def pause() -> ResponseReturnValue:
    """Stop issuing, until the admin lets it go on."""
    state = here()
    gates.switch(state.engine, state.tenant, on=False, by=actor())
    flash(gettext("Issuing is paused. New badges are queued until you resume."))
    return go_to("credly.show")


def resume() -> ResponseReturnValue:
    """Let issuing go on."""
    state = here()
    gates.switch(state.engine, state.tenant, on=True, by=actor())
    notifier.notify(state)
    flash(gettext("Issuing has resumed."))
    return go_to("credly.show")


def dismiss(number: int) -> ResponseReturnValue:
    """Note that completions that could not be recorded have been dealt with.

    :param number: How many the page showed. Later ones stay.
    """
    unrecorded.dismiss(here(), number, by=actor())
    flash(gettext("The warning was dismissed."))
    return go_to("credly.show")


def refresh_templates() -> ResponseReturnValue:
    """Load the badge templates once more."""
    try:
        number = accounts.sync_templates(here(), by=actor())
    except accounts.TooOften as e:
        flash(_too_often(e.wait), wrong=True)
    except CredlyError as e:
        flash(
            gettext(
                "The badge templates could not be loaded. %(detail)s",
                detail=e.detail,
            ),
            wrong=True,
        )
    else:
        flash(gettext("Badge templates loaded: %(number)s.", number=str(number)))

    return go_to("credly.show")


def _too_often(wait: dt.timedelta) -> str:
    if wait > dt.timedelta(minutes=2):
        return ngettext(
            "Too many attempts. Try again in %(number)s minute.",
            "Too many attempts. Try again in %(number)s minutes.",
            math.ceil(wait / dt.timedelta(minutes=1)),
        )

    return ngettext(
        "Too many attempts. Try again in %(number)s second.",
        "Too many attempts. Try again in %(number)s seconds.",
        math.ceil(wait.total_seconds()),
    )


def _refused_step(error: accounts.NotVerified) -> str:
    """Say what Credly refused, and what may be behind it."""
    if error.let_in:
        return gettext(
            "Step that failed: loading badge templates. Credly accepted the"
            " Client ID and Client Secret, but not for this organization. Check"
            " the Organization ID."
        )

    refused = gettext(
        "Step that failed: signing in. Credly rejected the Client ID or the"
        " Client Secret, or the OAuth application lacks the scopes"
        " badge_templates and issued_badges."
    )

    # Credentials of the one are unknown to the other.
    other = {
        None: "",
        True: gettext("This site uses Credly's sandbox. Enter sandbox credentials."),
        False: gettext(
            "This site does not use Credly's sandbox. If these are sandbox"
            " credentials, ask the developer of this site to set CREDLY_SANDBOX."
        ),
    }
    return f"{refused} {other[here().settings.is_sandbox]}".rstrip()


def _prefilled(connected: t.Any) -> ConnectForm:
    form = ConnectForm()

    if connected is not None:
        form.organization_id.data = connected.organization_id
        form.client_id.data = connected.client_id

    return form


def _again(
    form: ConnectForm,
    problem: str | None = None,
    status: int = 422,
    *,
    step: str | None = None,
) -> Response:
    """Show the form again. WTForms does not render a password that was typed."""
    context = {
        "form": form,
        "problem": problem,
        "step": step,
        "connection": read(accounts.get),
    }

    if wants_fragment():
        return fragment("credly/_connect_again.html", status, **context)

    return page("credly/connect.html", status, **context)
