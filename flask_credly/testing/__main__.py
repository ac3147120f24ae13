"""``python -m flask_credly.testing``: a local Credly to try an application with."""

from __future__ import annotations

import argparse
import contextlib
import threading

from .simulator import CredlySimulator

# Plainly example data, the same at every start, so that a kept database still fits.
ORGANIZATION_ID = "e0a3a1f0-0000-4000-8000-{:012}"
CLIENT_ID = "example-client-id-for-the-simulator-{:08}"
CLIENT_SECRET = "example-client-secret-for-the-simulator-{:03}"
TEMPLATE_ID = "e0a3a1f0-0000-4000-9{:03}-{:012}"
MOST = 999

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

HELLO = """
A local Credly answers until Ctrl-C. Set in every process of your application, or with
FLASK_ in front in its environment, where app.config.from_prefixed_env() reads that:

  CREDLY_API_URL={server.api_url}
  CREDLY_TOKEN_URL={server.token_url}

Then connect at /integrations/credly with
"""

ACCOUNT = """
  Organization ID  {0.organization_id}
  Client ID        {0.client_id}
  Client Secret    {0.client_secret}
"""


def main() -> None:
    """Serve it, and say what to do with it."""
    parser = argparse.ArgumentParser("python -m flask_credly.testing")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument(
        "--organizations", type=int, default=1, metavar="N", help="default: 1"
    )
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="give badge templates addresses of pictures at images.credly.com, where"
        " there are none",
    )
    given = parser.parse_args()

    if not 1 <= given.organizations <= MOST:
        parser.error(f"--organizations must be from 1 to {MOST}")

    simulator = _make(given.organizations, given.pictures)

    try:
        server = simulator.serve(port=given.port)
    except (OSError, OverflowError):
        parser.error(
            f"port {given.port} cannot be used. Another program may be using it"
        )

    with server, contextlib.suppress(KeyboardInterrupt):
        accounts = map(ACCOUNT.format, simulator.organizations)
        print(HELLO.format(server=server), *accounts, sep="", flush=True)
        threading.Event().wait()


def _make(organizations: int, pictures: bool) -> CredlySimulator:
    simulator = CredlySimulator(*_account(1))

    for number in range(2, organizations + 1):
        id_, client_id, client_secret = _account(number)
        simulator.add_organization(
            id_, client_id=client_id, client_secret=client_secret
        )

    for place, organization in enumerate(simulator.organizations):
        for number, name in enumerate(TEMPLATES, 1):
            id_ = TEMPLATE_ID.format(place, number)
            organization.add_template(name, id=id_, image=pictures)

    return simulator


def _account(number: int) -> tuple[str, str, str]:
    return (
        ORGANIZATION_ID.format(number),
        CLIENT_ID.format(number),
        CLIENT_SECRET.format(number),
    )


if __name__ == "__main__":
    main()
