"""Serves the simulator that the example application talks to instead of Credly."""

from __future__ import annotations

import sys
import threading

from flask_credly.testing import CredlySimulator

# Plainly example data, the same at every start, so that a kept database still fits.
ORGANIZATION_ID = "e0a3a1f0-0000-4000-8000-000000000001"
CLIENT_ID = "example-client-id-for-the-simulator-00000001"
CLIENT_SECRET = "example-client-secret-for-the-simulator-001"

TEMPLATES = [
    "Accessibility Basics",
    "Data Path",
    "Flask Foundations",
    "Git and Teamwork",
    "HTML and CSS",
    "Python 101",
    "Python in Practice",
    "SQL Basics",
    "Testing with Pytest",
    "Writing for the Web",
]


def make_simulator() -> CredlySimulator:
    """Make a simulator with the example's organization and badge templates."""
    simulator = CredlySimulator(
        organization_id=ORGANIZATION_ID,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
    )

    for number, name in enumerate(TEMPLATES, 1):
        id_ = f"e0a3a1f0-0000-4000-9000-{number:012}"
        simulator.add_template(name, id=id_, image=False)

    simulator.add_template(
        "Python 2 (archived)",
        id="e0a3a1f0-0000-4000-9000-000000000100",
        state="archived",
    )
    simulator.add_template(
        "Statistics (draft)",
        id="e0a3a1f0-0000-4000-9000-000000000101",
        state="draft",
        image=False,
    )
    return simulator


if __name__ == "__main__":
    with make_simulator().serve(port=int(sys.argv[1])):
        threading.Event().wait()
