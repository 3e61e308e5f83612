"""The doctor's judgement on what a recipe needs: room, models, corpus, memory. Pure."""

from collections import Counter, defaultdict

from launch.doctor.findings import Check, Expected, Seen, names


def room(seen: Seen, expected: Expected) -> Check:
    free, needed = min(answer["free_gb"] for answer in seen.answers if "free_gb" in answer), expected.needs.room_gb
    text = f"{free:.1f} GB free below {expected.runs}, about {needed:.1f} GB needed (a quota may leave less)"
    change = "make room, choose another --runs, or lower train.keep_checkpoints"
    return Check("room", "ok", text) if free >= needed else Check("room", "FAILED", text, change)


def models(seen: Seen, expected: Expected) -> Check:
    change = (
        "give the path of a folder that all nodes see; a hub name must be in the cache of the hub before: `hf download "
        "NAME` where there is a network, with HF_HOME on the shared disk and in the profile's environment"
    )
    return _reachable("models", "models", expected.needs.models, seen, change)


def corpus(seen: Seen, expected: Expected) -> Check:
    change = "give paths below a disk that all nodes see, readable for this user"
    return _reachable("corpus", "files", expected.needs.files, seen, change)


def _reachable(name: str, key: str, wanted: tuple[str, ...], seen: Seen, change: str) -> Check:
    if not wanted:
        return Check(name, "not checked", "none to look for")
    problems: dict[str, set[str]] = defaultdict(set)
    for answer in seen.answers:
        for one, problem in answer.get(key, {}).items():
            if problem:
                problems[f"{one}: {problem}"].add(answer["host"])
    if not problems:
        return Check(name, "ok", f"{len(wanted)} found without a network: {names(wanted)}")
    text = "; ".join(f"{problem} (on {names(hosts)})" for problem, hosts in problems.items())
    return Check(name, "FAILED", text, change)


def memory(seen: Seen, expected: Expected) -> Check:
    needs = expected.needs
    unknown = (
        f"; unknown, since their models are not on this machine: {', '.join(needs.unknown)}" if needs.unknown else ""
    )
    have = _memory_of_a_process(seen)
    if not needs.memory_gb:
        return Check("memory", "not checked", f"{have:.1f} GB for each process; nothing to compare{unknown}")
    name, most = max(needs.memory_gb.items(), key=lambda item: item[1])
    text = f"about {most:.1f} GB per process ({name}), {have:.1f} GB there{unknown}"
    change = (
        "lower train.micro_batch_tokens, raise train.zero_stage (and the teacher's, with offload: cpu), use bf16, "
        "train.gradient_checkpointing, train.offload: cpu, a cache "
        f"of the teacher, more nodes, or larger memory in {expected.given_by}"
    )
    return Check("memory", "ok", text) if most <= have else Check("memory", "FAILED", text, change)


def _memory_of_a_process(seen: Seen) -> float:
    """The smallest GPU's; on the CPU a process's share of its node."""
    here = Counter(answer["host"] for answer in seen.answers)
    shares = [answer["memory_gb"] / here[answer["host"]] for answer in seen.answers if "memory_gb" in answer]
    gpus = [gpu["memory_gb"] for answer in seen.answers for gpu in answer.get("device", {}).get("gpus", [])]
    return float(min(gpus or shares))
