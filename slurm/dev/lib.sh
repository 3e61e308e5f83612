# shellcheck shell=bash disable=SC2015,SC2034
# Shared by start.sh, stop.sh and node.sh: settings, processes known by pid and start time, nodes.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin

die() { echo "slurm/dev: $1" >&2; exit "${2:-1}"; }

DEV_CLUSTER_DIR=$(realpath -m "${DEV_CLUSTER_DIR:-/tmp/distill-slurm-$UID}")
# Sockets lie below it, and the path of a Unix socket has at most 107 bytes.
[ ${#DEV_CLUSTER_DIR} -le 80 ] || die "DEV_CLUSTER_DIR has ${#DEV_CLUSTER_DIR} characters, at most 80 work: $DEV_CLUSTER_DIR"
ETC=$DEV_CLUSTER_DIR/etc RUN=$DEV_CLUSTER_DIR/run LOG=$DEV_CLUSTER_DIR/log STATE=$DEV_CLUSTER_DIR/state
PIDS=$RUN/pids
export SLURM_CONF=$ETC/slurm.conf
HOSTS_MARK="# slurm/dev $DEV_CLUSTER_DIR"

SETTINGS=(NODES CPUS GPUS GRACE KILL_WAIT NODE_TIMEOUT PREEMPT_SIGNAL PORT ISOLATION FIRST_JOB)
[ "${DEV_CLUSTER_ISOLATION:-}" != auto ] || unset DEV_CLUSTER_ISOLATION
DIFFERENT=() # settings given now that are not those of the cluster that runs
if [ -r "$ETC/settings" ]; then # written by start.sh: what runs wins
  while IFS='=' read -r name value; do
    [ "${!name:-$value}" = "$value" ] || DIFFERENT+=("$name=$value")
    printf -v "$name" %s "$value"
  done < "$ETC/settings"
fi
: "${DEV_CLUSTER_NODES:=3}"            # n1, n2, n3
: "${DEV_CLUSTER_CPUS:=4}"             # declared for each node; there may be fewer
: "${DEV_CLUSTER_GPUS:=2}"             # declared for each node; they are links to /dev/null
: "${DEV_CLUSTER_GRACE:=30}"           # seconds from a preemption's signal to TERM, in partition low
: "${DEV_CLUSTER_KILL_WAIT:=5}"         # seconds from TERM to KILL, for jobs that are cancelled or at their limit
: "${DEV_CLUSTER_NODE_TIMEOUT:=10}"     # seconds without an answer after which a node is taken for dead
: "${DEV_CLUSTER_PREEMPT_SIGNAL:=yes}" # no (SLURM's default): a preempted job gets TERM, and --signal's not
: "${DEV_CLUSTER_PORT:=18000}"         # + 1: slurmctld, + 10 + i: node i
: "${DEV_CLUSTER_ISOLATION:=auto}"     # none | ns (name, files, processes) | net (ns, and network; root) | auto
# From the clock: a wiped cluster begins with ids that the one before had not, whose files may still lie about.
: "${DEV_CLUSTER_FIRST_JOB:=$(($(date +%s) * 10 % 60000000 + 1000))}"

# An ordinary user gets namespaces through a user namespace, where the kernel allows that.
UNSHARE=(unshare)
[ "$(id -u)" = 0 ] || UNSHARE+=(--user --map-current-user --keep-caps)
UNSHARE+=(--uts --mount --pid --fork --mount-proc --kill-child=KILL)

nodes() { seq -f 'n%g' 1 "$DEV_CLUSTER_NODES"; }
subnet() { echo "10.$((100 + DEV_CLUSTER_PORT / 1000)).$((DEV_CLUSTER_PORT % 1000 / 4))"; }
bridge() { echo "dv${DEV_CLUSTER_PORT}"; }
link() { echo "dv${DEV_CLUSTER_PORT}$1"; } # the host's end of a node's cable
address() { # of a node, or of the controller
  if [ "$DEV_CLUSTER_ISOLATION" != net ]; then echo 127.0.0.1; elif [ "$1" = controller ]; then echo "$(subnet).1"; else echo "$(subnet).$((10 + ${1#n}))"; fi
}

wait_for() { # SECONDS COMMAND...
  local until=$((SECONDS + $1))
  shift
  while ! "$@" > /dev/null 2>&1; do
    [ $SECONDS -le $until ] || return 1
    sleep 0.05
  done
}

# A pid file holds "pid start-time": a process that got the same pid later is never taken for ours.
start_time() {
  local stat
  { read -r stat < "/proc/$1/stat"; } 2> /dev/null || return 1
  read -ra stat <<< "${stat##*) }" # the name before it may have blanks
  [ "${stat[0]}" != Z ] && echo "${stat[19]}"
}
record() { echo "$2 $(start_time "$2")" > "$PIDS/$1"; }
pid_of() { # fails when it is not alive
  local pid start
  { read -r pid start < "$PIDS/$1"; } 2> /dev/null && [ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ] && echo "$pid"
}
dead() { ! pid_of "$1" > /dev/null; }
end() { # NAME SIGNAL: KILL after 10 s
  local pid
  if pid=$(pid_of "$1"); then
    kill "-$2" "$pid"
    wait_for 10 dead "$1" || { kill -KILL "$pid"; wait_for 5 dead "$1"; }
  fi 2> /dev/null
  rm -f "$PIDS/$1"
}

daemon() { # NAME COMMAND...: in a session of its own, what it prints in log/NAME.out
  local name=$1
  shift
  setsid "$@" >> "$LOG/$name.out" 2>&1 < /dev/null 9>&- &
  record "$name" $!
}

start_node() {
  dead "$1" || return 0
  mkdir -p "$STATE/$1"
  export DEV_CLUSTER_NODE=$1 # in the environment of the node's processes: stop.sh knows them by it
  case $DEV_CLUSTER_ISOLATION in
    none) daemon "$1" slurmd -D -N "$1" ;;
    ns) daemon "$1" "${UNSHARE[@]}" "$HERE/node-init.sh" "$1" "$ETC/hosts" ;;
    net)
      daemon "$1" "${UNSHARE[@]}" --net "$HERE/node-init.sh" "$1" "$ETC/hosts" "$(link "$1")p" "$(address "$1")"
      plug_in "$1" "$(pid_of "$1")"
      ;;
  esac
  unset DEV_CLUSTER_NODE
}

other_network() { [ "$(readlink "/proc/$1/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
plug_in() { # NODE PID: a cable from the bridge into the network of that process; it goes when the network goes
  wait_for 60 other_network "$2" || die "$1 has no network of its own: $LOG/$1.out"
  ip link delete "$(link "$1")" 2> /dev/null # of a node that died just now
  ip link add "$(link "$1")" type veth peer name "$(link "$1")p" &&
    ip link set "$(link "$1")" master "$(bridge)" up &&
    ip link set "$(link "$1")p" netns "$2" || die "no network for $1"
}

stop_node() { # like a power cut; with isolation none only slurmd dies
  end "$1" KILL
  [ "$DEV_CLUSTER_ISOLATION" != net ] || ip link delete "$(link "$1")" 2> /dev/null
  return 0
}
