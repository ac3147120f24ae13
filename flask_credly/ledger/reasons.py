"""Why a row is as it is, where that was no answer of Credly's: a code in the ledger,
and words for who reads it.
"""

from __future__ import annotations

from ..models import Issuance
from ..models import Reason

REASONS: dict[Reason, str] = {
    "unmapped": "The mapping was removed.",
    "stopped": "The backfill was stopped.",
    "removed": "The integration was removed.",
    "erased": "The member was erased.",
    "perhaps issued": "The member was erased. Credly may have issued the badge.",
    "crashed": (
        "The worker died each time it handled this badge. The developer of this site"
        " finds the reason in its log."
    ),
    "dropped": "An admin took it back before it was issued.",
    "awaits revocation": "The badge before it is to be revoked first.",
    "not revoked": "The badge before it was not revoked.",
    "no duplicates": (
        "Credly does not issue this badge template more than once any more. It waits"
        " until duplicates are allowed again."
    ),
    "withdrawn": "The completion was withdrawn.",
    "awaits approval": (
        "The completion was withdrawn, with many others. An admin decides whether"
        " the badge is revoked."
    ),
}

TAKEN_UP_AGAIN: tuple[Reason, ...] = ("unmapped", "stopped")
"""Of rows that were cancelled before anything was sent: a later run takes them up."""


def explain(row: Issuance) -> str | None:
    """Say what went wrong with a row. ``None``: nothing."""
    if row.reason is None:
        return row.error

    return REASONS[row.reason]  # type: ignore[index]
