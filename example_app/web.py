"""Serves the example application. For the demo: a real site uses a real server."""

from __future__ import annotations

import sys

from werkzeug.serving import run_simple

from . import create_app
from .models import create_example_data

if __name__ == "__main__":
    app = create_app()

    with app.app_context():
        create_example_data()

    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
