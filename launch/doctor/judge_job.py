"""The doctor's judgement on the end of a job: the signal before its time limit, and whether it comes back. Pure."""

from typing import Any

from launch.doctor.findings import Check, Expected, Seen, names, who
from launch.task import EARLY_SECONDS

SIGNAL = "USR2"
LATE_SECONDS = 5.0


def signal(seen: Seen, expected: Expected) -> Check:
    lead = expected.signal_lead_seconds
    if lead is None:
        return Check("signal", "not checked", "nothing ends a process here but you; --time-limit of `launch run` does")
    found = [answer for answer in seen.answers if "signal" in answer]
    if not found:
        return Check("signal", "not checked", "no process got so far")
    if without := [who(answer) for answer in found if answer["signal"] is None]:
        change = f"ask whether the cluster passes sbatch --signal={SIGNAL}@{lead} on to the steps of a job"
        return Check("signal", "FAILED", f"none before the time limit on {names(without)}", change)
    return _lead([answer["signal"] for answer in found], lead)


def _lead(signals: list[dict[str, Any]], lead: int) -> Check:
    came, seconds = {one["name"] for one in signals}, [one["seconds_before_end"] for one in signals]
    text = f"{names(came)} on {len(signals)} process(es), {min(seconds):.0f} s before the end (asked for: {lead} s)"
    if "SIGTERM" in came:
        change = (
            "only TERM came, as before a kill: the profile's signal_lead_seconds was not kept to. Where the job was "
            "preempted, ask for SlurmctldParameters=preempt_send_user_signal and a GraceTime; else whether "
            f"sbatch --signal={SIGNAL}@{lead} is passed on"
        )
        return Check("signal", "FAILED", text, change)
    if min(seconds) < lead - LATE_SECONDS:
        change = (
            f"raise signal_lead_seconds by {lead - min(seconds):.0f} or more: a save has less time than it counts on"
        )
        return Check("signal", "FAILED", text, change)
    if max(seconds) > lead + EARLY_SECONDS:
        return Check("signal", "not checked", f"{text}: the job was preempted before", "run the doctor again")
    return Check("signal", "ok", text)


def requeue(seen: Seen, expected: Expected) -> Check:
    if expected.signal_lead_seconds is None:
        return Check("requeue", "not checked", "there is none on this machine: the same command goes on")
    if seen.requeued:
        return Check("requeue", "ok", f"the job came back on {seen.requeued['host']}")
    if seen.is_requeued:
        return Check("requeue", "ok", "SLURM took the job back into its queue; it had not started again by then")
    if not seen.refusal:
        return Check("requeue", "not checked", "the job ended before it could ask for it")
    change = (
        "ask the cluster's administrators for JobRequeue=1, and that users may requeue their jobs. Without it "
        "`launch run` has to be called again after every stop"
    )
    return Check("requeue", "FAILED", f"SLURM refuses: {seen.refusal}", change)
