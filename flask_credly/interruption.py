"""Tells what was thrown into our work from what went wrong in it.

A host ends what takes too long by an exception that comes up wherever the program is
at that moment. It is the host's, and has to reach it, whatever its class is.
"""

from __future__ import annotations

import sys
import types

import sqlalchemy as sa

_IN_THE_MIDDLE = {
    *sys.stdlib_module_names - {"__main__"},
    *("flask_credly", "flask", "werkzeug", "blinker", "flask_sqlalchemy", "sqlalchemy"),
    *("psycopg", "psycopg_binary", "psycopg_c", "psycopg2", "pg8000"),
    *("pymysql", "MySQLdb", "mysql", "mariadb"),
    # Its classes are used by no driver: what RQ throws is a time-out.
    "redis",
    *("gevent", "greenlet", "eventlet"),
}
"""Packages whose code may be at work while a completion is recorded."""


def find(error: BaseException) -> BaseException | None:
    """Get the exception that was thrown into our work, if this error is one or came of
    one: a driver makes its own of it, and after it a rollback may fail. To be called
    where the error is handled.

    Thrown in is everything but an :class:`Exception`, what a signal handler raises (as
    the time-outs of RQ and Celery), and a class that no code in the middle knows, if
    it came up in that code (as by ``PyThreadState_SetAsyncExc``).
    """
    known = set(_IN_THE_MIDDLE)
    seen: set[int] = set()
    each: BaseException | None = error

    while each is not None and id(each) not in seen:
        seen.add(id(each))

        if (origin := getattr(each, "orig", None)) is not None:
            known.add(_package(type(origin).__module__))

        if (
            not isinstance(each, Exception)
            or _is_of_a_signal(each)
            or _is_of_nobody(each, known)
        ):
            return each

        each = each.__cause__ or each.__context__

        # The host may handle one of its own while it sends.
        if each is not None and _is_handled_above(each):
            return None

    return None


def _is_handled_above(error: BaseException) -> bool:
    at = error.__traceback__
    frame: types.FrameType | None = sys._getframe(3)

    while at is not None and frame is not None:
        if frame is at.tb_frame:
            return True

        frame = frame.f_back

    return False


def _frames(error: BaseException) -> list[types.FrameType]:
    frames, at = [], error.__traceback__

    while at is not None:
        frames.append(at.tb_frame)
        at = at.tb_next

    return frames


def _is_of_a_signal(error: Exception) -> bool:
    # Only a handler is given the frame that it interrupts. Between the two there may
    # be some of compiled modules.
    above: set[int] = set()

    for frame in _frames(error):
        if above and any(id(each) in above for each in _arguments(frame)):
            return True

        above.add(id(frame))

    return False


def _arguments(frame: types.FrameType) -> list[object]:
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount]
    found = [frame.f_locals.get(name) for name in names]

    if code.co_flags & 0x04:  # *args
        rest = frame.f_locals.get(
            code.co_varnames[code.co_argcount + code.co_kwonlyargcount], ()
        )
        found += rest if isinstance(rest, tuple) else ()

    return found


def _is_of_nobody(error: Exception, known: set[str]) -> bool:
    if isinstance(error, sa.exc.SQLAlchemyError):
        return False

    frames = _frames(error)
    return (
        bool(frames)
        and _package(type(error).__module__) not in known
        and _package(frames[-1].f_globals.get("__name__")) in known
    )


def _package(name: object) -> str:
    return str(name).partition(".")[0]
