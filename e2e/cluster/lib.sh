# shellcheck shell=bash
# Sourced by build.sh, up.sh, down.sh and ctl.sh: the settings, and functions that start and stop a unit
# (a control-plane process or a whole node).
# shellcheck disable=SC2034 # the settings are used by the scripts that read this file

KV_PREFIX=${KV_PREFIX:-kvasir}                                          # of network namespaces and cgroups
KV_CACHE=${KV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvasir/cluster}
BIN=${BIN:-$KV_CACHE/bin}                                               # output of build.sh
IMAGES=${IMAGES:-$KV_CACHE/images}                                      # *.tar here are loaded into every node at boot
KV_DIR=${KV_DIR:-$KV_CACHE/$KV_PREFIX}                                  # state of the running cluster
NET=10.99.0 POD=10.244 SVC=10.96                                        # addresses, seen only inside the namespaces
API_IP=$NET.10 DNS_IP=$SVC.0.53
CERT_MANAGER_CRDS=$BIN/cert-manager-crds.yaml
KUBECONFIG_ADMIN=$KV_DIR/kubeconfig/admin
AUDIT_LOG=$KV_DIR/log/audit.jsonl                                       # every write by a service account that is not Kubernetes' own
CONTROL_PLANE="etcd kube-apiserver kube-controller-manager kube-scheduler coredns"

say() { echo "cluster: $*" >&2; }
die() { say "$*"; exit 1; }

[[ $KV_PREFIX =~ ^[a-z][a-z0-9]{0,11}$ ]] || die "KV_PREFIX must be 1 to 12 lower-case letters and digits, is '$KV_PREFIX'"

need_root() { [ "$(id -u)" = 0 ] || die "must run as root (namespaces, mounts and cgroups are made)"; }

# lock SECONDS: one up, down or ctl at a time. The lock is on descriptor 9, which no unit inherits.
lock() {
  mkdir -p "$KV_CACHE"
  exec 9>"$KV_CACHE/$KV_PREFIX.lock"
  flock -w "$1" 9 || die "another up.sh, down.sh or ctl.sh holds $KV_CACHE/$KV_PREFIX.lock"
}

# If up.sh runs with KV_OWNER set to a pid, the cluster belongs to that process: no other process takes it over, and down.sh with the
# same KV_OWNER takes down only this cluster. The owner is a pid with its start time, because pids are reused.
process() { echo "$1 $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20)"; } # PID and when it began
owner() { cat "$KV_DIR/owner" 2>/dev/null || true; }
owned_by() { [ "$(owner)" = "$(process "$1")" ]; }
abandoned() { local o; o=$(owner); [ -n "$o" ] && ! owned_by "${o%% *}"; }

netns() { echo "/run/netns/$KV_PREFIX-n$1"; }
node_ip() { echo "$NET.$((10 + $1))"; }
namespaces() { ip netns list | awk -v p="^$KV_PREFIX-n[0-9]+\$" '$1 ~ p {print $1}'; }
nodes() { cat "$KV_DIR/nodes" 2>/dev/null || echo 0; }
kubectl() { nsenter --net="$(netns 0)" "$BIN/kubectl" --kubeconfig "$KUBECONFIG_ADMIN" --request-timeout 5s "$@"; }

# until_ok SECONDS WHAT COMMAND...: try until it succeeds, or fail with a message.
until_ok() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= end)); then say "gave up waiting for $what"; return 1; fi
    sleep 0.1
  done
}

# A unit NAME is $KV_DIR/unit/NAME.sh, run in the network namespace of the node in NAME.ns; its process in NAME.pid.
unit_alive() {
  local u=$KV_DIR/unit/$1 pid n
  pid=$(cat "$u.pid" 2>/dev/null) && n=$(cat "$u.ns" 2>/dev/null) || return 1
  # Pids are reused: the process must still be in this cluster's namespace.
  [ "$(readlink "/proc/$pid/ns/net" 2>/dev/null)" = "net:[$(stat -Lc %i "$(netns "$n")" 2>/dev/null)]" ] &&
    ! grep -q '^State:.*Z' "/proc/$pid/status" 2>/dev/null
}

unit_start() {
  local u=$KV_DIR/unit/$1
  [ -f "$u.sh" ] || die "no unit '$1' (there are: $(cd "$KV_DIR/unit" 2>/dev/null && echo ./*.sh | sed 's/\.\/\|\.sh//g'))"
  unit_alive "$1" && return 0
  nsenter --net="$(netns "$(cat "$u.ns")")" setsid bash "$u.sh" >>"$KV_DIR/log/$1.log" 2>&1 </dev/null 9>&- &
  echo $! >"$u.pid"
}

