"""What Credly does in the storm."""

from __future__ import annotations

import collections.abc as cabc
import json
import random
import typing as t

from flask_credly.testing import CredlySimulator
from flask_credly.testing.organization import Organization

if t.TYPE_CHECKING:
    from wsgiref.types import StartResponse
    from wsgiref.types import WSGIEnvironment

LATENESS = {"refused": 0.5, "allowed": 1.5}
"""Seconds by which a badge is made late: less than is waited before the look, which is
the retry's delay where Credly refuses duplicates, and longer where it does not.
"""

LOOK_UP_LAG = 0.3

SHORT_PAUSE = 1
LONG_PAUSE = 7

_HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"
_HANG = 2.5

Fault = tuple[float, dict[str, t.Any]]


def _issue_faults(lateness: float) -> list[Fault]:
    return [
        (0.04, {"status": 500}),
        (0.03, {"status": 500, "after": True}),
        (0.02, {"how": "hang", "after": True, "delay": _HANG}),
        (0.01, {"how": "hang", "delay": _HANG}),
        (0.02, {"status": 429, "headers": {"Retry-After": str(SHORT_PAUSE)}}),
        (0.02, {"status": 429, "headers": {"Retry-After": str(SHORT_PAUSE + 1)}}),
        (0.02, {"status": 502, "body": _HTML}),
        (0.01, {"how": "truncate"}),
        (0.03, {"how": "late", "delay": lateness}),
        (0.01, {"how": "reset"}),
        (0.01, {"how": "reset", "after": True}),
        (0.005, {"how": "drip", "delay": 0.05}),
        (0.005, {"status": 403}),
        (0.005, {"status": 200, "body": "{}"}),
        (0.005, {"status": 302, "headers": {"Location": "/elsewhere"}}),
    ]


def _batch_faults(lateness: float) -> list[Fault]:
    return [
        (0.02, {"status": 500, "after": True, "only": 2}),
        (0.02, {"how": "hang", "after": True, "delay": _HANG, "only": 3}),
        (0.02, {"how": "late", "delay": lateness, "only": 4}),
    ]


_LOOK_UP_FAULTS: list[Fault] = [
    (0.03, {"status": 500}),
    (0.02, {"how": "hang", "delay": _HANG}),
    (0.01, {"status": 502, "body": _HTML}),
    (0.01, {"how": "truncate"}),
    (0.01, {"how": "reset"}),
    (0.01, {"status": 429, "headers": {"Retry-After": str(SHORT_PAUSE)}}),
]

_READ_FAULTS: list[Fault] = [
    (0.02, {"status": 500}),
    (0.01, {"how": "reset"}),
    (0.01, {"status": 429, "headers": {"Retry-After": str(SHORT_PAUSE)}}),
]

_TOKEN_FAULTS: list[Fault] = [
    (0.04, {"status": 500}),
    (0.03, {"how": "hang", "delay": _HANG}),
    (0.02, {"status": 502, "body": _HTML}),
    (0.02, {"status": 200, "body": {"access_token": None}}),
]


def break_out(simulator: Organization, seed: int, *, lateness: float) -> None:
    """Let Credly fail a share of its calls, in every way the simulator knows."""
    simulator.look_up_lag = LOOK_UP_LAG
    rng = random.Random(seed)

    for kind, faults in (
        ("issue", _issue_faults(lateness)),
        ("batch", [*_issue_faults(lateness), *_batch_faults(lateness)]),
        ("revoke", _issue_faults(lateness)),
        ("replace", _issue_faults(lateness)),
        ("look-up", _LOOK_UP_FAULTS),
        ("badge", _READ_FAULTS),
        ("token", _TOKEN_FAULTS),
    ):
        for share, fault in faults:
            simulator.fail(
                t.cast(t.Any, kind), share=share, seed=rng.randrange(2**32), **fault
            )


def fail_all(organization: Organization, fault: dict[str, t.Any]) -> None:
    """Let Credly fail every call of one organization, until it is cleared."""
    organization.clear_faults()

    for kind in (
        *("issue", "batch", "revoke", "replace", "look-up", "badge", "token"),
    ):
        organization.fail(t.cast(t.Any, kind), times=None, **fault)


HANGING: dict[str, t.Any] = {"how": "hang", "delay": _HANG}
OUTAGE: dict[str, t.Any] = {"status": 503}


def pause_long(simulator: Organization) -> None:
    """Answer the next request to issue with a pause that lasts."""
    for kind in ("issue", "batch"):
        simulator.fail(
            t.cast(t.Any, kind), status=429, headers={"Retry-After": str(LONG_PAUSE)}
        )


class Tapped:
    """The simulator as served, with the tokens that it gave noted: they must not be
    found anywhere else.
    """

    def __init__(self, simulator: CredlySimulator) -> None:
        self._simulator = simulator
        self.tokens: list[str] = []

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> cabc.Iterable[bytes]:
        answer = self._simulator(environ, start_response)

        if environ["PATH_INFO"] != "/oauth/token":
            return answer

        parts = list(answer)

        try:
            token = json.loads(b"".join(parts))["access_token"]
        except (ValueError, KeyError):
            pass
        else:
            if token:
                self.tokens.append(token)

        return parts
