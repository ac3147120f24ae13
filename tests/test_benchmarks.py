"""That the benchmark is put together. It is run by ``make bench``."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main


def test_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    assert names == [
        "completion-sqlite",
        "completion-postgresql",
        "redis-hangs",
        "backfill",
        "issue",
        "latency-50",
        "latency-200",
        "waiting-limit-4",
        "waiting-limit",
        "waiting",
        "fresh",
        "workers",
        "rate-limit",
        "rate-limit-4",
        "redis-commands",
        "worker-memory",
        "claim-sqlite",
        "claim-postgresql",
        "communities-sqlite",
        "communities-postgresql",
        "remove-sqlite",
        "remove-postgresql",
        "sync",
        "pages-sqlite",
        "pages-postgresql",
        "busy-sqlite",
        "busy-postgresql",
        "mapping-page",
        "reconcile",
        "start",
    ]
