#!/usr/bin/env bash
# shellcheck disable=SC2015
# Start a SLURM of several nodes on this machine, in DEV_CLUSTER_DIR. Settings: lib.sh. A second call repairs what died.
#   slurm/dev/start.sh && . /tmp/distill-slurm-$UID/env.sh && sinfo
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Programs
missing=()
for program in slurmctld slurmd sbatch srun munged munge; do
  command -v $program > /dev/null || missing+=("$program")
done
[ ${#missing[@]} = 0 ] || die "no ${missing[*]} on this machine. On Debian: apt-get install --no-install-recommends slurm-wlm munge" 2
[ "$DEV_CLUSTER_ISOLATION" != net ] || command -v ip > /dev/null || die "no ip on this machine. On Debian: apt-get install iproute2" 2

# The directory: never one that holds something else, since stop.sh --wipe removes it
if [ -e "$DEV_CLUSTER_DIR" ] && ! [ -e "$DEV_CLUSTER_DIR/dev-cluster" ]; then
  rmdir "$DEV_CLUSTER_DIR" 2> /dev/null || die "$DEV_CLUSTER_DIR is there and is no cluster's: give another DEV_CLUSTER_DIR"
fi
mkdir -p "$DEV_CLUSTER_DIR"
[ -O "$DEV_CLUSTER_DIR" ] || die "$DEV_CLUSTER_DIR is not yours: give another DEV_CLUSTER_DIR"
touch "$DEV_CLUSTER_DIR/dev-cluster"
mkdir -p "$ETC" "$PIDS" "$LOG" "$STATE/controller" "$DEV_CLUSTER_DIR/dev"
exec 9> "$RUN/lock"
flock -w 60 9 || die "another start in $DEV_CLUSTER_DIR goes on since 60 s"
[ ${#DIFFERENT[@]} = 0 ] || die "the cluster in $DEV_CLUSTER_DIR runs with ${DIFFERENT[*]}: stop it first"

if [ "$DEV_CLUSTER_ISOLATION" = auto ]; then
  DEV_CLUSTER_ISOLATION=none
  "${UNSHARE[@]}" sh -c 'hostname n1 && mount --bind /etc/hosts /etc/hosts' 2> /dev/null && DEV_CLUSTER_ISOLATION=ns
fi
for setting in "${SETTINGS[@]}"; do
  name=DEV_CLUSTER_$setting
  echo "$name=${!name}"
done > "$ETC/settings"

# Names: a file that every node mounts as its /etc/hosts; without namespaces lines in the machine's own
{
  echo "127.0.0.1 localhost $(hostname)"
  for node in $(nodes); do echo "$(address "$node") $node"; done
} > "$ETC/hosts"
if [ "$DEV_CLUSTER_ISOLATION" = none ] && ! grep -qF "$HOSTS_MARK" /etc/hosts; then
  if [ -w /etc/hosts ]; then
    for node in $(nodes); do echo "127.0.0.1 $node $HOSTS_MARK"; done >> /etc/hosts
  elif ! getent hosts n1 > /dev/null; then
    echo "slurm/dev: n1 has no address on this machine and /etc/hosts is not yours: jobs that meet at a node's name will hang" >&2
  fi
fi

# slurm.conf, gres.conf
gres=
: > "$ETC/gres.conf"
if [ "$DEV_CLUSTER_GPUS" -gt 0 ]; then # slurmd wants character devices: links to one are enough
  for ((gpu = 0; gpu < DEV_CLUSTER_GPUS; gpu++)); do ln -sfn /dev/null "$DEV_CLUSTER_DIR/dev/gpu$gpu"; done
  gres=Gres=gpu:$DEV_CLUSTER_GPUS
  # With this flag only CUDA_VISIBLE_DEVICES is set, without it AMD's and Intel's variables too.
  echo "NodeName=n[1-$DEV_CLUSTER_NODES] Name=gpu File=$DEV_CLUSTER_DIR/dev/gpu[0-$((DEV_CLUSTER_GPUS - 1))] Flags=nvidia_gpu_env" > "$ETC/gres.conf"
fi
for node in $(nodes); do
  host=$node
  [ "$DEV_CLUSTER_ISOLATION" != none ] || host=$(hostname -s)
  echo "NodeName=$node NodeHostname=$host NodeAddr=$(address "$node") Port=$((DEV_CLUSTER_PORT + 10 + ${node#n}))" \
    "CPUs=$DEV_CLUSTER_CPUS CoresPerSocket=$DEV_CLUSTER_CPUS RealMemory=16000 $gres"
done > "$ETC/nodes"
signal=
[ "$DEV_CLUSTER_PREEMPT_SIGNAL" = no ] || signal=SlurmctldParameters=preempt_send_user_signal
sed -e "s|@DIR@|$DEV_CLUSTER_DIR|g; s|@HOST@|$(hostname -s)|; s|@CONTROLLER@|$(address controller)|; s|@PORT@|$((DEV_CLUSTER_PORT + 1))|" \
  -e "s|@USER@|$(id -un)|; s|@FIRST_JOB@|$DEV_CLUSTER_FIRST_JOB|; s|@GRACE@|$DEV_CLUSTER_GRACE|; s|@KILL_WAIT@|$DEV_CLUSTER_KILL_WAIT|; s|@NODE_TIMEOUT@|$DEV_CLUSTER_NODE_TIMEOUT|; s|@PREEMPT_SIGNAL@|$signal|" \
  -e "/@NODES@/{r $ETC/nodes" -e 'd}' "$HERE/slurm.conf.in" > "$SLURM_CONF"
echo "export SLURM_CONF=$SLURM_CONF" > "$DEV_CLUSTER_DIR/env.sh"

# Daemons: munged with a key and a socket of its own, the controller, the nodes
[ -s "$ETC/munge.key" ] || (umask 077 && head -c 128 /dev/urandom > "$ETC/munge.key")
dead munged || munge -n -S "$RUN/munge.sock" > /dev/null 2>&1 || end munged TERM
if dead munged; then
  daemon munged munged --foreground --force --key-file="$ETC/munge.key" --socket="$RUN/munge.sock" \
    --pid-file="$RUN/munged.pid" --seed-file="$RUN/munged.seed"
fi
wait_for 60 munge -n -S "$RUN/munge.sock" || die "munged does not answer: $LOG/munged.out"
if [ "$DEV_CLUSTER_ISOLATION" = net ] && ! ip link show "$(bridge)" > /dev/null 2>&1; then
  ip link add "$(bridge)" type bridge && ip address add "$(subnet).1/24" dev "$(bridge)" && ip link set "$(bridge)" up ||
    die "no bridge for isolation net: it needs root"
fi
dead slurmctld && daemon slurmctld slurmctld -D -i
up() { scontrol ping | grep -q 'is UP'; }
up_or_dead() { dead slurmctld || up; }
wait_for 120 up_or_dead
up || die "slurmctld does not answer: $LOG/slurmctld.log, $LOG/slurmctld.out"
for node in $(nodes); do start_node "$node"; done
ready() { [ "$(sinfo -h -N -p low -o %T | grep -cE '^(idle|mixed|allocated|completing)$')" = "$DEV_CLUSTER_NODES" ]; }
wait_for 120 ready || {
  sinfo -N -l >&2
  die "nodes are not ready: $LOG/n*.log, $LOG/n*.out"
}
echo "$DEV_CLUSTER_NODES nodes, isolation $DEV_CLUSTER_ISOLATION. Use: . $DEV_CLUSTER_DIR/env.sh"