# unit_stop NAME [SIGNAL]: TERM by default, KILL after 3 s (a kube-apiserver would wait up to 60 s for its watches).
unit_stop() {
  local pid
  unit_alive "$1" || return 0
  pid=$(cat "$KV_DIR/unit/$1.pid")
  kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
  local end=$((SECONDS + 3))
  while unit_alive "$1"; do
    ((SECONDS < end)) || kill -s KILL "$pid" 2>/dev/null || true
    ((SECONDS < end + 5)) || { say "$1 (pid $pid) does not end"; return 1; }
    sleep 0.05
  done
}

# ---- cgroups: one tree with every controller (v2), or a tree for each controller (v1). In systemd's hybrid mode there are both, and
# the controllers are v1's.
CGROUP=/sys/fs/cgroup
cgroup2() { [ "$(stat -fc %T $CGROUP 2>/dev/null)" = cgroup2fs ]; }

# The controllers that a kubelet needs and this machine does not have.
cgroup_missing() {
  local c
  for c in cpu cpuset memory pids; do
    if cgroup2; then grep -qw "$c" $CGROUP/cgroup.controllers; else [ -d "$CGROUP/$c" ]; fi || echo "$c"
  done
}

# The cgroup folders of node $1 (or of a pattern): one, or with v1 one for each controller.
cgroup_folders() { if cgroup2; then compgen -G "$CGROUP/$KV_PREFIX-node$1"; else compgen -G "$CGROUP/*/$KV_PREFIX-node$1"; fi || true; }
# The numbers of the nodes that have cgroups.
cgroup_nodes() { cgroup_folders '[0-9]*' | sed 's/.*-node//' | sort -un; }

cgroup_make() {
  local h c
  if cgroup2; then
    c=$CGROUP/$KV_PREFIX-node$1
    { cgroup2_vacate && cgroup2_enable $CGROUP; } ||
      { say "$CGROUP hands down only: $(cat $CGROUP/cgroup.subtree_control), of $(cat $CGROUP/cgroup.controllers)"; return 1; }
    # Enabled below as well, so that systemd cannot disable a controller at the top that none of its own units uses.
    mkdir -p "$c" && cgroup2_enable "$c"
    return
  fi
  for h in "$CGROUP"/*/; do
    c=$h$KV_PREFIX-node$1
    mkdir -p "$c" || return 1
    [ -f "$h/cpuset.cpus" ] || continue
    cat "$h/cpuset.cpus" >"$c/cpuset.cpus" # a new cpuset is empty and would take no process
    cat "$h/cpuset.mems" >"$c/cpuset.mems"
  done
}

# cgroup2_enable FOLDER: enable for the children of FOLDER the controllers that a kubelet and runc use. One at a time, because one
# refused controller makes the whole write fail.
cgroup2_enable() {
  local c refused=""
  for c in cpu cpuset hugetlb io memory pids; do
    if grep -qw $c "$1/cgroup.controllers" && ! grep -qw $c "$1/cgroup.subtree_control"; then
      { echo "+$c" >"$1/cgroup.subtree_control"; } 2>/dev/null || refused+=" $c"
    fi
  done
  [ -z "$refused" ]
}

# In a container the visible root is not the machine's (only that one has no cgroup.events), and a group with processes cannot
# enable every controller for its children. So move its processes one level down, several times, since they may start others
# meanwhile. Do this before enabling any controller: with only cpu or pids the group would become threaded, and its children would
# accept no process.
cgroup2_vacate() {
  local p
  [ -e $CGROUP/cgroup.events ] && read -r p <$CGROUP/cgroup.procs || return 0
  mkdir -p $CGROUP/kv-rest || return 1
  for _ in 1 2 3; do
    while read -r p; do { echo "$p" >$CGROUP/kv-rest/cgroup.procs; } 2>/dev/null || true; done <$CGROUP/cgroup.procs
  done
}

cgroup_pids() {
  local c
  for c in $(cgroup_folders "$1"); do find "$c" -name cgroup.procs -exec cat {} + 2>/dev/null || true; done | sort -u | grep -vx 0 || true
}
# Kill the remaining processes in node $1's cgroups, then remove the cgroups.
cgroup_remove() {
  local end=$((SECONDS + 10)) pids c
  while pids=$(cgroup_pids "$1"); [ -n "$pids" ]; do
    ((SECONDS < end)) || { say "processes left in the cgroups of node$1: $pids"; return 1; }
    # Kills all at once, including new processes; v2 since Linux 5.14.
    for c in $(cgroup_folders "$1"); do if [ -e "$c/cgroup.kill" ]; then echo 1 >"$c/cgroup.kill"; fi; done
    # shellcheck disable=SC2086 # a list
    kill -s KILL $pids 2>/dev/null || true
    sleep 0.1
  done
  for c in $(cgroup_folders "$1"); do find "$c" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
}
