"""The machine a speed was measured on, and what else it did meanwhile. Linux only."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

IDLE_FIELDS = (3, 4)
"""Of the first line of /proc/stat: idle, and waiting for a disk."""
GUEST_FIELDS = 8
"""From here on the values are parts of the ones before."""
TOLERATED_CORES = 0.25


@dataclass(frozen=True)
class Machine:
    """What a measurement ran on, and the load while it ran."""

    device: str
    """The name of the GPU, or of the CPU's model."""
    precision: str
    threads: int
    cores: int
    load_before: float
    """The 1-minute load average when the benchmark began."""
    load_during: float
    """The highest 1-minute load average after a round; the benchmark is part of it."""
    other_cores: float
    """Cores that other processes kept busy during the rounds, on average."""
    is_busy: bool
    """Other processes left fewer idle cores than this one has threads."""


@dataclass(frozen=True)
class CpuTime:
    """A moment: how many CPU seconds the machine and this process had used by then."""

    wall: float
    machine: float
    own: float

    @staticmethod
    def now() -> "CpuTime":
        return CpuTime(time.monotonic(), busy_seconds(Path("/proc/stat").read_text("ascii")), time.process_time())

    def other_cores_since(self, before: "CpuTime") -> float:
        """Return how many cores other processes kept busy in between, on average."""
        others = (self.machine - before.machine) - (self.own - before.own)
        return max(0.0, others / (self.wall - before.wall))


def busy_seconds(stat: str) -> float:
    """Return the CPU seconds of all cores that were not idle, from the text of /proc/stat."""
    values = [int(value) for value in stat.splitlines()[0].split()[1:][:GUEST_FIELDS]]
    busy = sum(value for field, value in enumerate(values) if field not in IDLE_FIELDS)
    return busy / os.sysconf("SC_CLK_TCK")


def load_average() -> float:
    """Return the load of the last minute."""
    return os.getloadavg()[0]


def describe(
    device: torch.device, precision: str, load_before: float, load_during: float, other_cores: float
) -> Machine:
    """Return what there is to say of this machine and its load."""
    on_gpu = device.type == "cuda"
    cores = os.cpu_count() or 1
    threads = torch.get_num_threads()
    return Machine(
        device=torch.cuda.get_device_name(device) if on_gpu else cpu_model(Path("/proc/cpuinfo").read_text("utf-8")),
        precision=precision,
        threads=threads,
        cores=cores,
        load_before=load_before,
        load_during=load_during,
        other_cores=other_cores,
        is_busy=is_busy(cores, 1 if on_gpu else threads, other_cores),
    )


def is_busy(cores: int, threads: int, other_cores: float) -> bool:
    """Return True if other processes left fewer idle cores than `threads`, by more than the system's own noise."""
    return other_cores > cores - threads + TOLERATED_CORES


def cpu_model(cpuinfo: str) -> str:
    """Return the name of the CPU from the text of /proc/cpuinfo; that of the architecture if it has none, as on ARM."""
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
