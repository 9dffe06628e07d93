#!/bin/bash
# Starts a program on every rank of the job, by the launcher that LAUNCHER names; ends as it ends.
# For scripts that sourced common.sh: slurm/ranks.sh python train.py
set -euo pipefail

: "${LAUNCHER:?source slurm/common.sh first}"

inside=()
if [[ -n $CONTAINER ]]; then
    inside=(apptainer exec --bind "$HVD_SIGN_ROOT" --bind "$JOB_DIR")
    if ((GPUS_PER_NODE)); then inside+=(--nv); fi
    inside+=("$CONTAINER")
    # A path of the outside's Python means nothing inside.
    if [[ ${1##*/} == python* ]]; then set -- "$CONTAINER_PYTHON" "${@:2}"; fi
fi

bind=(--bind-to none)
case $CPU_BIND in
cores) bind=(--map-by "slot:PE=$CPUS_PER_RANK" --bind-to core) ;;
sockets) bind=(--map-by slot --bind-to socket) ;;
esac

require_open_mpi() {
    local said
    said=$(mpirun --version 2>/dev/null | head -n 1) || said="nothing"
    if [[ $said != *"Open MPI"* && $said != *"Open RTE"* ]]; then
        echo "slurm: LAUNCHER=$LAUNCHER is for Open MPI, and \`mpirun --version\` says: $said; with" \
            "MPICH or Intel MPI take LAUNCHER=srun PMI=pmi2" >&2
        exit 2
    fi
}

case $LAUNCHER in
srun)
    exec srun --mpi="$PMI" --nodes="$NODES" --ntasks="$RANKS" --cpus-per-task="$CPUS_PER_RANK" \
        --cpu-bind="$CPU_BIND" --kill-on-bad-exit=1 --label "${inside[@]}" "$@"
    ;;
mpirun)
    require_open_mpi
    if ((EUID == 0)); then
        export {OMPI,PRTE}_ALLOW_RUN_AS_ROOT=1 {OMPI,PRTE}_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    exec mpirun -np "$RANKS" --tag-output "${bind[@]}" "${inside[@]}" "$@"
    ;;
horovodrun)
    require_open_mpi
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/:$((RANKS / NODES))/" |
        paste -s -d ,)
    # It looks at all hosts by ssh, which many clusters forbid between nodes; srun does as well.
    PATH=$HVD_SIGN_ROOT/slurm/srun_as_ssh:$PATH
    exec horovodrun --mpi -np "$RANKS" -H "$hosts" --binding-args="${bind[*]}" \
        ${INTERFACE:+--network-interfaces "$INTERFACE"} \
        "${inside[@]}" "$@"
    ;;
esac
