# shellcheck shell=bash
# Read by build.sh, up.sh, down.sh and ctl.sh: the settings, and how one unit
# (a control-plane process or a whole node) is started and ended.
# shellcheck disable=SC2034 # the settings are used by the scripts that read this file

KV_PREFIX=${KV_PREFIX:-kvasir}                                          # of network namespaces and cgroups
KV_CACHE=${KV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvasir/cluster}
BIN=${BIN:-$KV_CACHE/bin}                                               # what build.sh makes
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

# A cluster may be somebody's: of the process in KV_OWNER, when up.sh starts it with that set. Then nobody else takes it over, and
# down.sh with the same KV_OWNER takes down this one and no other. A pid alone may have gone to another process since.
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
  # A pid alone may have gone to another program since: it must still be in this cluster's namespace.
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

# Cgroups (v1) of node $1: one in each hierarchy.
cgroup_make() {
  local h c
  for h in /sys/fs/cgroup/*/; do
    c=$h$KV_PREFIX-node$1
    mkdir -p "$c" || return 1
    [ -f "$h/cpuset.cpus" ] || continue
    cat "$h/cpuset.cpus" >"$c/cpuset.cpus" # a new cpuset is empty and would take no process
    cat "$h/cpuset.mems" >"$c/cpuset.mems"
  done
}
cgroup_pids() { find /sys/fs/cgroup/*/"$KV_PREFIX-node$1" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | grep -vx 0 || true; }
# End what is left in node $1's cgroups, then remove them.
cgroup_remove() {
  local end=$((SECONDS + 10)) pids
  while pids=$(cgroup_pids "$1"); [ -n "$pids" ]; do
    ((SECONDS < end)) || { say "processes left in the cgroups of node$1: $pids"; return 1; }
    # shellcheck disable=SC2086 # a list
    kill -s KILL $pids 2>/dev/null || true
    sleep 0.1
  done
  find /sys/fs/cgroup/*/"$KV_PREFIX-node$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
}
