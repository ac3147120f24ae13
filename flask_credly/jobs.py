"""The functions RQ runs. Their import paths are stored in Redis and never change.

They find the application themselves, so that RQ's own worker can run them too: the
current one, or the one that ``FLASK_APP`` names.
"""

from __future__ import annotations

import functools
import logging
import os

from flask import current_app
from flask import Flask
from flask import has_app_context
from flask.cli import ScriptInfo

from . import accounts
from . import interruption
from .errors import CredlyError
from .issuing import notifier
from .issuing import periodic
from .issuing import stopping
from .issuing import workers
from .issuing.backfill import run as run_backfills
from .issuing.compare import run as run_comparisons
from .issuing.dispatcher import drain as drain_ledger
from .issuing.heal import heal as heal_ledger
from .issuing.meanwhile import issuing_meanwhile
from .issuing.poll import poll as poll_credly
from .issuing.undo import run as run_undos
from .issuing.withdrawals import release as release_withdrawn
from .ledger import turns
from .ledger.retention import prune as prune_ledger
from .state import get_state

logger = logging.getLogger("flask_credly")


def drain() -> None:
    """Issue every badge that is due."""
    with _app().app_context():
        state = get_state()
        notifier.acknowledge(state)
        workers.sign_job(state)
        release_withdrawn(state)

        if drain_ledger(state):
            notifier.notify(state)

        workers.note_success(state, periodic.DRAIN)


def backfill() -> None:
    """Record past completions, for every run that is due."""
    with _app().app_context(), issuing_meanwhile(get_state()):
        run_backfills(get_state())
        workers.note_success(get_state(), periodic.BACKFILL)


def compare() -> None:
    """Compare badges with Credly, for every community where that is due."""
    with _app().app_context(), issuing_meanwhile(get_state()):
        run_comparisons(get_state())
        workers.note_success(get_state(), periodic.COMPARE)


def undo() -> None:
    """Take badges back, retry them, or remove what an integration has left, for every
    run that is due.
    """
    with _app().app_context():
        state = get_state()

        with issuing_meanwhile(state):
            is_left = run_undos(state)

        if is_left:
            notifier.ask_for_undo(state)

        notifier.notify(state)
        workers.note_success(state, periodic.UNDO)


def heal() -> None:
    """Add completions of the last days that were missed."""
    with _app().app_context(), issuing_meanwhile(get_state()):
        heal_ledger(get_state())


def sync() -> None:
    """Load the active badge templates from Credly, for every community whose list is
    old.
    """
    with _app().app_context(), issuing_meanwhile(get_state()):
        state = get_state()
        error: Exception | None = None

        for tenant in turns.to_sync(state.engine):
            if stopping.is_set():
                return

            try:
                accounts.sync_templates(state.of(tenant))
            except CredlyError as e:
                logger.warning(
                    "The badge templates could not be loaded: %s",
                    e,
                    extra={"credly_event": "templates_not_loaded"},
                )
            except Exception as e:
                if interruption.find(e):
                    raise

                # Those of the others are loaded all the same.
                error = error or e

        if error is not None:
            raise error

        workers.note_success(state, periodic.SYNC)


def poll() -> None:
    """Ask Credly what became of the badges, for every community where that is due."""
    with _app().app_context(), issuing_meanwhile(get_state()):
        poll_credly(get_state())
        workers.note_success(get_state(), periodic.POLL)


def prune() -> None:
    """Forget what is older than the settings say."""
    with _app().app_context(), issuing_meanwhile(get_state()):
        state = get_state()
        prune_ledger(state.engine, state.settings, stop=stopping)
        workers.note_success(state, periodic.PRUNE)


def _app() -> Flask:
    if has_app_context():
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        return app

    return _load_app()


@functools.cache
def _load_app() -> Flask:
    # With None it looks for app.py and wsgi.py, and its error says what to set.
    return ScriptInfo(app_import_path=os.environ.get("FLASK_APP")).load_app()
