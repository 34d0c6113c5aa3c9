# Sourced by every .sbatch file with its three arguments: run folder, round, snapshot of code and env file.
# A job's own messages go to RUN/slurm/logs/NAME-JOB.batch.log, those of its tasks to NAME-JOB-RESTART.log.
set -uo pipefail
RUN=$1 ROUND=$2 CODE=$3
if [[ ! -f $RUN/config.toml || ! -f $CODE/cluster.env ]]; then
    echo "error: $(hostname) does not see $RUN: the run folder must lie on a filesystem that all nodes share" >&2
    exit 1
fi
trap 'echo "error: $CODE/cluster.env ended the script" >&2; exit 1' EXIT
set -a
source "$CODE/cluster.env"
set +a
trap - EXIT
export SLURM_EXPORT_ENV=ALL  # tasks get this environment, whatever --export the job itself was submitted with
export PYTHONPATH=$CODE PYTHONSAFEPATH=1  # the snapshot, not what lies in the working directory by now
RESTART=${SLURM_RESTART_COUNT:-0}
SLURM_NAME=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}  # only this element of an array
SLURM_NAME=${SLURM_NAME:-$SLURM_JOB_ID}
export SOPHIA_LOG=${RUN//%/%%}/slurm/logs/$SLURM_JOB_NAME-$SLURM_NAME-$RESTART.log  # for srun, to which % is special
SOPHIA_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)  # where the ranks of a training meet
export SOPHIA_HEAD
if (( RESTART > MAX_RESTARTS )); then
    echo "error: restarted $RESTART times, more than cluster.max_restarts = $MAX_RESTARTS; giving up" >&2
    exit 1
fi

again() { # again [NODE,...]: requeue this job or array element, without these nodes, and end this script
    trap '' TERM USR1
    echo "$(date +%FT%T) requeued after restart $RESTART${1:+, without $1}"
    scontrol requeue "$SLURM_NAME" || exit 1
    for _ in 1 2 3 4 5 6 7 8 9 10; do  # possible once the job counts as pending again
        # A start that has passed when the nodes are free again becomes one in two minutes; one ahead of that is kept.
        scontrol update "JobId=$SLURM_NAME" ${1:+"ExcNodeList=$1"} StartTime=now+15 2>/dev/null && break
        sleep 0.3
    done
    exit 75  # at once: until this script has ended the nodes are not free
}

unreachable() { # the nodes of this job on which no process can be started any more
    local node
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        timeout 20 srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" true >/dev/null 2>&1 || echo "$node" &
    done
    wait
}

attempt() { # attempt COMMAND...: run it, pass USR1 on, and decide by its exit code what happens to the job
    local code=0 asked=''
    "$@" &
    local child=$!
    trap 'asked=1; kill -USR1 $child 2>/dev/null' USR1
    wait $child || code=$?
    while kill -0 $child 2>/dev/null; do code=0; wait $child || code=$?; done  # wait returns at every signal
    echo "$(date +%FT%T) restart $RESTART on $SLURM_JOB_NODELIST ended with code $code${asked:+ after a signal}"
    case $code in
        0) exit 0 ;;
        75) [[ $asked ]] || sleep 5  # put its work down; this script outlives a TERM to the task only, not Slurm's own
            again ;;
        138) [[ $asked ]] && again ;;  # by the signal itself, which came before Python could listen to it
        76|77|137)  # a node is unhealthy, or a process was lost: killed, or its node is gone
            if [[ ! -e $RUN/slurm/failed/$SLURM_JOB_ID-$RESTART ]]; then  # no task says that it failed by itself
                again "$({ cat "$RUN"/slurm/unhealthy/"$SLURM_JOB_ID"-* 2>/dev/null; unreachable; } | sort -u | paste -sd,)"
            fi ;;
    esac
    exit $code
}
