"""Bad weather for real: processes, Redis and a database, killed and stopped at random,
and a Credly that fails in every way the simulator knows.

Run it with ``python -m tests.storm``; ``--help`` says what can be chosen. It is judged
by the simulator's book (:mod:`tests.support.invariants`), and the same storm is sent
over a plain RQ job (:mod:`.naive`) to compare with.

There are several communities, and one of them is always in trouble: its credentials
are refused, it is asked to wait, Credly hangs or is away, in turn. Each is judged by
itself, and the others have to be served meanwhile.

Who plays what: :mod:`.run` is the storm and the judge's clerk, :mod:`.processes` the
workers and web processes that die, :mod:`.servers` Redis and the databases,
:mod:`.weather` what Credly does, :mod:`.host` the application, :mod:`.child` its
workers' side, :mod:`.web` what drives it, :mod:`.judge` the verdict.
"""
