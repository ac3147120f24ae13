"""What can be wrong with Redis, each in a real one: the worker, the commands, the
doctor and the page name the cause and what mends it.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import html
import ipaddress
import json
import logging
import pathlib
import re
import shutil
import socketserver
import subprocess
import sys
import threading
import time
import typing as t

import pytest
import redis
import rq
from conftest import connect
from conftest import MakeHost
from conftest import missing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.exceptions import ConnectionError
from redis.exceptions import ResponseError
from rq.serializers import JSONSerializer

from example_app.redis_server import free_port
from example_app.redis_server import own_redis
from flask_credly.issuing import notifier
from flask_credly.issuing import periodic
from flask_credly.issuing import workers
from flask_credly.issuing.trouble import _KNOWN
from flask_credly.issuing.trouble import explain
from flask_credly.testing import CredlySimulator
from tests.support.farm import Farm
from tests.support.farm import wait_for
from tests.support.farm import WORKER

PAGES = pathlib.Path(__file__).parent.parent / "docs"
WINDOW = "/integrations/credly"


class Server(t.NamedTuple):
    """A Redis, whoever administers it, and a folder."""

    port: int
    admin: redis.Redis
    folder: pathlib.Path

    def url(self, user: str = "", *, scheme: str = "redis", path: str = "/0") -> str:
        return f"{scheme}://{user}127.0.0.1:{self.port}{path}"


Break = cabc.Callable[[Server], str]


def no_password(server: Server) -> str:
    server.admin.config_set("requirepass", "right-pass")
    return server.url()


def wrong_password(server: Server) -> str:
    server.admin.config_set("requirepass", "right-pass")
    return server.url(":wrong-pass@")


def wrong_user(server: Server) -> str:
    return server.url("nobody:wrong-pass@")


def acl(rule: str) -> Break:
    def give(server: Server) -> str:
        server.admin.execute_command(
            "ACL", "SETUSER", "school", "on", ">p-word", *rule.split()
        )
        return server.url("school:p-word@")

    return give


def replica(server: Server) -> str:
    server.admin.replicaof("127.0.0.1", 1)
    return server.url()


def full(server: Server) -> str:
    server.admin.config_set("maxmemory", 1)
    return server.url()


def without_replicas(server: Server) -> str:
    server.admin.config_set("min-replicas-to-write", 1)
    return server.url()


def no_such_database(server: Server) -> str:
    return server.url(path="/99")


def other_key(server: Server) -> str:
    server.admin.rpush("rq:workers:credly", "x")
    return server.url()


def plain_for_tls(server: Server) -> str:
    return server.url(scheme="rediss")


def no_such_host(server: Server) -> str:
    return "redis://redis.invalid:6379/0"


def nothing_there(server: Server) -> str:
    return "redis://127.0.0.1:1/0"


def no_socket(server: Server) -> str:
    return f"unix://{server.folder / 'redis.sock'}"


TROUBLES: dict[str, tuple[Break, str, str]] = {
    "no password": (no_password, "requires a password", "redis://USER:PASSWORD@"),
    "wrong password": (wrong_password, "rejected the user name", "CREDLY_REDIS_URL"),
    "wrong user": (wrong_user, "rejected the user name", "CREDLY_REDIS_URL"),
    "no key": (acl("+@all ~rq:*"), "lacks permissions", "ACL SETUSER"),
    "no key of RQ's": (
        acl("+@all ~flask-credly:*"),
        "lacks permissions",
        "ACL SETUSER",
    ),
    "no command": (acl("+get ~*"), "lacks permissions", "ACL SETUSER"),
    "read only": (acl("+@all %R~*"), "lacks permissions", "ACL SETUSER"),
    "replica": (replica, "replica", "to the primary"),
    "no memory": (full, "out of memory", "maxmemory"),
    "no replicas": (without_replicas, "too few replicas", "min-replicas-to-write"),
    "no database": (no_such_database, "with this number", "CREDLY_REDIS_URL"),
    "TLS to plain": (plain_for_tls, "not use TLS", "redis://"),
    "no host": (no_such_host, "host name", "CREDLY_REDIS_URL"),
    "refused": (nothing_there, "refused the connection", "correct the address"),
    "no socket": (no_socket, "file does not exist", "CREDLY_REDIS_URL"),
}


@pytest.fixture
def server(tmp_path: pathlib.Path) -> cabc.Iterator[Server]:
    port = free_port()

    with own_redis(port) as url, redis.Redis.from_url(url) as admin:
        admin.ping()
        yield Server(port, admin, tmp_path)


def everywhere(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    url: str,
) -> dict[str, str]:
    """What each that meets Redis says of it."""
    host = make_host(CREDLY_REDIS_URL=url, is_admin=lambda: True)
    runner = host.app.test_cli_runner()

    with host.app.app_context():
        host.state.web_queue.silent_until = time.monotonic() + 60
        connect(host, credly)
        host.state.web_queue.silent_until = 0
        caplog.clear()
        host.complete()
        host.wait_for_ring()
        log = caplog.text
        host.db.session.remove()

    found = {
        "log": log,
        "worker": runner.invoke(args=["credly", "worker", "--burst"]).output,
        "sweep": runner.invoke(args=["credly", "sweep"]).output,
        "doctor": runner.invoke(args=["credly", "doctor"]).output,
        "page": html.unescape(host.app.test_client().get(WINDOW).text),
    }

    for said in found.values():
        assert "Traceback" not in said
        assert "pass" not in re.sub("(?i)password|passed", "", said.split("<body")[-1])

    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLES)
def test_each_says_what_is_wrong_and_what_mends_it(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    server: Server,
    name: str,
) -> None:
    spoil, cause, mend = TROUBLES[name]
    found = everywhere(make_host, credly, caplog, spoil(server))
    lacking = [
        f"{who}: {said}"
        for who, said in found.items()
        if cause not in said or mend not in said
    ]
    assert lacking == []


@pytest.mark.parametrize("slots", [False, True])
def test_a_cluster_is_named(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    slots: bool,
) -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(own_redis(free_port(), "--cluster-enabled", "yes"))
        admin = stack.enter_context(redis.Redis.from_url(url))

        if slots:
            admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            wait_for(lambda: "cluster_state:ok" in cluster_info(admin))

        found = everywhere(make_host, credly, caplog, url)

    assert [who for who in found if "Redis is a cluster" not in found[who]] == []


def cluster_info(admin: redis.Redis) -> str:
    with redis.Redis(
        connection_pool=admin.connection_pool, single_connection_client=True
    ) as client:
        client.response_callbacks.pop("CLUSTER INFO", None)
        return str(client.execute_command("CLUSTER INFO"))


class TestTLS:
    @pytest.fixture
    def certificate(self, tmp_path: pathlib.Path) -> pathlib.Path:
        """A certificate for 127.0.0.1 that nobody has signed, with its key."""
        if not (shutil.which("redis-server") or shutil.which("valkey-server")):
            missing("redis", "the one in the environment speaks no TLS")

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
        now = dt.datetime.now(dt.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(key, hashes.SHA256())
        )
        path = tmp_path / "redis.pem"
        path.write_bytes(
            made.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("scheme", "query", "clients", "cause"),
        [
            ("rediss", "", "no", "certificate of Redis could not be verified"),
            ("redis", "", "no", "closed the connection"),
            ("rediss", "?ssl_ca_certs={}", "yes", "requires a client certificate"),
            ("rediss", "?ssl_ca_certs=/none.pem", "no", "file does not exist"),
        ],
    )
    def test_what_is_wrong_with_it_is_named(
        self,
        make_host: MakeHost,
        credly: CredlySimulator,
        caplog: pytest.LogCaptureFixture,
        certificate: pathlib.Path,
        scheme: str,
        query: str,
        clients: str,
        cause: str,
    ) -> None:
        port, path = free_port(), str(certificate)
        options = [
            *("--tls-port", str(port), "--tls-cert-file", path),
            *("--tls-key-file", path, "--tls-ca-cert-file", path),
            *("--tls-auth-clients", clients),
        ]

        with own_redis(free_port(), *options):
            url = f"{scheme}://127.0.0.1:{port}/0{query.format(path)}"
            found = everywhere(make_host, credly, caplog, url)

        assert [who for who, said in found.items() if cause not in said] == [], found


def test_what_is_no_redis_is_named(
    make_host: MakeHost, credly: CredlySimulator, caplog: pytest.LogCaptureFixture
) -> None:
    class Web(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"redis://127.0.0.1:{server.server_address[1]}/0"
        found = everywhere(make_host, credly, caplog, url)
        server.shutdown()

    assert [who for who, said in found.items() if "is not Redis" not in said] == []


TEXTS = {
    "MASTERDOWN Link with MASTER is down": "lost its primary",
    "MISCONF Redis is configured to save RDB snapshots": "to disk",
    "LOADING Redis is loading the dataset in memory": "loading its data",
    "max number of clients reached": "no free connections",
    "DENIED Redis is running in protected mode": "protected mode",
    "unknown command 'XREVRANGE', with args beginning with": "not support a command",
    "WRONGTYPE Operation against a key of the wrong kind": "the same keys",
    "MOVED 866 10.0.0.7:6379": "is a cluster",
    "ERR AUTH <password> called without any password configured": "has none",
    "something new": "Redis failed (ResponseError)",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_redis_answers_is_understood(make_host: MakeHost, text: str) -> None:
    settings = make_host().state.settings
    assert TEXTS[text] in str(explain(ResponseError(text), settings))


def test_nothing_of_what_redis_answers_is_repeated(make_host: MakeHost) -> None:
    settings = make_host().state.settings
    secret = "c4nary-key c4nary-password"

    for error in (ResponseError(secret), ConnectionError(secret), OSError(secret)):
        error.__cause__ = ValueError(f"NOPERM {secret}")
        assert "c4nary" not in str(explain(error, settings))
        assert "c4nary" not in repr(explain(error, settings))


@pytest.mark.parametrize("option", ["socket_timeout=soon", "no_such_option=1"])
def test_an_address_that_cannot_be_used_is_no_function(
    make_host: MakeHost, option: str
) -> None:
    host = make_host(CREDLY_REDIS_URL=f"redis://127.0.0.1:1/0?{option}")

    with host.app.app_context():
        assert workers.count(host.state) is None

    assert host.state.web_queue.trouble.what.startswith("CREDLY_REDIS_URL")


def test_each_has_a_text_and_the_first_that_is_found_counts() -> None:
    for pattern, cause, mend in _KNOWN:
        assert re.compile(pattern)
        assert cause.endswith(".") and mend


@pytest.fixture
def own(make_host: MakeHost, server: Server) -> cabc.Iterator[tuple[Farm, Server]]:
    """A farm with a Redis of its own."""
    credly = CredlySimulator()

    with credly.serve() as served:
        host = make_host(
            CREDLY_REDIS_URL=server.url(),
            CREDLY_API_URL=served.api_url,
            CREDLY_TOKEN_URL=served.token_url,
            CREDLY_ENCRYPTION_KEYS="MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=",
        )

        with host.app.app_context():
            connect(host, credly)
            farm = Farm(host, credly, server.folder)

            try:
                yield farm, server
            finally:
                farm.stop()


def give_url(farm: Farm, url: str) -> None:
    config = json.loads(farm.environment["HOST_CONFIG"])
    config["CREDLY_REDIS_URL"] = url
    farm.environment = {**farm.environment, "HOST_CONFIG": json.dumps(config)}


@contextlib.contextmanager
def a_worker(farm: Farm, said: pathlib.Path) -> cabc.Iterator[subprocess.Popen[bytes]]:
    """Run a worker, and end it.

    :param said: Where it writes what it says.
    """
    with said.open("w") as stderr:
        worker = subprocess.Popen(
            [sys.executable, "-m", *WORKER],
            env=farm.environment,
            cwd=farm.folder,
            stderr=stderr,
        )

    try:
        yield worker
    finally:
        worker.terminate()
        assert worker.wait(timeout=30) == 0


@pytest.mark.slow
def test_a_worker_says_once_what_is_in_the_way_and_goes_on_after_it(
    own: tuple[Farm, Server],
) -> None:
    farm, server = own
    said = server.folder / "said"

    with a_worker(farm, said) as worker:
        wait_for(lambda: server.admin.smembers("rq:workers"))
        server.admin.config_set("maxmemory", 1)
        wait_for(lambda: "out of memory" in said.read_text())
        farm.host.complete()
        time.sleep(5)
        assert said.read_text().count("Redis ") == 1, said.read_text()
        assert worker.poll() is None

        # Another trouble is said anew.
        server.admin.config_set("maxmemory", 0)
        server.admin.replicaof("127.0.0.1", 1)
        wait_for(lambda: "replica" in said.read_text())
        server.admin.replicaof("NO", "ONE")
        farm.wait_for_badges(1)


@pytest.mark.slow
def test_an_idle_worker_waits_longer_than_a_short_time_out(
    own: tuple[Farm, Server],
) -> None:
    """By default, redis-py's is as long as a worker waits for a job."""
    farm, server = own
    said = server.folder / "said"
    give_url(farm, server.url(path="/0?socket_timeout=0.2"))

    with a_worker(farm, said):
        wait_for(lambda: server.admin.smembers("rq:workers"))
        first = server.admin.smembers("rq:workers")
        time.sleep(3)
        assert server.admin.smembers("rq:workers") == first
        assert "Redis " not in said.read_text()


