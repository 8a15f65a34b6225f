#!/usr/bin/env bash
# A real Slurm cluster on one machine, in a folder of its own: slurmctld, several slurmd with fake GPUs, munge, and on
# request slurmdbd with MariaDB, or two preempting partitions. For trying things out and for the tests.
set -euo pipefail

readonly PROGRAM=${0##*/}
readonly MARKER=.asiarch-dev-cluster # a folder with this file is ours to empty
readonly START_SECONDS=120 STOP_SECONDS=15
PATH=$PATH:/usr/sbin:/sbin # where the daemons are, also for ordinary users

usage() {
    cat <<EOT
Usage: $PROGRAM start|stop|status|env [options]

  start    starts the cluster and waits until its nodes are idle; prints the line to evaluate:
               eval "\$($PROGRAM start)"
           Starts again whatever daemon is missing when the cluster runs in part.
  stop     kills its jobs and stops its daemons; the folder with the logs stays
  status   which daemons run, and the nodes; exit status 3 when none runs, 1 when some are missing
  env      prints "export SLURM_CONF=..." of a running cluster

Options
  --dir DIR          folder of the cluster (default: \${TMPDIR:-/tmp}/asiarch-dev-cluster-<user id>)
  --nodes N          virtual nodes, n1 to nN (default 4)
  --cpus N           CPUs that each node claims to have (default 4)
  --gpus N           fake GPUs of each node (default 2)
  --accounting       slurmdbd with a private MariaDB, so that sacct works
  --preempt          partitions low (default) and high; jobs of high requeue those of low
  --grace SECONDS    warning of a preempted job (default 30)
  --set KEY=VALUE    any line of slurm.conf, as in --set MinJobAge=20; may be repeated

Started as root it installs missing packages with apt. Without root they must be installed already.
EOT
}

say() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }
die() {
    say "$*"
    exit 1
}

PARTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/dev-cluster
# shellcheck source-path=SCRIPTDIR/dev-cluster
. "$PARTS/packages.sh"
# shellcheck source-path=SCRIPTDIR/dev-cluster
. "$PARTS/configuration.sh"
# shellcheck source-path=SCRIPTDIR/dev-cluster
. "$PARTS/accounting.sh"

# --- daemons ---------------------------------------------------------------------------------------------------------

# Every daemon carries ASIARCH_DEV_CLUSTER=<folder> in its environment: only such processes are ever signalled.
running() { # NAME
    local pid
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) || return 1
    [[ $pid =~ ^[0-9]+$ ]] && tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF "ASIARCH_DEV_CLUSTER=$DIR"
}

launch() { # NAME COMMAND...
    local name=$1
    shift
    running "$name" && return 0
    (
        cd "$DIR"
        exec env -i PATH="$PATH" HOME="${HOME:-/}" LANG=C ASIARCH_DEV_CLUSTER="$DIR" SLURM_CONF="$DIR/slurm.conf" \
            setsid "$@" </dev/null >>"$DIR/log/$name.out" 2>&1 9>&-
    ) &
    disown # so that bash has nothing to say about its end
    echo "$!" >"$DIR/run/$name.pid"
    # Until the process has become the daemon.
    wait_until "$STOP_SECONDS" started "$name" "$!" || true
}

started() { running "$1" || ! kill -0 "$2" 2>/dev/null; } # NAME PID

finish() { # NAME: at once, because nothing of a stopped cluster is used again
    running "$1" || return 0
    kill -KILL "$(cat "$DIR/run/$1.pid")" 2>/dev/null || true
    wait_until "$STOP_SECONDS" gone "$1" || say "process $(cat "$DIR/run/$1.pid") ($1) does not end"
    rm -f "$DIR/run/$1.pid"
}

gone() { ! running "$1"; }

daemons() { # in the order in which they stop
    local i
    echo slurmctld
    for ((i = 1; i <= NODES; i++)); do echo "n$i"; done
    if [[ $ACCOUNTING == yes ]]; then printf '%s\n' slurmdbd mariadb; fi
    echo munged
}

any_running() {
    local name
    for name in $(daemons); do running "$name" && return 0; done
    return 1
}

