"""The command that looks for what is wrong."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import typing as t

import click
import sqlalchemy as sa

from ..catalog import DEFAULT_TENANT
from ..ledger import turns
from ..state import get_state
from .words import get_community
from .words import of_tenant
from .words import say

if t.TYPE_CHECKING:
    from ..doctor import Finding

logger = logging.getLogger("flask_credly")


@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@of_tenant
def doctor(as_json: bool, tenant: str | None) -> None:
    """Check the setup and show how to fix each problem."""
    from .. import doctor as examination

    state = get_state()
    several: list[str] = []

    if tenant is None and state.has_tenants:
        try:
            several = turns.tenants(state.engine)
        except sa.exc.SQLAlchemyError as e:
            # What is wrong with the database is found below.
            logger.debug("Communities not known (%s).", type(e).__name__)

    if tenant is None and state.has_tenants and len(several) != 1:
        found, of_tenants = examination.examine_several(
            state.of(DEFAULT_TENANT), [state.of(each) for each in several]
        )
    else:
        found = examination.examine(get_community(tenant))
        of_tenants = {}

    every = list(found.values())
    every += [each for checks in of_tenants.values() for each in checks.values()]
    well = not any(each.status == "error" for each in every)

    if as_json:
        values: dict[str, t.Any] = {"ok": well, "checks": _checks(found)}

        if of_tenants:
            values["tenants"] = {
                name: {"checks": _checks(each)} for name, each in of_tenants.items()
            }

        say(json.dumps(values))
    else:
        _print_checks(found)

        for name, each in of_tenants.items():
            say(f"{name}:")
            _print_checks(each)

    sys.exit(0 if well else 1)


def _checks(found: dict[str, Finding]) -> dict[str, t.Any]:
    return {name: dataclasses.asdict(each) for name, each in found.items()}


def _print_checks(found: dict[str, Finding]) -> None:
    for name, each in found.items():
        say(f"{each.status:8}{name:12}{each.detail}")

        if each.hint:
            say(f"{'':20}→ {each.hint}")
