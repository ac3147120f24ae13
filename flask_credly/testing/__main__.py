"""``python -m flask_credly.testing``: a local Credly to try an application with."""

from __future__ import annotations

import argparse
import contextlib
import threading

from .simulator import CredlySimulator

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

HELLO = """
A local Credly answers until Ctrl-C. Set in every process of your application, or with
FLASK_ in front in its environment, where app.config.from_prefixed_env() reads that:

  CREDLY_API_URL={server.api_url}
  CREDLY_TOKEN_URL={server.token_url}

Then connect at /integrations/credly with

  Organization ID  {simulator.organization_id}
  Client ID        {simulator.client_id}
  Client Secret    {simulator.client_secret}
"""


def main() -> None:
    """Serve it, and say what to do with it."""
    parser = argparse.ArgumentParser("python -m flask_credly.testing")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    port = parser.parse_args().port
    simulator = CredlySimulator(ORGANIZATION_ID, CLIENT_ID, CLIENT_SECRET)

    for number, name in enumerate(TEMPLATES, 1):
        id_ = f"e0a3a1f0-0000-4000-9000-{number:012}"
        simulator.add_template(name, id=id_, image=False)

    try:
        server = simulator.serve(port=port)
    except (OSError, OverflowError):
        parser.error(f"port {port} cannot be used; another program may have it")

    with server, contextlib.suppress(KeyboardInterrupt):
        print(HELLO.format(server=server, simulator=simulator), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
