#!/usr/bin/env bash
# node-init.sh NAME HOSTS [LINK ADDRESS]: the first process of a node's namespaces (start_node in lib.sh).
# When it dies, the kernel ends every process of the node.
set -u
name=$1 hosts=$2
hostname "$name" && mount --bind "$hosts" /etc/hosts || exit 1
if [ $# -gt 2 ]; then
  for ((i = 0; i < 100; i++)); do # the other end plugs it in (plug_in in lib.sh)
    ip link show "$3" > /dev/null 2>&1 && break
    sleep 0.05
  done
  ip link set lo up && ip link set "$3" name eth0 && ip address add "$4/24" dev eth0 && ip link set eth0 up || exit 1
fi
drop=()
[ "$(id -u)" = 0 ] || drop=(setpriv --ambient-caps=-all --inh-caps=-all) # jobs keep no powers of the user namespace
"${drop[@]}" slurmd -D -N "$name" &
slurmd=$!
while kill -0 $slurmd 2> /dev/null; do wait; done # orphans of jobs are reaped here
