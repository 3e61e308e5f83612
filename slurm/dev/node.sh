#!/usr/bin/env bash
# node.sh kill|fail|start|unplug|plug NODE: break and mend a node of the cluster in DEV_CLUSTER_DIR.
#   kill           its processes die; slurmctld finds out by itself (15 to 30 s)
#   fail           the same, and slurmctld is told: its jobs are requeued at once
#   start          it comes back
#   unplug, plug   its network goes, while its processes live (isolation net only)
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
usage="usage: node.sh kill|fail|start|unplug|plug NODE"
[ $# = 2 ] || die "$usage" 2
[ -e "$ETC/settings" ] || die "no cluster in $DEV_CLUSTER_DIR"
nodes | grep -qx "$2" || die "no node $2, there are: $(nodes | tr '\n' ' ')" 2

cable() {
  [ "$DEV_CLUSTER_ISOLATION" = net ] || die "$1 needs a cluster with DEV_CLUSTER_ISOLATION=net, this one has $DEV_CLUSTER_ISOLATION"
  ip link set "$(link "$2")" "$3"
}
back() { sinfo -h -n "$1" -p low -o %T | grep -qE '^(idle|mixed|allocated)$'; }

case $1 in
  kill) stop_node "$2" ;;
  fail) stop_node "$2" && scontrol update nodename="$2" state=down reason=node.sh ;;
  start) start_node "$2" && { wait_for 120 back "$2" || die "$2 does not come back: $LOG/$2.log, $LOG/$2.out"; } ;;
  unplug) cable unplug "$2" down ;;
  plug) cable plug "$2" up ;;
  *) die "$usage" 2 ;;
esac
