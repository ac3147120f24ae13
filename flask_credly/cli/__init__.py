"""``flask credly …``"""

from __future__ import annotations

from flask.cli import AppGroup

from .badges import reissue
from .badges import retry
from .badges import revoke
from .checks import doctor
from .compare import reconcile
from .many import backfill
from .many import dismiss
from .many import revoke_many
from .upkeep import erase_member
from .upkeep import export_member
from .upkeep import prune
from .upkeep import restored
from .upkeep import rotate_keys
from .words import in_words
from .work import poll
from .work import status
from .work import sweep
from .work import sync
from .work import worker

__all__ = ["add_commands", "in_words"]


def add_commands(group: AppGroup) -> None:
    """Add all commands to the group of one application."""
    group.command("worker")(worker)
    group.command("status")(status)
    group.command("sweep")(sweep)
    group.command("sync")(sync)
    group.command("poll")(poll)
    group.command("retry")(retry)
    group.command("revoke")(revoke)
    group.command("revoke-many")(revoke_many)
    group.command("reissue")(reissue)
    group.command("backfill")(backfill)
    group.command("dismiss")(dismiss)
    group.command("doctor")(doctor)
    group.command("reconcile")(reconcile)
    group.command("restored")(restored)
    group.command("rotate-keys")(rotate_keys)
    group.command("prune")(prune)
    group.command("erase-member")(erase_member)
    group.command("export-member")(export_member)
