"""The application as the workers load it: the same code on shorter clocks.

The lease, the wait where Credly would issue twice and the one after a look-up without
an answer are made for real networks, and are a minute or half of one. A storm of a
minute would see none of them end. They are shortened here, and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import sys

from flask import Flask

from flask_credly.issuing import lane
from flask_credly.issuing import verdict

from .host import make_host

CONFIG = "STORM_CONFIG"

SHORT = (
    (lane, "SEND_WITHIN", 1.0),
    (verdict, "DUPLICATES_WAIT", 3.0),
    (verdict, "LOOK_UP_WAIT", 1.0),
)


def create_app() -> Flask:
    """Make the application of a worker. ``FLASK_APP`` names this."""
    log_everything()

    for module, name, seconds in SHORT:
        if not hasattr(module, name):
            raise RuntimeError(f"{module.__name__} has no {name} any more.")

        setattr(module, name, seconds)

    return make_host(json.loads(os.environ[CONFIG])).app


def log_everything() -> None:
    """Log as a developer would who looks for a mistake: this is searched for what
    does not belong in a log.
    """
    logging.basicConfig(
        level=logging.DEBUG,
        stream=sys.stderr,
        format="%(asctime)s <%(process)d> [%(name)s] %(levelname)s %(message)s",
    )
    # These log the host's SQL with its parameters when they are asked to.
    logging.getLogger("sqlalchemy").setLevel(logging.WARNING)


def split_log(path: pathlib.Path) -> list[tuple[str, bytes]]:
    """Split a log by who wrote it: its name and the logger's, and what was written."""
    by_logger: dict[str, list[bytes]] = {}
    logger = "no logger"

    for line in path.read_bytes().splitlines():
        if found := re.match(rb"[-\d]+ [:,\d]+ <\d+> \[(.*?)\] ", line):
            logger = found[1].decode()

        by_logger.setdefault(logger, []).append(line)

    return [
        (f"{path.name} ({logger})", b"\n".join(lines))
        for logger, lines in by_logger.items()
    ]
