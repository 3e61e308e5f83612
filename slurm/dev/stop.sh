#!/usr/bin/env bash
# stop.sh [--wipe]: end the cluster in DEV_CLUSTER_DIR and its jobs, and nothing else. Logs stay, --wipe removes them too.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ -e "$DEV_CLUSTER_DIR/dev-cluster" ] || { echo "no cluster in $DEV_CLUSTER_DIR"; exit 0; }

# Processes of jobs and of nodes. A shell that has read env.sh has SLURM_CONF too: that alone is not enough.
# slurmstepd writes its name over its environment; it has its node's log open.
is_ours() { # PID
  if [ "$(cat "/proc/$1/comm")" = slurmstepd ]; then
    [ -n "$(find "/proc/$1/fd" -lname "$LOG/*" -print -quit)" ]
  else
    grep -qzxF "SLURM_CONF=$SLURM_CONF" "/proc/$1/environ" && grep -qzE '^(SLURM_JOB_ID|DEV_CLUSTER_NODE)=' "/proc/$1/environ"
  fi
}
left_over() {
  local folder
  for folder in /proc/[0-9]*; do
    if is_ours "${folder#/proc/}"; then echo "${folder#/proc/}"; fi
  done 2> /dev/null
}
end_left_over() {
  local pids
  mapfile -t pids < <(left_over)
  [ ${#pids[@]} = 0 ] && return
  kill -KILL "${pids[@]}" 2> /dev/null
  return 1
}

end slurmctld TERM # first: no job is requeued while its nodes die
for node in $(nodes); do stop_node "$node"; done
# In namespaces nothing is left; without, jobs survive slurmd.
wait_for 60 end_left_over || die "processes do not end: $(left_over | tr '\n' ' ')"
end munged TERM
if [ "$DEV_CLUSTER_ISOLATION" = net ]; then ip link delete "$(bridge)" 2> /dev/null; fi
if grep -qF "$HOSTS_MARK" /etc/hosts && [ -w /etc/hosts ]; then
  hosts=$(grep -vF "$HOSTS_MARK" /etc/hosts)
  printf '%s\n' "$hosts" > /etc/hosts # in place: in a container it is a mount
fi
rm -rf "$ETC" "$RUN" "$STATE" "${DEV_CLUSTER_DIR:?}/dev" "$DEV_CLUSTER_DIR/env.sh"
if [ "${1:-}" = --wipe ]; then rm -rf "$DEV_CLUSTER_DIR"; fi
