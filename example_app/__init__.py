"""Gradual: a small course platform that issues Credly badges."""

from __future__ import annotations

import os

from flask import Flask

from .models import db


def create_app() -> Flask:
    """Make the application. Its configuration is the environment's, with the prefix
    ``EXAMPLE_``.
    """
    from .badges import make_credly
    from .pages import pages

    app = Flask(__name__)
    app.config.update(
        COMMUNITIES=1,
        CREDLY_LAYOUT="example/base.html",
        CREDLY_PLATFORM_NAME="Gradual",
        CREDLY_RETRY_DELAY=10,
        SECRET_KEY=os.environ["EXAMPLE_SECRET_KEY"],
        SQLALCHEMY_DATABASE_URI=os.environ["EXAMPLE_DATABASE"],
    )
    app.config.from_prefixed_env("EXAMPLE")
    db.init_app(app)
    make_credly(several=app.config["COMMUNITIES"] > 1).init_app(app)
    app.register_blueprint(pages)
    return app
