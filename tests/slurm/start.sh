#!/usr/bin/env bash
# A real SLURM on this machine alone, for the tests: one node with two CPUs, jobs that may be requeued.
#
#   tests/slurm/start.sh         starts it; installs Debian's slurm-wlm and munge where they are missing
#   tests/slurm/start.sh stop    ends it
#
# Needs root or sudo. A container will do: no systemd, no control groups, nothing but the loopback address.
# Configuration, state and logs are in $SIMMIM_SLURM_STATE (default /tmp/simmim-slurm); a SLURM that answers
# there already is left as it is.
set -euo pipefail

state=${SIMMIM_SLURM_STATE:-/tmp/simmim-slurm}
export SLURM_CONF=$state/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

# Both the controller and the node.
answers() {
  command -v sinfo >/dev/null && [ -s "$SLURM_CONF" ] &&
    timeout 10 scontrol show slurmd localhost >/dev/null 2>&1 &&
    timeout 10 sinfo --noheader --format=%T 2>/dev/null | grep -qE '^(idle|mixed|allocated|completing)$'
}

become_root() {
  if [ "$(id -u)" = 0 ]; then
    return
  fi
  if ! sudo -n true 2>/dev/null; then
    echo "error: starting and stopping SLURM needs root or sudo; run $0 as root" >&2
    exit 1
  fi
  exec sudo -n env "SIMMIM_SLURM_STATE=$state" "$0" "$@"
}

# Ends what an earlier start left, by the processes' own numbers.
stop() {
  local daemon process
  for daemon in slurmd slurmctld munged; do
    process=$(cat "$state/$daemon.pid" 2>/dev/null || true)
    # The number may be another's since.
    if [ -n "$process" ] && [ "$(cat "/proc/$process/comm" 2>/dev/null)" = "$daemon" ]; then
      kill "$process" || true
      for _ in $(seq 50); do
        [ -d "/proc/$process" ] || break
        sleep 0.1
      done
      kill -9 "$process" 2>/dev/null || true
    fi
  done
  rm -rf "$state"
}

install() {
  if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then
    return
  fi
  if ! command -v apt-get >/dev/null; then
    echo "error: slurmctld, slurmd and munged are missing and there is no apt-get; install them" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null
}

configure() {
  mkdir -p "$state"/{controller,node}
  chmod 755 "$state"
  (umask 077 && head -c 128 /dev/urandom >"$state/munge.key")
  cat >"$SLURM_CONF" <<CONF
ClusterName=simmim
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until the last one's credentials are void: two minutes, were it not said here.
AuthInfo=socket=$state/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait=30
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
# Two CPUs, however many there are.
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE OverSubscribe=NO
CONF
  # Nothing asks for control groups. Old versions load a plugin for them all the same.
  local groups=disabled
  [ "$(slurmd -V | grep -oE '[0-9]+' | head -n 1)" -ge 24 ] || groups=cgroup/v1
  echo "CgroupPlugin=$groups" >"$state/cgroup.conf"
}

start() {
  munged --force --socket="$state/munge.socket" --key-file="$state/munge.key" \
    --pid-file="$state/munged.pid" --seed-file="$state/munged.seed" \
    --log-file="$state/munged.log" || complain
  slurmctld -f "$SLURM_CONF" || complain
  slurmd -N localhost -f "$SLURM_CONF" || complain
  for _ in $(seq 60); do
    if answers; then
      return
    fi
    sleep 0.5
  done
  complain
}

complain() {
  local log
  echo "error: SLURM does not answer; its logs end with" >&2
  for log in "$state"/*.log; do
    echo "$log" >&2
    tail -n 10 "$log" >&2
  done
  exit 1
}

case ${1:-start} in
  start)
    if ! answers; then
      become_root "$@"
      install
      stop
      configure
      start
    fi
    echo "SLURM answers: export SLURM_CONF=$SLURM_CONF"
    ;;
  stop)
    become_root "$@"
    stop
    ;;
  *)
    echo "error: $1 is unknown; use start or stop" >&2
    exit 1
    ;;
esac