@pytest.mark.slow
def test_a_redis_that_comes_and_goes_is_said_once(own: tuple[Farm, Server]) -> None:
    """A trouble that the look before the next try does not find."""
    farm, server = own
    said = server.folder / "said"
    # Whatever a worker needs beside of what everything is tried out with.
    acl("+@all -sadd ~*")(server)
    give_url(farm, server.url("school:p-word@"))

    with a_worker(farm, said):
        wait_for(lambda: "lacks permissions" in said.read_text())
        time.sleep(5)
        assert said.read_text().count("lacks permissions") == 1
        acl("+@all ~*")(server)
        farm.host.complete()
        farm.wait_for_badges(1)


@pytest.mark.slow
def test_the_user_of_the_documentation_may_do_what_is_needed(
    own: tuple[Farm, Server],
) -> None:
    farm, server = own
    page = (PAGES / "recipes/servers.md").read_text()
    (line,) = re.findall(r"^ *(ACL SETUSER .+)$", page, re.M)
    server.admin.execute_command(*line.replace("PASSWORD", "p-word").split())
    server.admin.config_set("requirepass", "another")
    give_url(farm, server.url("school:p-word@"))

    farm.run("flask", "complete")
    farm.start(*WORKER)
    farm.wait_for_badges(1)
    found = json.loads(farm.run("flask", "credly", "doctor", "--json"))["checks"]
    assert [found[name]["status"] for name in ("redis", "workers", "jobs")] == [
        "ok"
    ] * 3
    wait_for(
        lambda: any(
            server.admin.hexists(key, f"credly_success:{periodic.DRAIN.function}")
            for key in server.admin.smembers("rq:workers")
        )
    )
    farm.run("flask", "credly", "sweep")
    farm.run(*WORKER, "--burst")

    # And nothing else.
    user = redis.Redis.from_url(server.url("school:p-word@"))

    for command in (
        ("SET", "of-the-host", "1"),
        ("GET", "of-the-host"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("EVAL", "return 1", "0"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.execute_command(*command)


class Evil(JSONSerializer):
    loads = staticmethod(lambda data: exec(data))  # noqa: S102


class Wide(JSONSerializer):
    @staticmethod
    def dumps(*args: t.Any, **kwargs: t.Any) -> bytes:
        return json.dumps(*args, default=str, **kwargs).encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("serializer", "good"),
    [
        ("json", True),
        (JSONSerializer, True),
        (JSONSerializer(), True),
        ("rq.serializers.JSONSerializer", True),
        (Wide, True),
        (Wide(), True),
        (None, False),
        ("pickle", False),
        ("rq.serializers.DefaultSerializer", False),
        (Evil, False),
        (Evil(), False),
    ],
)
def test_only_a_queue_of_json_is_taken(
    make_host: MakeHost,
    credly: CredlySimulator,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    serializer: t.Any,
    good: bool,
) -> None:
    client = redis.Redis.from_url(redis_url)
    queue = rq.Queue("badges", connection=client, serializer=serializer)
    line = 'Queue("badges", connection=…, serializer="json")'

    found = everywhere_with(make_host, credly, caplog, lambda app: queue)
    assert [line in said for said in found] == [not good] * len(found)


def everywhere_with(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    function: t.Any,
) -> list[str]:
    host = make_host(CREDLY_QUEUE=function)
    runner = host.app.test_cli_runner()

    with host.app.app_context():
        connect(host, credly)
        caplog.clear()
        notifier.notify(host.state, insist=True)
        host.state.web_queue.silent_until = 0
        notifier.notify(host.state, insist=True)
        log = caplog.text
        host.db.session.remove()

    return [
        log,
        runner.invoke(args=["credly", "worker", "--burst"]).output,
        runner.invoke(args=["credly", "sweep"]).output,
        runner.invoke(args=["credly", "doctor"]).output,
        html.unescape(host.app.test_client().get(WINDOW).text),
    ]


def test_a_connection_that_decodes_is_refused(
    make_host: MakeHost, redis_url: str
) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    host = make_host(
        CREDLY_QUEUE=lambda app: rq.Queue("x", connection=client, serializer="json")
    )
    done = host.app.test_cli_runner().invoke(args=["credly", "doctor"])

    assert "without decode_responses" in done.output


@pytest.mark.parametrize(
    ("option", "mend"),
    [
        ("decode_responses=True", "option decode_responses"),
        ("decode_responses=False", "option decode_responses"),
        ("ssl_cert_reqs=none", "Correct the options after the question mark"),
    ],
)
def test_an_option_of_the_address_that_cannot_be_is_named(
    make_host: MakeHost, redis_url: str, option: str, mend: str
) -> None:
    host = make_host(CREDLY_REDIS_URL=f"{redis_url}?{option}")
    run = host.app.test_cli_runner().invoke
    worker = run(args=["credly", "worker", "--burst"])
    doctor = run(args=["credly", "doctor"]).output

    assert mend in doctor
    assert worker.exit_code == 1
    assert mend in worker.output, worker.exception


def test_the_log_says_it_once_until_it_is_over(
    make_host: MakeHost, caplog: pytest.LogCaptureFixture, server: Server
) -> None:
    host = make_host(CREDLY_REDIS_URL=server.url())
    caplog.set_level(logging.WARNING)

    def ring() -> int:
        host.state.web_queue.silent_until = 0
        caplog.clear()
        notifier.notify(host.state, insist=True)
        return caplog.text.count("Redis cannot be reached")

    with host.app.app_context():
        assert ring() == 0
        server.admin.config_set("maxmemory", 1)
        assert [ring(), ring(), ring()] == [1, 0, 0]
        server.admin.config_set("maxmemory", 0)
        assert ring() == 0
        server.admin.config_set("maxmemory", 1)
        assert ring() == 1
