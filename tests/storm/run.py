"""One storm: everything is started, killed, stopped, flushed and revoked as the seed
says; then the weather clears, and what is left is judged.
"""

from __future__ import annotations

import base64
import collections
import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import json
import logging
import os
import pathlib
import random
import shutil
import threading
import time
import typing as t

import redis
import rq
import sqlalchemy as sa
from rq.registry import FailedJobRegistry
from rq.registry import StartedJobRegistry

from flask_credly import accounts
from flask_credly.errors import CredlyError
from flask_credly.issuing import notifier
from flask_credly.issuing import throttle
from flask_credly.ledger import actions
from flask_credly.ledger import clock
from flask_credly.models import Account
from flask_credly.models import Attempt
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.state import AppState
from flask_credly.testing import CredlySimulator
from flask_credly.testing import SimulatorServer
from flask_credly.testing.organization import Organization

from . import host as host_
from . import judge as judge_
from . import naive
from . import servers
from . import weather
from . import web
from .child import CONFIG
from .child import split_log
from .host import communities
from .host import Completed
from .host import COURSE
from .host import GONE
from .host import Half
from .host import Journal
from .host import make_host
from .host import read_journal
from .host import TROUBLED
from .judge import Evidence
from .judge import judge
from .judge import Verdict
from .processes import Family
from .processes import Kill
from .processes import KILLS
from .processes import ROOT

logger = logging.getLogger("tests.storm")

System = t.Literal["flask-credly", "naive-rq"]
Duplicates = t.Literal["refused", "allowed"]

TIMEOUT = 1.0
QUIET = 240.0
"""Seconds within which every row must be settled once the weather has cleared: what was
lost on its way to be revoked or replaced is looked at when its lease is over.
"""

ACT = 1.0
"""Mean seconds between two things that the admin does."""

PATIENCE = 60.0
"""Seconds within which a closed gate is seen to be closed, on a slow machine."""

TROUBLE = 5.0
"""Seconds for which all calls of the community in trouble hang or fail."""

LULL = 1.5
"""Seconds between two of its troubles."""

WORKERS = 2
WEBS = 2

WORKER_KILLS = (8, 16)
WEB_KILLS = (10, 20)
"""Between how many completions one is killed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run.

    :param database: See :func:`.servers.open_database`.
    :param completions: Of all communities together.
    :param tenants: How many communities there are. Of several, the last is always in
        trouble.
    :param without_trouble: The same for the others, without that one.
    :param pace: Mean seconds between two completions of a web process.
    """

    system: System = "flask-credly"
    database: str = "sqlite"
    duplicates: Duplicates = "refused"
    completions: int = 400
    seed: int = 1
    pace: float = 0.25
    tenants: int = 1
    without_trouble: bool = False
    stop_database: bool = False
    keep: pathlib.Path | None = None
    """Where to keep the logs, the journals and, of SQLite, the database."""


def run(options: Options) -> Verdict:
    """Run one storm and judge it.

    :raises servers.NotFound: If a server that it needs cannot be had.
    """
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(servers.make_folder()))
        database = stack.enter_context(
            servers.open_database(
                options.database, folder, private=options.stop_database
            )
        )
        redis_ = servers.Redis(folder)
        stack.callback(redis_.kill)
        redis_.start()
        storm = _Storm(options, folder, database, redis_)

        if options.keep is not None:
            stack.callback(shutil.copytree, folder, options.keep, dirs_exist_ok=True)

        stack.callback(storm.end)
        stack.enter_context(storm.context())
        return storm.run()


