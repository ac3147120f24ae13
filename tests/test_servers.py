"""A completion is recorded, and a worker notified, whatever serves the host."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from concurrent import futures

import pytest
import redis
import sqlalchemy as sa
from conftest import connect
from conftest import MakeHost
from conftest import missing
from flask_sqlalchemy import SQLAlchemy

from example_app.redis_server import free_port
from flask_credly import jobs
from flask_credly.testing import CredlySimulator

pytestmark = pytest.mark.slow

APP = """
import json
import os

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_credly import Course, course_completed, Credly, Member

db = SQLAlchemy()
done = sa.Table("done", db.metadata, sa.Column("name", sa.String(50)))
credly = Credly()
credly.courses(lambda: [Course(id="py-101", title="Python 101")])
credly.is_admin(lambda: True)
app = Flask(__name__)
app.config.update(json.loads(os.environ["SCHOOL"]))
db.init_app(app)
credly.init_app(app)

@app.get("/<name>")
def complete(name):
    member = Member(name, f"{name}@example.org", "Ada", "Example")
    db.session.execute(sa.insert(done).values(name=name))
    course_completed.send(app, member=member, course_id="py-101")
    db.session.commit()
    return "done"
"""

GUNICORN = "gunicorn --bind 127.0.0.1:{port} --workers 2 --no-control-socket app:app"
UWSGI = "uwsgi --http-socket 127.0.0.1:{port} --master --processes 2 --module app:app"

SERVERS = {
    "gunicorn": GUNICORN,
    "gunicorn preloaded": f"{GUNICORN} --preload",
    "gunicorn with threads": f"{GUNICORN} --worker-class gthread --threads 8",
    "gunicorn with gevent": f"{GUNICORN} --worker-class gevent",
    "uwsgi": f"{UWSGI} --die-on-term",
    "uwsgi with threads": f"{UWSGI} --die-on-term --threads 8",
    "uwsgi with lazy apps": f"{UWSGI} --die-on-term --lazy-apps --enable-threads",
}


def add_table(db: SQLAlchemy) -> None:
    sa.Table("done", db.metadata, sa.Column("name", sa.String(50)))


@contextlib.contextmanager
def serve(command: str, folder: pathlib.Path, config: object) -> cabc.Iterator[str]:
    """Serve the application, and end it as a deployment does."""
    (folder / "app.py").write_text(APP)
    port = free_port()
    name, *rest = command.format(port=port).split()
    program = pathlib.Path(sys.executable).parent / name

    if not program.exists():
        missing(name, "not installed")

    paths = [str(folder), *sys.path]

    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(program), *rest],
            cwd=folder,
            env={
                **os.environ,
                "SCHOOL": json.dumps(config),
                "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            },
            stdout=log,
            stderr=log,
        )

    try:
        yield f"http://127.0.0.1:{port}"

        if "--lazy-apps" in rest:
            # A worker of uWSGI that is told to end while it loads the application
            # never does.
            wait_until(lambda: (folder / "log").read_text().count(" ready in ") == 2)

        process.terminate()
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


def wait_until(seen: cabc.Callable[[], bool]) -> None:
    until = time.monotonic() + 60

    while not seen() and time.monotonic() < until:
        time.sleep(0.05)


def get(url: str) -> str:
    """Ask, until somebody answers."""
    until = time.monotonic() + 60

    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < until, "nobody answers"
            time.sleep(0.1)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_each_completion_is_recorded_and_issued(
    command: str,
    make_host: MakeHost,
    credly: CredlySimulator,
    database: str,
    redis_url: str,
    tmp_path: pathlib.Path,
) -> None:
    queue = f"credly-{uuid.uuid4().hex}"
    config = {
        "SECRET_KEY": "a key for tests",
        "SQLALCHEMY_DATABASE_URI": database,
        "CREDLY_REDIS_URL": redis_url,
        "CREDLY_QUEUE": queue,
    }
    host = make_host(
        setup=lambda app, db: add_table(db), **{**config, "CREDLY_CONCURRENCY": 8}
    )
    names = [f"m{number}" for number in range(40)]

    with host.app.app_context():
        connect(host, credly)

        with redis.Redis.from_url(redis_url) as client:
            client.delete(f"rq:queue:{queue}", f"flask-credly:rung:{queue}")

            with serve(command, tmp_path, config) as url:
                with futures.ThreadPoolExecutor(8) as pool:
                    answers = list(pool.map(get, [f"{url}/{name}" for name in names]))

                # The worker is called after the answer. A server that ends before has
                # called none, and a sweep finds what it has recorded.
                wait_until(lambda: client.llen(f"rq:queue:{queue}") > 0)

            assert answers == ["done"] * 40, (tmp_path / "log").read_text()
            assert client.llen(f"rq:queue:{queue}") == 1

        assert "Traceback" not in (tmp_path / "log").read_text()
        jobs.drain()
        assert sorted(row.member_id for row in host.rows()) == sorted(names)
        assert {row.state for row in host.rows()} == {"issued"}

    assert len(credly.badges) == 40