wait_until() { # SECONDS COMMAND...: polls until the command succeeds
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# --- commands --------------------------------------------------------------------------------------------------------

prepare_folder() {
    if [[ -e $DIR && ! -e $DIR/$MARKER && -n $(ls -A "$DIR" 2>/dev/null) ]]; then
        die "$DIR has other contents; give an empty folder or a new one with --dir"
    fi
    (umask 022 && mkdir -p "$DIR")
    [[ -O $DIR ]] || die "$DIR belongs to another user; give another folder with --dir"
    DIR=$(cd "$DIR" && pwd -P)
    # A unix socket's path has room for 107 bytes.
    ((${#DIR} <= 80)) || die "$DIR is too long for the paths of sockets; give at most 80 characters with --dir"
    [[ $DIR != *[[:space:],=%]* ]] || die "$DIR: slurm.conf cannot hold this; give another folder with --dir"
    mkdir -p "$DIR/run" "$DIR/log"
    touch "$DIR/$MARKER"
}

recorded() { # takes over the options of the cluster in the folder
    if [[ -s $DIR/$MARKER ]]; then
        # shellcheck source=/dev/null
        . <(sed 's/^declare -[^ ]* /declare -g /' "$DIR/$MARKER")
    fi
}

start_daemons() {
    export SLURM_CONF=$DIR/slurm.conf
    running munged || rm -f "$DIR/run/munge.socket"
    launch munged munged --foreground --force --num-threads=4 --key-file="$DIR/munge.key" \
        --socket="$DIR/run/munge.socket" --pid-file="$DIR/run/munged.self" --log-file="$DIR/log/munged.log" \
        --seed-file="$DIR/run/munged.seed"
    wait_until "$START_SECONDS" test -S "$DIR/run/munge.socket" || die "munged does not start; see $DIR/log/munged.out"
    [[ $ACCOUNTING == no ]] || start_accounting
    launch slurmctld slurmctld -D -f "$SLURM_CONF"
    local i
    for ((i = 1; i <= NODES; i++)); do
        mkdir -p "$DIR/spool/n$i"
        launch "n$i" slurmd -D -N "n$i" -f "$SLURM_CONF"
    done
}

nodes_up() { # all nodes answer (idle, or with jobs that survived)
    local states
    states=$(SLURM_CONF=$DIR/slurm.conf timeout 30 sinfo -h -N -p "$PARTITION" -o %T 2>/dev/null) || return 1
    [[ $(grep -cE '^(idle|mixed|allocated|completing)$' <<<"$states") -eq $NODES ]]
}

all_running() {
    local name
    for name in $(daemons); do running "$name" || return 1; done
}

settled() { nodes_up || ! all_running; }

start() {
    install_packages
    local name missing=()
    if any_running; then
        for name in $(daemons); do running "$name" || missing+=("$name"); done
        if ((${#missing[@]} == 0)); then
            say "the cluster in $DIR is already running"
            print_env
            return
        fi
        say "starting again: ${missing[*]}"
    else
        trap stop EXIT
        rm -rf "${DIR:?}"/{state,spool,dev,mysql,run,log,munge.key,slurm.conf,gres.conf,slurmdbd.conf,cgroup.conf}
        mkdir -p "$DIR"/{state,spool,dev,run,log}
        (umask 077 && head -c 256 /dev/urandom >"$DIR/munge.key")
        declare -p NODES CPUS GPUS ACCOUNTING PREEMPT PARTITION >"$DIR/$MARKER"
        write_configuration
    fi
    start_daemons
    wait_until "$START_SECONDS" settled || true
    if ! nodes_up; then
        tail -n 5 "$DIR"/log/*.log >&2 || true
        status >&2 || true
        die "the cluster did not come up; see the logs in $DIR/log"
    fi
    trap - EXIT
    say "$NODES nodes are up; stop them with: $0 stop --dir $DIR"
    print_env
}

print_env() { printf 'export SLURM_CONF=%q\n' "$DIR/slurm.conf"; }

# slurmstepd titles itself over its environment, so it is known by the log of our folder that it holds open.
steps() {
    local process
    for process in /proc/[0-9]*; do
        [[ $(cat "$process/comm" 2>/dev/null) == slurmstepd ]] || continue
        if find "$process/fd" -lname "$DIR/log/*.log" 2>/dev/null | grep -q .; then echo "${process#/proc/}"; fi
    done
}

descendants() { # PID
    local child
    while read -r -d ' ' child; do
        descendants "$child"
        echo "$child"
    done < <(cat "/proc/$1/task/"*/children 2>/dev/null)
}

kill_jobs() {
    local step attempt
    for step in $(steps); do
        for attempt in 1 2 3; do # a process may fork while it is looked for
            # shellcheck disable=SC2046 # a list of process ids
            kill -KILL $(descendants "$step") 2>/dev/null || break
        done
        kill -KILL "$step" 2>/dev/null || true
    done
}

stop() {
    local name
    for name in $(daemons); do finish "$name"; done
    kill_jobs
}

status() {
    local name
    for name in $(daemons); do
        if running "$name"; then
            printf '%-10s running, process %s\n' "$name" "$(cat "$DIR/run/$name.pid")"
        else
            printf '%-10s not running\n' "$name"
        fi
    done
    any_running || return 3
    all_running || return 1
    SLURM_CONF=$DIR/slurm.conf timeout 30 sinfo -N -o '%N %P %T %c %G'
}

main() {
    local command=${1:-}
    case $command in
        start | stop | status | env) shift ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
    DIR=${TMPDIR:-/tmp}/asiarch-dev-cluster-$(id -u)
    NODES=4 CPUS=4 GPUS=2 ACCOUNTING=no PREEMPT=no GRACE=30 PARTITION=main SETTINGS=()
    while (($#)); do
        case $1 in
            --accounting) ACCOUNTING=yes ;;
            --preempt) PREEMPT=yes PARTITION=low ;;
            --dir | --nodes | --cpus | --gpus | --grace | --set)
                (($# > 1)) || die "$1 needs a value; see $PROGRAM --help"
                case $1 in
                    --dir) DIR=$2 ;;
                    --nodes) NODES=$2 ;;
                    --cpus) CPUS=$2 ;;
                    --gpus) GPUS=$2 ;;
                    --grace) GRACE=$2 ;;
                    --set) SETTINGS+=("$2") ;;
                esac
                shift
                ;;
            *) die "unknown option $1; see $PROGRAM --help" ;;
        esac
        shift
    done
    [[ $NODES =~ ^[1-9][0-9]?$ ]] || die "--nodes $NODES: expected a number from 1 to 99"
    [[ $CPUS =~ ^[1-9][0-9]*$ ]] || die "--cpus $CPUS: expected a number from 1"
    [[ $GPUS =~ ^[0-9]+$ ]] || die "--gpus $GPUS: expected a number from 0"
    [[ $GRACE =~ ^[0-9]+$ ]] || die "--grace $GRACE: expected seconds"
    local pair
    for pair in "${SETTINGS[@]}"; do
        [[ $pair =~ ^[A-Za-z]+=.+$ ]] || die "--set $pair: expected KEY=VALUE, a line of slurm.conf"
    done

    if [[ $command == start ]]; then
        prepare_folder
    elif [[ -e $DIR/$MARKER ]]; then
        [[ -O $DIR ]] || die "$DIR belongs to another user; give your cluster's folder with --dir"
        DIR=$(cd "$DIR" && pwd -P)
    else
        say "there is no cluster in $DIR"
        [[ $command == stop ]] && exit 0
        exit 3
    fi
    # One command at a time works on a folder.
    exec 9>"$DIR/.lock"
    flock 9
    # A cluster that runs keeps the options that it was started with.
    if [[ $command != start ]] || (recorded && any_running); then recorded; fi
    case $command in
        start) start ;;
        stop) stop && say "stopped the cluster in $DIR" ;;
        status) status ;;
        env)
            any_running || die "the cluster in $DIR does not run; start it with: $0 start --dir $DIR"
            print_env
            ;;
    esac
}

main "$@"