class _Storm:
    def __init__(
        self,
        options: Options,
        folder: pathlib.Path,
        database: servers.Database,
        redis_: servers.Redis,
    ) -> None:
        self._options = options
        self._ours = options.system == "flask-credly"
        self._folder = folder
        self._tenants = communities(options.tenants)
        self._several = options.tenants > 1
        self._troubled: str | None = self._tenants[-1]

        if options.without_trouble:
            self._tenants.remove(TROUBLED)
            self._troubled = None

        share = len(self._tenants) / options.tenants
        self._completions = int(options.completions * share)
        self._pace = options.pace / share
        self._database = database
        self._redis = redis_
        self._rng = random.Random(options.seed)
        self._rng_acts = random.Random(options.seed)
        self._simulator = CredlySimulator()
        self._organizations: dict[str, Organization] = {}

        for tenant in self._tenants:
            self._organizations[tenant] = (
                self._simulator.add_organization()
                if self._organizations
                else self._simulator
            )

        for organization in self._organizations.values():
            organization.posts_allowed = 10**6  # counted per row instead

        self._tapped = weather.Tapped(self._simulator)
        self._server = SimulatorServer(self._tapped, "127.0.0.1", 0)
        self._template_of = {
            (tenant, COURSE.id): organization.add_template(
                "Python Badge", allow_duplicate_badges=options.duplicates == "allowed"
            )
            for tenant, organization in self._organizations.items()
        }

        if self._troubled is not None:
            self._template_of[self._troubled, GONE.id] = self._organizations[
                self._troubled
            ].add_template("Gone Badge")

        self._gone: int | None = None
        self._config = self._make_config()
        self._host = make_host(self._config)
        self._journal = Journal(str(self._path("controller")))
        self._completed_by_us = 0
        self._done = collections.Counter[str]()
        self._done_to = {tenant: collections.Counter[str]() for tenant in self._tenants}
        self._notes: list[str] = []
        self._trouble: list[BaseException] = []
        self._database_away: list[tuple[float, float]] = []
        self._closed: list[tuple[float, float]] = []
        self._removed_at: dict[tuple[str, str], dt.datetime] = {}
        self._must_cancel: list[tuple[str, str]] = []
        self._in_redis: list[bytes] = []
        self._ordered = collections.Counter[int]()
        self._over = threading.Event()
        self._calm = threading.Event()
        self._enough_trouble = threading.Event()
        self._steady = threading.Lock()  # the database is there while it is held
        environment = {
            **os.environ,
            CONFIG: json.dumps(self._config),
            "FLASK_APP": "tests.storm.child:create_app",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        command = (
            ["-m", "flask", "credly", "worker"]
            if self._ours
            else ["-m", "tests.storm.naive"]
        )
        self._workers = [
            Family(f"worker-{number}", command, environment, folder)
            for number in range(WORKERS)
        ]
        self._webs = [
            Family(name, self._web_command(name), environment, folder)
            for name in self._web_names
        ]

    @property
    def _web_names(self) -> list[str]:
        return [f"web-{number}" for number in range(WEBS)]

    def _web_command(self, name: str) -> list[str]:
        quota = self._completions // WEBS
        return [
            *("-m", "tests.storm.web", self._options.system, str(self._path(name))),
            *(name, str(quota), str(self._pace)),
        ]

    def _path(self, name: str) -> pathlib.Path:
        return self._folder / f"{name}.journal"

    def _make_config(self) -> dict[str, t.Any]:
        key = base64.urlsafe_b64encode(self._rng.randbytes(32)).decode()
        return {
            "SECRET_KEY": "a key for the storm",
            "SQLALCHEMY_DATABASE_URI": self._database.url,
            "CREDLY_ENCRYPTION_KEYS": [key],
            "CREDLY_REDIS_URL": self._redis.url,
            "CREDLY_API_URL": self._server.api_url,
            "CREDLY_TOKEN_URL": self._server.token_url,
            "CREDLY_TIMEOUT": TIMEOUT,
            "CREDLY_RETRY_DELAY": 1,
            "CREDLY_CONCURRENCY": 4,
            "STORM_TENANTS": self._tenants,
            # Only the plain RQ job reads these.
            "STORM_CLIENT_ID": self._simulator.client_id,
            "STORM_CLIENT_SECRET": self._simulator.client_secret,
            "STORM_ORGANIZATION_ID": self._simulator.organization_id,
            "STORM_TEMPLATE_ID": self._template_of[self._tenants[0], COURSE.id],
        }

    # The course of it.

    def context(self) -> t.ContextManager[object]:
        """An application context, for this thread."""
        return self._host.app.app_context()

    def run(self) -> Verdict:
        """Start everything, let the storm pass, and judge."""
        started = time.monotonic()
        self._host.db.create_all()

        if self._ours:
            for tenant in self._tenants:
                self._connect(tenant)

            for (tenant, course_id), template_id in self._template_of.items():
                course = GONE if course_id == GONE.id else COURSE
                mapping = accounts.add_mapping(
                    self._host.state_of(tenant), course, template_id
                )

                if course is GONE:
                    self._gone = mapping.id

        self._host.db.session.remove()

        for number, tenant in enumerate(self._tenants):
            self._break_out(tenant, self._options.seed + 1000 * number)

        for family in [*self._workers, *self._webs]:
            family.start()

        director = threading.Thread(target=self._guard, args=(self._direct,))
        sampler = threading.Thread(target=self._guard, args=(self._sample,))
        threads = [director]

        if self._ours and self._several and self._troubled is not None:
            threads.append(
                threading.Thread(target=self._guard, args=(self._make_trouble,))
            )

        admin = threading.Thread(target=self._guard, args=(self._administer,))

        if self._ours:
            admin.start()

        for thread in (*threads, sampler):
            thread.start()

        try:
            self._rage(threads)
            self._calm.set()
            cleared = time.monotonic()
            self._clear_up()
            quiet = self._wait_until_quiet()
            to_quiet = time.monotonic() - cleared
        finally:
            self._over.set()

            for thread in (*threads, sampler, *([admin] if self._ours else [])):
                thread.join()

        if self._trouble:
            raise self._trouble[0]

        # An orphan may still be at it.
        time.sleep(TIMEOUT)
        self._end_processes()
        self._simulator.advance(60)  # what is late is in the book now
        seconds = time.monotonic() - started

        return judge(self._evidence(quiet, to_quiet, seconds))

    def _guard(self, work: cabc.Callable[[], None]) -> None:
        try:
            work()
        except BaseException as e:
            logger.exception("The storm itself failed.")
            self._trouble.append(e)

    def end(self) -> None:
        """Leave nothing behind."""
        self._over.set()
        self._end_processes()
        self._server.close()
        self._journal.close()

        with self.context():
            self._host.db.session.remove()

            for engine in self._host.db.engines.values():
                engine.dispose()

            state: AppState = self._host.app.extensions["credly"]

            if (queue := state.web_queue.queue) is not None:
                queue.connection.close()

    def _end_processes(self) -> None:
        for family in [*self._webs, *self._workers]:
            family.end()

    # Killing, in the main thread.

    def _rage(self, threads: list[threading.Thread]) -> None:
        """Kill and start again until every course is completed and every other fault
        has happened.

        By progress and not by time: on a slow machine there are as many kills.
        """
        worker_kills = self._worker_kills()
        next_web = self._rng.randint(*WEB_KILLS)
        next_worker, kill, victim = next(worker_kills)
        due_since: float | None = None

        while not self._trouble:
            working = [web for web in self._webs if web.exit_code != 0]

            if not working and not threads[0].is_alive():
                self._enough_trouble.set()

                if not any(thread.is_alive() for thread in threads):
                    return

            for family in [*self._workers, *working]:
                family.supervise(self._rng)

            tried = self._count_tried()

            if tried >= next_worker:
                due_since = due_since or time.monotonic()
                late = time.monotonic() - due_since > 2

                if self._kill_worker(kill, victim, late=late):
                    next_worker, kill, victim = next(worker_kills)
                    due_since = None

            if tried >= next_web and working:
                self._kill_web(self._rng.choice(working))
                next_web = tried + self._rng.randint(*WEB_KILLS)

            time.sleep(0.05)

    def _worker_kills(self) -> cabc.Iterator[tuple[int, Kill, Family]]:
        """After how many completions whom to kill."""
        at = 0

        while True:
            for kill in self._rng.sample(KILLS, len(KILLS)):
                at += self._rng.randint(*WORKER_KILLS)
                yield at, kill, self._rng.choice(self._workers)

    def _count_tried(self) -> int:
        return sum(
            path.read_bytes().count(b"attempted\t")
            for path in self._folder.glob("*.journal")
        )

    def _kill_worker(self, kill: Kill, victim: Family, *, late: bool) -> bool:
        """Kill while there is a horse, or, after a while, without one."""
        if victim.exit_code is not None:
            return False

        has_horse = bool(victim.horses())

        if not has_horse and not late:
            return False

        if has_horse or kill != "horse":
            victim.kill(kill)
            self._done[kill if has_horse else "parent"] += 1

        return True

    def _kill_web(self, web: Family) -> None:
        if web.exit_code is None:
            web.kill("parent")
            self._done["web"] += 1

    # Everything else that goes wrong, one after the other, in a thread.

    def _direct(self) -> None:
        acts = [self._revoke_tokens, self._stop_database, self._kill_redis]

        if not self._several:
            acts.append(self._revoke_client)

            if self._ours:
                acts.append(self._limit)

        random.Random(self._options.seed).shuffle(acts)
        shares = [0.1 + 0.75 * number / len(acts) for number in range(len(acts))]
        script = [
            *zip(shares, acts, strict=True),
            (0.4, self._flush),
            (0.9, self._flush),
        ]

        for share, act in sorted(script, key=lambda item: item[0]):
            self._wait_for_progress(share)

            if self._over.is_set():
                return

            with self.context():
                act()

    def _administer(self) -> None:
        """Revoke, correct and issue again what was issued, at random."""
        rng = random.Random(f"admin {self._options.seed}")

        while not self._calm.wait(rng.expovariate(1 / ACT)) and not self._over.is_set():
            with self.context(), self._steady:
                try:
                    self._act(rng)
                except sa.exc.OperationalError as e:
                    self._notes.append(f"The admin was refused: {type(e).__name__}")

                self._host.db.session.remove()

    def _act(self, rng: random.Random) -> None:
        tenant = rng.choice(self._tenants)
        engine = self._host.state_of(tenant).engine
        rows = self._host.db.session.scalars(
            sa.select(Issuance).where(
                Issuance.tenant == tenant,
                Issuance.course_id == COURSE.id,
                Issuance.state.in_(("issued", "revoked")),
                Issuance.action.is_(None),
            )
        ).all()

        if not rows:
            return

        row = rng.choice(rows)
        act = rng.choice(["revoke", "correct", "correct", "issue again"])
        why: dict[str, t.Any] = {"reason": "By mistake.", "tell": rng.random() < 0.5}
        done: object = None

        if act == "revoke":
            done = actions.revoke(engine, tenant, row.id, **why)
            self._ordered[row.id] += bool(done)
        elif act == "correct":
            done = actions.correct(
                engine,
                tenant,
                row.id,
                first_name=row.first_name,
                last_name=row.last_name,
                completed_at=row.completed_at - dt.timedelta(days=1),
                template_id=row.template_id,
            )
        else:
            in_force = actions.is_in_force(row)
            done = actions.issue_again(
                engine,
                tenant,
                row.id,
                email=row.email,
                first_name=row.first_name,
                last_name=row.last_name,
                **why,
            )
            self._ordered[row.id] += bool(done and in_force)

        if done:
            self._done_to[tenant][act] += 1
            notifier.notify(self._host.state_of(tenant))

    def _wait_for_progress(self, share: float) -> None:
        while not self._over.is_set():
            if self._count_tried() >= share * self._completions:
                return

            time.sleep(0.1)

    def _make_trouble(self) -> None:
        """Leave one community no peace: its trouble changes, and does not end."""
        troubles = [
            self._revoke_client,
            self._limit,
            lambda: self._fail_all(weather.HANGING),
            lambda: self._fail_all(weather.OUTAGE),
        ]
        rng = random.Random(f"trouble {self._options.seed}")
        rounds = 0

        while not self._enough_trouble.is_set() or not rounds:
            rng.shuffle(troubles)
            rounds += 1

            for trouble in troubles:
                if self._over.is_set() or (
                    self._enough_trouble.is_set() and rounds > 1
                ):
                    return

                with self.context():
                    trouble()

                self._done["troubles"] += 1
                self._over.wait(LULL)

    def _fail_all(self, fault: dict[str, t.Any]) -> None:
        weather.fail_all(self._in_trouble, fault)
        self._over.wait(TROUBLE)
        self._in_trouble.clear_faults()
        self._break_out(self._target, self._options.seed + self._done["troubles"])

    def _break_out(self, tenant: str, seed: int) -> None:
        weather.break_out(
            self._organizations[tenant],
            seed,
            lateness=weather.LATENESS[self._options.duplicates],
        )

    @property
    def _target(self) -> str:
        """The community that has trouble of its own."""
        assert self._troubled is not None
        return self._troubled

    @property
    def _in_trouble(self) -> Organization:
        return self._organizations[self._target]

    def _revoke_tokens(self) -> None:
        for organization in self._organizations.values():
            organization.revoke_tokens()

        self._done["token revocations"] += 1

    def _flush(self) -> None:
        self._redis.flush()
        self._done["flushes"] += 1

    def _kill_redis(self) -> None:
        self._redis.kill()
        time.sleep(1.5)
        self._redis.start()
        self._done["restarts"] += 1

    def _stop_database(self) -> None:
        with self._steady:
            began = time.time()
            self._database.stop()
            self._database_away.append((began, time.time()))
            # What was open is broken now.
            self._host.db.session.remove()
            self._host.db.engine.dispose()

        self._done["database stops"] += 1

    def _revoke_client(self) -> None:
        with self._steady:
            self._in_trouble.revoke_client()
            self._done["client revocations"] += 1

            if not self._ours:
                time.sleep(3)
                self._in_trouble.restore_client()
                return

            if self._poke_until(lambda found: found.expired):
                self._done_to[self._target]["expiries"] += 1
                self._keep_closed(time.time() + self._sent_within + 2)
            else:
                self._notes.append("The expiry was not noticed in time.")

            self._in_trouble.restore_client()
            self._connect(self._target)

    def _limit(self) -> None:
        """Ask for a long pause; in the first, remove a mapping."""
        with self._steady:
            if self._gone is not None:
                for _ in range(3):
                    self._complete(GONE.id)

            def paused(found: Account) -> bool:
                until = found.paused_until
                left = until and (until - self._now()).total_seconds()
                return bool(left and left > weather.SHORT_PAUSE + 2)

            for _ in range(4):
                # Who is told of the pause may be killed before it can note it.
                weather.pause_long(self._in_trouble)

                if seen := self._poke_until(paused, PATIENCE / 4):
                    break

            if not seen:
                self._notes.append("The long pause was not noticed in time.")
                return

            self._done["long pauses"] += 1

            if self._gone is not None:
                self._unmap(self._gone)
                self._gone = None

            until = self._read_connection().paused_until

            if until is not None and until > self._now():
                self._keep_closed(until.timestamp() - 0.1)

    def _unmap(self, mapping_id: int) -> None:
        """Remove a mapping while nothing is sent."""
        mine = [self._complete(GONE.id) for _ in range(4)]
        state = self._host.state_of(self._target)
        self._persist(lambda: accounts.remove_mapping(state, mapping_id))
        self._removed_at[self._target, GONE.id] = removed_at = self._now()
        until = self._read_connection().paused_until

        if until is not None and until > removed_at:
            # No worker can have begun these.
            self._must_cancel += [(self._target, member_id) for member_id in mine]

    def _keep_closed(self, until: float) -> None:
        """Note that the gate is closed until then, and wait. What was begun before may
        still go out for a while.
        """
        begin = time.time() + self._sent_within
        time.sleep(max(0, until - time.time()))

        if begin < until:
            self._closed.append((begin, until))

    @property
    def _sent_within(self) -> float:
        """Seconds within which a request goes out that was begun, and a second for a
        busy machine.
        """
        return throttle.LOOKAHEAD + 1

    def _poke_until(
        self, seen: cabc.Callable[[Account], bool], patience: float = PATIENCE
    ) -> bool:
        """Complete courses, so that there is something to send, until it is seen."""
        until = time.monotonic() + patience

        while time.monotonic() < until and not self._over.is_set():
            self._complete(COURSE.id)
            time.sleep(1 if self._several else 0.3)

            if seen(self._read_connection()):
                return True

        return False

    def _complete(self, course_id: str) -> str:
        self._completed_by_us += 1
        member_id = f"controller-{self._completed_by_us}"
        web.complete(
            self._host,
            self._journal,
            self._rng_acts,
            self._target,
            member_id,
            course_id,
        )
        return member_id

    def _connect(self, tenant: str) -> None:
        organization = self._organizations[tenant]

        def connect() -> None:
            self._done_to[tenant]["connects"] += 1
            accounts.connect(
                self._host.state_of(tenant),
                organization_id=organization.organization_id,
                client_id=organization.client_id,
                client_secret=organization.client_secret,
            )

        self._persist(connect)

    def _persist(self, act: cabc.Callable[[], object]) -> None:
        """Do it as an admin would: again, if it did not work."""
        for _ in range(20):
            try:
                act()
                return
            except (CredlyError, sa.exc.OperationalError) as e:
                self._notes.append(f"Tried again: {type(e).__name__}")
                self._host.db.session.rollback()
                time.sleep(0.5)

        raise RuntimeError("It did not work in twenty tries.")

    def _now(self) -> dt.datetime:
        with self._host.db.engine.connect() as connected:
            return clock.now(connected)

    def _read_connection(self) -> Account:
        session = self._host.db.session
        session.rollback()
        query = sa.select(Account).where(Account.tenant == self._target)
        return session.scalars(query).one()

    # Looking for what does not belong into Redis.

    def _sample(self) -> None:
        while not self._over.wait(1):
            with contextlib.suppress(redis.RedisError, OSError):
                self._in_redis.append(self._redis.read_all())

    # Clearing up.

    def _clear_up(self) -> None:
        for organization in self._organizations.values():
            organization.clear_faults()
            organization.restore_client()

    def _wait_until_quiet(self) -> bool:
        until = time.monotonic() + QUIET
        before: object = None
        since = time.monotonic()

        while time.monotonic() < until and not self._trouble:
            for worker in self._workers:
                worker.supervise(self._rng)

            if self._ours:
                if not self._count_waiting():
                    return True
            elif (now := self._look_at_naive()) != before:
                before, since = now, time.monotonic()
            elif not now[0] and time.monotonic() - since > 8:
                return True

            time.sleep(0.2)

        return False

    def _count_waiting(self) -> int:
        with self._host.db.engine.connect() as connected:
            return connected.execute(
                sa.select(sa.func.count()).where(Issuance.action.is_not(None))
            ).scalar_one()

    def _look_at_naive(self) -> tuple[int, int]:
        with contextlib.closing(redis.Redis.from_url(self._redis.url)) as client:
            return client.llen(f"rq:queue:{naive.QUEUE}"), len(self._simulator.badges)

    # Evidence.

    def _evidence(self, quiet: bool, to_quiet: float, seconds: float) -> Evidence:
        session = self._host.db.session
        session.rollback()
        journals = {
            name: read_journal(str(self._path(name)))
            for name in (*self._web_names, "controller")
        }
        logs = [
            place
            for family in [*self._workers, *self._webs]
            if family.log.exists()
            for place in split_log(family.log)
        ]
        completed = session.scalars(sa.select(Completed)).all()
        naive_rows = {each.member_id: each.status for each in completed}
        halves = collections.defaultdict(list)

        for name, half in session.execute(sa.select(Half.name, Half.half)):
            halves[name].append(half)

        failed, started = self._naive_jobs()
        return Evidence(
            ours=self._ours,
            journals=journals,
            organizations={
                tenant: judge_.Organization(
                    organization.organization_id,
                    organization.badges,
                    organization.received,
                    self._done_to[tenant],
                    self._closed if tenant == self._troubled else [],
                )
                for tenant, organization in self._organizations.items()
            },
            template_of=self._template_of,
            rows=list(session.scalars(sa.select(Issuance))),
            attempts=list(session.scalars(sa.select(Attempt))),
            log=list(session.scalars(sa.select(LogEntry))),
            problems=self._simulator.problems,
            done=self._done,
            notes=self._notes,
            database_away=self._database_away,
            removed_at=self._removed_at,
            must_cancel=self._must_cancel,
            ordered=self._ordered,
            canaries={
                "a member's address": host_.MAIL,
                "a member's first name": host_.FIRST_NAME,
                "a member's last name": host_.LAST_NAME,
            },
            secrets={
                **{
                    f"the client secret of {tenant}": organization.client_secret
                    for tenant, organization in self._organizations.items()
                },
                **{f"token {n}": token for n, token in enumerate(self._tapped.tokens)},
            },
            redis=self._in_redis,
            logs=logs,
            raw=self._database.read_raw(),
            halves=halves,
            completed={(each.tenant, each.member_id) for each in completed},
            naive_rows=naive_rows,
            naive_failed=failed,
            naive_started=started,
            quiet=quiet,
            to_quiet=to_quiet,
            seconds=seconds,
        )

    def _naive_jobs(self) -> tuple[set[str], set[str]]:
        """Members whose job RQ shows as failed, and those it thinks still run."""
        if self._ours:
            return set(), set()

        session = self._host.db.session

        def members(ids: list[str], queue: rq.Queue) -> set[str]:
            jobs = rq.job.Job.fetch_many(ids, connection=queue.connection)
            done = [session.get(Completed, job.args[0]) for job in jobs if job]
            return {each.member_id for each in done if each}

        queue = naive.make_queue(self._redis.url)

        with contextlib.closing(queue.connection):
            # With its clean-up, reading would bring back what RQ itself had not.
            return (
                members(
                    FailedJobRegistry(queue=queue).get_job_ids(cleanup=False), queue
                ),
                members(
                    StartedJobRegistry(queue=queue).get_job_ids(cleanup=False), queue
                ),
            )
