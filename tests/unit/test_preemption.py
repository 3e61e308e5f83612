"""The flag: set by each signal, by the time limit, once; what the time that is left allows."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from distill.preemption import SIGNALS, StopFlag, StoppedError, end_of_job


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    stop = StopFlag()
    stop.listen()
    assert not stop.is_set()
    stop.raise_if_set()
    os.kill(os.getpid(), number)
    assert stop.is_set() and stop.reason == number.name
    os.kill(os.getpid(), signal.SIGTERM)  # a second one does not interrupt, and changes nothing
    assert stop.reason == number.name
    with pytest.raises(StoppedError, match=number.name):
        stop.raise_if_set()


def test_a_job_that_never_looks_is_stopped_where_it_is() -> None:
    stop = StopFlag(at_once=True)
    stop.listen()
    with pytest.raises(StoppedError, match="SIGUSR1"):
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)  # while it leaves


def test_the_time_limit_sets_it_in_time() -> None:
    now = time.time()
    assert StopFlag(ends_at=now + 20).is_set() and StopFlag(ends_at=now + 20).reason is None
    far = StopFlag(ends_at=now + 10_000)
    assert not far.is_set()
    far.seconds_to_leave = 20_000  # saves turned out to be slow
    assert far.is_set() and far.reason == "the time limit is near"


def test_what_there_is_time_for() -> None:
    assert StopFlag().leaves_time_for(10**6), "nothing is known"
    stop = StopFlag(grace_seconds=3000)
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.leaves_time_for(1000) and not stop.leaves_time_for(3001)
    assert not StopFlag(ends_at=time.time() + 5).leaves_time_for(10)


def test_the_grace_period_counts_from_a_signal_only() -> None:
    stop = StopFlag(ends_at=time.time() + 6000, grace_seconds=10)
    stop.ask("the time limit is near")
    assert stop.leaves_time_for(2000)
    stop.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert not stop.leaves_time_for(2000)


def test_signals_that_were_blocked_at_the_start_count() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # other tests have left threads that block nothing
    stop = StopFlag()
    stop.listen()
    assert stop.is_set()


def test_the_end_of_the_job() -> None:
    assert end_of_job(None, {}) is None
    assert end_of_job(None, {"SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9
    before = time.time()
    end = end_of_job(2.0, {})
    assert end is not None and before + 120 <= end <= time.time() + 120
    assert end_of_job(2.0, {"SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9, "whichever comes first"
