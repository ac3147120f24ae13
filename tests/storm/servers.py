"""A Redis of our own that can be killed, and databases that can be stopped."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import functools
import glob
import os
import pathlib
import shutil
import sqlite3
import subprocess
import tempfile
import time
import typing as t
import uuid
import zlib

import redis
import sqlalchemy as sa

from example_app import redis_server

_SERVERS = {
    "postgresql": (
        "CREDLY_TEST_POSTGRESQL",
        "postgresql+psycopg://postgres@127.0.0.1/test",
    ),
    "mariadb": ("CREDLY_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1/test"),
}

LOCKED = 6.5
"""Seconds for which an SQLite database is locked: longer than anybody waits for it."""


class NotFound(RuntimeError):
    """What is needed is not on this machine.

    :param what: The name that ``CREDLY_TEST_REQUIRE`` has for it.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {reason}")
        self.what = what
        self.reason = reason


class Redis:
    """A Redis that keeps nothing on disk and comes back on the same port."""

    def __init__(self, folder: pathlib.Path) -> None:
        try:
            program = redis_server._program()
        except redis_server.NoRedis as e:
            raise NotFound("redis", str(e)) from None

        port = redis_server.free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self._command = [
            *(program, "--bind", "127.0.0.1", "--port", str(port)),
            *("--save", "", "--appendonly", "no", "--dir", str(folder)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        redis_server._wait_for(self.url, self._process)

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def flush(self) -> None:
        """Forget everything."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    def read_all(self) -> bytes:
        """Read every key and value, unpacked."""
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            return b"\n".join(
                part for key in client.scan_iter() for part in _read_key(client, key)
            )


def _read_key(client: redis.Redis, key: bytes) -> cabc.Iterator[bytes]:
    yield key
    kind = t.cast(bytes, client.type(key)).decode()
    readers: dict[str, cabc.Callable[[], t.Any]] = {
        "string": lambda: [client.get(key)],
        "hash": lambda: sum(client.hgetall(key).items(), ()),
        "list": lambda: client.lrange(key, 0, -1),
        "set": lambda: client.smembers(key),
        "zset": lambda: client.zrange(key, 0, -1),
        "stream": lambda: [repr(client.xrange(key)).encode()],
    }

    # It may be gone, or another kind of value, by now.
    with contextlib.suppress(redis.ResponseError, KeyError):
        for value in readers[kind]():
            yield value or b""

            # RQ packs a job's data and a failure's traceback.
            with contextlib.suppress(zlib.error, TypeError):
                yield zlib.decompress(value)


class Database(t.Protocol):
    """A database for one run."""

    kind: str
    url: str

    def stop(self) -> None:
        """Stop it for a while. Returns when it can be used again."""

    def read_raw(self) -> bytes:
        """Read what it has stored of ours."""


class SQLite:
    """A file. It cannot be stopped: somebody else holds its lock for a while."""

    kind = "sqlite"

    def __init__(self, folder: pathlib.Path) -> None:
        self._path = folder / "host.db"
        self.url = f"sqlite:///{self._path}"

    def stop(self) -> None:
        other = sqlite3.connect(self._path, isolation_level=None, timeout=30)

        with contextlib.closing(other):
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(LOCKED)
            other.execute("COMMIT")

    def read_raw(self) -> bytes:
        files = sorted(self._path.parent.glob(f"{self._path.name}*"))
        return b"\n".join(file.read_bytes() for file in files)


class _OnServer:
    """A database on a server that others use as well: what uses it is thrown out."""

    kind: str

    def __init__(self, server: str) -> None:
        self._server = server
        self.name = f"credly_storm_{uuid.uuid4().hex[:12]}"
        url = sa.make_url(server).set(database=self.name)
        self.url = url.render_as_string(hide_password=False)

    def create(self) -> None:
        try:
            self._run(f"CREATE DATABASE {self.name}")
        except sa.exc.OperationalError as e:
            reason = f"not reached ({type(e.orig).__name__})"
            raise NotFound(self.kind, reason) from None

    def drop(self) -> None:
        self._run(f"DROP DATABASE {self.name}")

    def read_raw(self) -> bytes:
        engine = sa.create_engine(self.url)

        try:
            with engine.connect() as connection:
                tables = sa.inspect(connection).get_table_names()
                return "\n".join(
                    str(row)
                    for table in tables
                    for row in connection.execute(sa.text(f"SELECT * FROM {table}"))
                ).encode()
        finally:
            engine.dispose()

    def _run(self, statement: str) -> list[sa.Row[t.Any]]:
        engine = sa.create_engine(self._server, isolation_level="AUTOCOMMIT")

        try:
            with engine.connect() as connection:
                result = connection.execute(sa.text(statement))
                return list(result) if result.returns_rows else []
        finally:
            engine.dispose()


class PostgreSQL(_OnServer):
    """Its backends are terminated."""

    kind = "postgresql"

    def drop(self) -> None:
        self._run(f"DROP DATABASE {self.name} WITH (FORCE)")

    def stop(self) -> None:
        self._run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = '{self.name}'"
        )


class MariaDB(_OnServer):
    """Its connections are killed."""

    kind = "mariadb"

    def stop(self) -> None:
        for (number,) in self._run(
            f"SELECT id FROM information_schema.processlist WHERE db = '{self.name}'"
        ):
            # It may have gone by itself.
            with contextlib.suppress(sa.exc.OperationalError):
                self._run(f"KILL {number}")


class PrivatePostgreSQL(PostgreSQL):
    """A database on a server of its own: the server is stopped, as by a power cut."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._data = folder / "postgresql"
        self._port = redis_server.free_port()
        super().__init__(
            f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/postgres"
        )

    def create(self) -> None:
        self._data.mkdir()

        if os.getuid() == 0:  # which PostgreSQL does not run as
            shutil.chown(self._data, "postgres")
            # The folders above were made for one user only.
            self._data.parent.chmod(0o755)

        self._call("initdb", "--auth=trust", "--username=postgres", "--no-sync")
        self.start()
        super().create()

    def drop(self) -> None:
        self.cut()

    def stop(self) -> None:
        self.cut()
        time.sleep(2)
        self.start()

    def cut(self) -> None:
        """Stop the server, as by a power cut."""
        self._call("pg_ctl", "stop", "--mode=immediate")

    def start(self) -> None:
        """Start it again."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1"
        options += " -c unix_socket_directories="
        self._call("pg_ctl", "start", "--wait", f"--options={options}")

    def _call(self, program: str, *options: str) -> None:
        subprocess.run(
            [_find_program(program), f"--pgdata={self._data}", *options],
            user="postgres" if os.getuid() == 0 else None,
            cwd="/",
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )


@functools.cache
def _find_program(name: str) -> str:
    # Debian keeps them off the PATH.
    found = [
        shutil.which(name),
        *sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}")),
    ]

    if not (paths := [path for path in found if path]):
        raise NotFound("postgresql", f"no {name} on this machine")

    return paths[-1]


@contextlib.contextmanager
def open_database(
    name: str, folder: pathlib.Path, *, private: bool = False
) -> cabc.Iterator[Database]:
    """Give an empty database.

    :param name: ``"sqlite"``, ``"postgresql"``, ``"mariadb"``, or the address of a
        server of the last two.
    :param private: Start a PostgreSQL of its own for it, which can be stopped.
    """
    if name == "sqlite":
        yield SQLite(folder)
        return

    server = os.environ.get(*_SERVERS[name]) if name in _SERVERS else name
    database: PostgreSQL | MariaDB

    if sa.make_url(server).get_backend_name() != "postgresql":
        database = MariaDB(server)
    elif private:
        database = PrivatePostgreSQL(folder)
    else:
        database = PostgreSQL(server)

    database.create()

    try:
        yield database
    finally:
        database.drop()


def make_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for one run."""
    return tempfile.TemporaryDirectory(prefix="storm-", ignore_cleanup_errors=True)
