"""What the doctor's answers mean: for each check ok, FAILED or not checked, what was seen, what to change. Pure."""

from collections import Counter
from collections.abc import Callable

from launch.doctor import judge_job, judge_needs
from launch.doctor.findings import Check, Expected, Seen, names, who


def judge(seen: Seen, expected: Expected) -> list[Check]:
    checks: dict[str, tuple[str, Callable[[Seen, Expected], Check]]] = {
        "versions": ("versions", _versions),
        "GPUs": ("device", _gpus),
        "bf16": ("device", _bf16),
        "all-reduce": ("all_reduce", _all_reduce),
        "shared disk": ("disk", _disk),
        "room": ("free_gb", judge_needs.room),
        "models": ("models", judge_needs.models),
        "corpus": ("files", judge_needs.corpus),
        "memory": ("memory_gb", judge_needs.memory),
        "signal": ("signal", judge_job.signal),
        "requeue": ("", judge_job.requeue),
    }
    judged = [_processes(seen, expected)]
    for name, (key, check) in checks.items():
        judged.append(_broken(name, key, seen) or check(seen, expected))
    return judged


def _processes(seen: Seen, expected: Expected) -> Check:
    hosts = {answer["host"] for answer in seen.answers}
    count = len([answer for answer in seen.answers if answer["is_whole"]])
    text = f"{count} of {expected.processes} finished, on {names(hosts)}" if hosts else "none has started"
    if count == expected.processes:
        return Check("processes", "ok", text)
    stuck = [
        f"{who(answer)} stopped at {answer['at'].replace('_', '-')}"
        for answer in seen.answers
        if not answer["is_whole"]
    ]
    text += "".join(f"; {one}" for one in stuck[:4]) + (f"; {seen.end}" if seen.end else "")
    change = (
        "mend what failed below; else read the log below"
        if hosts
        else f"is there room in the partition, and do setup and environment of {expected.given_by} give a Python with these "
        "packages? The log may say more"
    )
    return Check("processes", "FAILED", text, change)


def _broken(name: str, key: str, seen: Seen) -> Check | None:
    """A check that nobody got to, or that broke off."""
    if not key:
        return None
    errors = [f"{who(answer)}: {answer['errors'][key]}" for answer in seen.answers if key in answer["errors"]]
    if errors:
        return Check(name, "FAILED", "; ".join(errors[:2]), CHANGES.get(key, "mend what the message names"))
    if key != "signal" and not any(key in answer for answer in seen.answers):
        return Check(name, "not checked", "no process got so far")
    return None


CHANGES = {
    "all_reduce": "let the nodes reach each other: allow traffic between them, name the network in the profile's environment "
    "(NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME), and see NCCL_DEBUG: INFO in the log",
    "disk": "choose another --runs: a disk that all nodes see and that this user may write to",
    "device": "install a torch that is built for these GPUs and this driver (nvidia-smi shows the driver's CUDA version)",
}


def _versions(seen: Seen, expected: Expected) -> Check:
    wrong = {
        f"{package} {found} on {answer['host']}, {expected.versions.get(package)} here"
        for answer in seen.answers
        for package, found in answer.get("versions", {}).items()
        if found != expected.versions.get(package) or found == "missing"
    }
    if not wrong:
        shown = [f"{package} {expected.versions[package]}" for package in list(expected.versions)[:4]]
        return Check("versions", "ok", f"{', '.join(shown)}, ... the same everywhere")
    change = (
        "use one environment for all: the same virtual environment on the shared disk (setup of "
        f"{expected.given_by}), installed from requirements.lock"
    )
    return Check("versions", "FAILED", "; ".join(sorted(wrong)), change)


def _gpus(seen: Seen, expected: Expected) -> Check:
    nodes = {answer["host"]: answer["device"]["gpus"] for answer in seen.answers if "device" in answer}
    kinds = Counter(f"{gpu['name']} ({gpu['memory_gb']:.0f} GB)" for gpus in nodes.values() for gpu in gpus)
    text = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "none"
    wrong = {host: len(gpus) for host, gpus in nodes.items() if len(gpus) != expected.gpus_per_node}
    if not wrong:
        asked = f"{expected.gpus_per_node} asked for on each of {len(nodes)} node(s)"
        return Check("GPUs", "ok", f"{text}; {asked}" if expected.gpus_per_node else "none, and none asked for")
    counts = ", ".join(f"{count} on {host}" for host, count in sorted(wrong.items()))
    change = (
        f"gpus_per_node of {expected.given_by} must be what a node gives; where torch sees none, install a build "
        "with CUDA for this driver, and leave CUDA_VISIBLE_DEVICES to SLURM"
    )
    return Check("GPUs", "FAILED", f"{counts}, expected {expected.gpus_per_node}; in all: {text}", change)


def _bf16(seen: Seen, expected: Expected) -> Check:
    without = {answer["host"] for answer in seen.answers if "device" in answer and not answer["device"]["has_bf16"]}
    if not without:
        return Check("bf16", "ok", "computes in bf16 on every process")
    text = f"not on {names(without)}"
    if not expected.needs.wants_bf16:
        return Check("bf16", "ok", f"{text}; not asked for")
    return Check("bf16", "FAILED", f"{text}, but the recipe asks for it", "set precision: fp32, or ask for newer GPUs")


def _all_reduce(seen: Seen, expected: Expected) -> Check:
    found = [answer["all_reduce"] for answer in seen.answers if answer.get("all_reduce")]
    if not found:
        return Check("all-reduce", "not checked", "no process got so far")
    slowest = min(one["gb_per_second"] for one in found)
    sizes = {one["processes"] for one in found}
    text = f"{found[0]['backend']} over {names(sizes)} process(es), 64 MB at {slowest:.2f} GB/s"
    if sizes != {expected.processes}:
        change = "start one process for every rank: srun and the profile must agree on nodes and processes"
        return Check("all-reduce", "FAILED", f"{text}, expected {expected.processes}", change)
    if not all(one["is_right"] for one in found):
        change = f"a sum must be right: {CHANGES['all_reduce']}; update the driver and NCCL"
        return Check("all-reduce", "FAILED", f"{text}, but the sum is wrong", change)
    return Check("all-reduce", "ok", text)


def _disk(seen: Seen, expected: Expected) -> Check:
    change = (
        f"choose another --runs than {expected.runs}: one disk that all nodes see, on which a rename is atomic (Lustre, "
        "GPFS, NFS; no folder of a node's own, no object store)"
    )
    found = [answer for answer in seen.answers if "disk" in answer]
    if blind := {answer["host"] for answer in found if not answer["disk"]["sees"]}:
        return Check("shared disk", "FAILED", f"{names(blind)} did not see what another process wrote", change)
    if late := {answer["host"] for answer in found if answer["disk"]["lag_seconds"] is None}:
        return Check("shared disk", "FAILED", f"{names(late)} kept seeing an old state of a file", change)
    counts = {key: sum(answer["disk"].get(key, 0) for answer in found) for key in ("reads", "torn", "missing", "stale")}
    lag = max(answer["disk"]["lag_seconds"] for answer in found)
    turns = found[0]["disk"]["turns"]
    text = f"{turns} renames, read {counts['reads']} times by others, last one seen after {lag:.1f} s"
    if counts["torn"] or counts["missing"]:
        return Check("shared disk", "FAILED", f"{text}; {counts['torn']} torn, {counts['missing']} missing", change)
    if not counts["reads"]:
        return Check("shared disk", "not checked", "one process has nobody to share with")
    return Check("shared disk", "ok", text + (f"; {counts['stale']} stale handles" if counts["stale"] else ""))
