import time

import pytest
import torch

from distill.machine import CpuTime, busy_seconds, cpu_model, describe, is_busy


def test_busy_time_leaves_out_idle_and_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    stat = "cpu  100 200 300 99999 88888 10 20 70 5555 4444\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert busy_seconds(stat) == 7.0
    assert busy_seconds("cpu  100 200 300 99999 88888 10 20\n") == 6.3, "an old kernel has fewer fields"


def test_own_time_is_not_that_of_others() -> None:
    before = CpuTime(wall=0, machine=100, own=10)
    assert CpuTime(wall=10, machine=130, own=25).other_cores_since(before) == 1.5
    assert CpuTime(wall=10, machine=110, own=21).other_cores_since(before) == 0, "the clocks tick differently"
    now = CpuTime.now()
    assert now.machine > 0 and now.wall <= time.monotonic()


def test_a_machine_is_busy_if_threads_lack_a_core() -> None:
    assert is_busy(cores=2, threads=2, other_cores=1.0)
    assert not is_busy(cores=2, threads=2, other_cores=0.1), "the system's own noise"
    assert not is_busy(cores=64, threads=16, other_cores=40), "idle cores are left"
    assert is_busy(cores=64, threads=16, other_cores=50)


def test_the_name_of_the_cpu() -> None:
    assert cpu_model("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name : other\n") == "Some CPU @ 2 GHz"
    assert cpu_model("processor : 0\nBogoMIPS : 50\n") != "", "ARM has no such line"
    here = describe(torch.device("cpu"), "fp32", 0.5, 1.5, 0.0)
    assert here.device and here.cores >= 1 and here.threads == torch.get_num_threads() and not here.is_busy
