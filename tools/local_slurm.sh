#!/usr/bin/env bash
# A SLURM of one machine, in one folder: munged, slurmctld and slurmd with the commands' own configuration, so that
# `mrp submit` can be tried without a cluster. On Debian: apt-get install slurmctld slurmd slurm-client munge
#   tools/local_slurm.sh start FOLDER      then, as it says: export SLURM_CONF=FOLDER/slurm.conf
#   tools/local_slurm.sh stop FOLDER       ends the three daemons and what runs under them
# The jobs run as whoever starts it. Two partitions: a job in `urgent` preempts those in `local`. No accounting: no sacct.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -eq 2 ] || usage
mkdir -p "$2" && folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf

for program in munged slurmctld slurmd scontrol; do
    command -v "$program" > /dev/null || { echo "$program is missing: apt-get install slurmctld slurmd slurm-client munge" >&2; exit 2; }
done

configure() {
    local host user cpus memory
    host=$(hostname -s) user=$(id -un) cpus=$(env -u OMP_NUM_THREADS nproc)
    memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
    mkdir -p -m 700 "$folder"/{munge,state,spool,log}
    [ -e "$folder/munge/key" ] || (umask 077; head -c 1024 /dev/urandom > "$folder/munge/key")
    cat > "$SLURM_CONF" <<END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
AuthType=auth/munge
# A requeued job waits until its credential has expired: seconds here, two minutes where nobody changes it.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
# Neither cgroups nor affinity: both need more of the machine than a container gives.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=15
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=local Nodes=$host Default=YES PriorityTier=1 GraceTime=60 OverSubscribe=NO
PartitionName=urgent Nodes=$host PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
END
}

start() {
    configure
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" 2> "$folder/log/munged.err"
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        if sinfo --noheader --format=%t 2> /dev/null | grep -q -E '^(idle|mix)'; then
            sinfo
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    echo "no node became ready within 30 s; see $folder/log" >&2
    exit 1
}

stop() {
    [ -e "$SLURM_CONF" ] || { echo "$folder: no SLURM was started here" >&2; exit 2; }
    local file pid
    scancel --user="$(id -un)" 2> /dev/null || true
    for _ in $(seq 60); do  # KillWait, and a little more
        [ -n "$(squeue --noheader 2> /dev/null)" ] || break
        sleep 0.5
    done
    for file in slurmd.pid slurmctld.pid munge/pid; do
        pid=$(cat "$folder/$file" 2> /dev/null) || continue
        kill "$pid" 2> /dev/null || continue
        for _ in $(seq 40); do
            kill -0 "$pid" 2> /dev/null || break
            sleep 0.25
        done
    done
}

case $1 in
    start) start ;;
    stop) stop ;;
    *) usage ;;
esac
