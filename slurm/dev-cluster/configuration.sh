# shellcheck shell=bash disable=SC2154
# Writes slurm.conf and gres.conf into the folder. Sourced by dev-cluster.sh.

listening() { # ports with a TCP listener, one a line
    local hex
    awk '$4 == "0A" {n = split($2, address, ":"); print address[n]}' /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        while read -r hex; do echo "$((16#$hex))"; done
}

free_ports() { # COUNT: the first of COUNT free neighbouring ports, below the range of outgoing connections
    local base port used attempt
    used=" $(listening | tr '\n' ' ')"
    for ((attempt = 0; attempt < 100; attempt++)); do
        base=$((10000 + RANDOM % 20000))
        for ((port = base; port < base + $1; port++)); do
            [[ $used != *" $port "* ]] || continue 2
        done
        echo "$base"
        return
    done
    die "no $1 free neighbouring TCP ports between 10000 and 30000"
}

write_configuration() {
    local port last host user nodes=n1 ports
    port=$(free_ports $((NODES + 3)))
    host=$(uname -n)
    host=${host%%.*}
    user=$(id -un)
    last=$((port + NODES - 1)) ports=$port
    if ((NODES > 1)); then nodes="n[1-$NODES]" ports="[$port-$last]"; fi
    cat >"$DIR/slurm.conf" <<EOT
ClusterName=$CLUSTER
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((last + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits twice the life of a credential; the default of 120 s is long for a toy.
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.self
SlurmdPidFile=$DIR/run/%n.self
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
# Neither cgroups nor systemd are needed.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
# Nodes may claim more than the machine has.
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
KillWait=5
MinJobAge=300
ReturnToService=2
GresTypes=gpu
NodeName=$nodes NodeHostname=localhost NodeAddr=127.0.0.1 Port=$ports CPUs=$CPUS RealMemory=64000 Gres=gpu:$GPUS
EOT
    write_gpus "$nodes"
    write_partitions
    if [[ $ACCOUNTING == yes ]]; then
        write_accounting "$host" "$user" "$((last + 2))" "$((last + 3))"
    fi
    # From 24.05 on cgroups can be switched off, so that slurmd works in a container without systemd.
    local version
    version=$(slurmctld -V | sed -E 's/^[^0-9]*([0-9]+)\.([0-9]+).*/\1\2/')
    if ((version >= 2405)); then echo "CgroupPlugin=disabled" >"$DIR/cgroup.conf"; fi
    local setting
    for setting in "${SETTINGS[@]}"; do
        sed -i "/^${setting%%=*}=/Id" "$DIR/slurm.conf"
        echo "$setting" >>"$DIR/slurm.conf"
    done
}

write_partitions() {
    if [[ $PREEMPT == no ]]; then
        echo "PartitionName=$PARTITION Nodes=ALL Default=YES MaxTime=INFINITE"
    else
        # Without the parameter, preemption sends no USR2 but only SIGTERM.
        cat <<EOT
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=$PARTITION Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
EOT
    fi >>"$DIR/slurm.conf"
}

write_gpus() { # NODES: links to a character device, because Slurm takes nothing else for a GPU's file
    ((GPUS > 0)) || return 0
    local i range="[0-$((GPUS - 1))]"
    if ((GPUS == 1)); then range="0"; fi
    echo "NodeName=$1 Name=gpu File=$DIR/dev/gpu$range" >"$DIR/gres.conf"
    for ((i = 0; i < GPUS; i++)); do ln -s /dev/null "$DIR/dev/gpu$i"; done
}
