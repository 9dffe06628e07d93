# shellcheck shell=bash
# What the job scripts share: settings, the environment, the job's directory, what a failure says.
# They source it, so that it runs on the job's first node, once. Every setting can be given from
# outside, as in `LAUNCHER=mpirun sbatch slurm/allreduce.sbatch`, or be changed here.
set -euo pipefail

# --- Settings ---------------------------------------------------------------------------------

# What starts the ranks: srun; mpirun (Open MPI's, where srun has no plugin for it); horovodrun
# (which forces TCP: not for InfiniBand).
: "${LAUNCHER:=srun}"
# srun's plugin: pmix for Open MPI, pmi2 for MPICH and Intel MPI. `srun --mpi=list` names yours.
: "${PMI:=pmix}"
# Binding of ranks: cores, sockets, or none. Take none where Slurm has no task/affinity plugin and
# nodes are shared: ranks of different jobs would be bound to the same cores.
: "${CPU_BIND:=cores}"
# GPUs a node. Slurm tells if they were asked for by --gpus-per-node or --gres; set it where Slurm
# does not manage them. With 1 or more the benchmarks train on GPUs.
: "${GPUS_PER_NODE:=${SLURM_GPUS_ON_NODE:-0}}"
# The nodes' IP interface for TCP, Gloo and NCCL's first contact (eth0, ib0, a list with commas).
# Set it where nodes have several (`ip -br addr`): else some ranks may try one that leads nowhere.
: "${INTERFACE:=}"
# How messages travel: auto (MPI chooses); tcp (Ethernet, clouds; or to rule InfiniBand out);
# ucx (InfiniBand, RoCE: fails at once where UCX cannot have it, instead of falling back to TCP).
: "${TRANSPORT:=auto}"
# The environment, each only if set: modules to load (a list with spaces); a virtual environment
# (by default the one that `make setup` makes); a conda environment; a file to source after these.
: "${MODULES:=}"
: "${VENV:=}"
: "${CONDA_ENV:=}"
: "${SETUP:=}"
# An Apptainer image for the ranks, and the Python in it. This repository and the job's directory are
# mounted in it; APPTAINER_BIND mounts more. The job's own Python (VENV) stays outside.
: "${CONTAINER:=}"
: "${CONTAINER_PYTHON:=python3}"
# Where the jobs' directories are made, on a file system that all nodes see; lines of a log that a
# failure shows.
: "${RESULTS:=}"
: "${TAIL_LINES:=40}"

# --- Checks -----------------------------------------------------------------------------------

die() {
    echo "slurm: $*" >&2
    exit 2
}

one_of() {
    local name=$1 word
    shift
    for word in "$@"; do
        if [[ ${!name} == "$word" ]]; then return; fi
    done
    die "$name: expected one of $*, got '${!name}'"
}

if [[ -z ${SLURM_JOB_ID:-} ]]; then die "no job: submit this script with sbatch"; fi
if [[ $LAUNCHER == torchrun ]]; then
    die "LAUNCHER=torchrun cannot serve: votes need ranks of MPI or Horovod, and torchrun starts" \
        "neither; take srun, mpirun or horovodrun"
fi
one_of LAUNCHER srun mpirun horovodrun
one_of CPU_BIND cores sockets none
one_of TRANSPORT auto tcp ucx

# --- The job ----------------------------------------------------------------------------------

HVD_SIGN_ROOT=${HVD_SIGN_ROOT:-$SLURM_SUBMIT_DIR} # this repository, on a file system of all nodes
NODES=$SLURM_JOB_NUM_NODES
RANKS=${SLURM_NTASKS:-$((NODES * ${SLURM_NTASKS_PER_NODE:-1}))}
if ((RANKS % NODES)); then die "$RANKS tasks on $NODES nodes: ask for --ntasks-per-node"; fi
# Since Slurm 22.05 srun does not inherit --cpus-per-task; and where sbatch was given --export=NONE,
# srun would give the ranks no environment either.
CPUS_PER_RANK=${SLURM_CPUS_PER_TASK:-1}
export SLURM_EXPORT_ENV=ALL
export HVD_SIGN_ROOT NODES RANKS LAUNCHER PMI CPU_BIND CPUS_PER_RANK GPUS_PER_NODE INTERFACE \
    CONTAINER CONTAINER_PYTHON

if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
else
    job=$SLURM_JOB_ID
fi
JOB_DIR=${RESULTS:-$HVD_SIGN_ROOT/results}/$SLURM_JOB_NAME-$job
export JOB_DIR
mkdir -p "$JOB_DIR"
rm -f "$JOB_DIR/status"

# Everything goes to the job's log; what sbatch's own output gets is where that is, and its end.
echo "$SLURM_JOB_NAME, job $job: $RANKS ranks on $SLURM_JOB_NODELIST by $LAUNCHER; $JOB_DIR"
exec 3>&1 >>"$JOB_DIR/job.log" 2>&1
echo "--- $(date -Is), start ${SLURM_RESTART_COUNT:-0}"

finish() {
    local status=$?
    trap - EXIT
    echo "$status" >"$JOB_DIR/status"
    if ((status)); then
        {
            echo "$SLURM_JOB_NAME, job $job, failed with status $status; $JOB_DIR/job.log ends:"
            tail -n "$TAIL_LINES" "$JOB_DIR/job.log"
        } >&3
    fi
    exit "$status"
}
trap finish EXIT

# --- The environment --------------------------------------------------------------------------

# Set-up files of modules, conda and virtual environments do not stand `set -u`.
set +u
for module in $MODULES; do
    module load "$module"
done
if [[ -z $VENV && -z $CONDA_ENV && -d $HVD_SIGN_ROOT/.venv ]]; then VENV=$HVD_SIGN_ROOT/.venv; fi
if [[ -n $VENV ]]; then
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
fi
if [[ -n $CONDA_ENV ]]; then
    eval "$(conda shell.bash hook)"
    conda activate "$CONDA_ENV"
fi
# shellcheck disable=SC1090
if [[ -n $SETUP ]]; then source "$SETUP"; fi
set -u

export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CPUS_PER_RANK}
# Ranks have cores of their own here; where they share them, set it to 1.
export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-0}
if [[ -n $INTERFACE ]]; then
    export OMPI_MCA_btl_tcp_if_include=$INTERFACE OMPI_MCA_oob_tcp_if_include=$INTERFACE
    export PRTE_MCA_prte_if_include=$INTERFACE
    export GLOO_SOCKET_IFNAME=${INTERFACE%%,*} HOROVOD_GLOO_IFACE=${INTERFACE%%,*}
    export NCCL_SOCKET_IFNAME=$INTERFACE
fi
case $TRANSPORT in
tcp) export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader,tcp NCCL_IB_DISABLE=1 ;;
ucx) export OMPI_MCA_pml=ucx OMPI_MCA_osc=ucx ;;
esac

# Beside the figures: what they were measured with. Variables by name, for others may be secrets.
{
    env | grep -E '^(SLURM|SRUN|OMPI|PRTE|PMIX|UCX|FI|NCCL|GLOO|HOROVOD|HVD_SIGN|CUDA|OMP)_' || true
    env | grep -E '^(PATH|LD_LIBRARY_PATH|LOADEDMODULES|VIRTUAL_ENV|CONDA_PREFIX)=' || true
    echo "--- $(python --version 2>&1): $(command -v python)"
    python -c 'import importlib.metadata as m
print(*sorted({f"{d.name}=={d.version}" for d in m.distributions()}), sep="\n")' || true
    echo "--- $(git -C "$HVD_SIGN_ROOT" describe --always --dirty 2>/dev/null || echo 'no git')"
    scontrol show job "$SLURM_JOB_ID" || true
    nvidia-smi -L 2>/dev/null || true
} >"$JOB_DIR/environment.txt"

# --- Commands ---------------------------------------------------------------------------------

# Starts a program on every rank: ranks python train.py
ranks() {
    "$HVD_SIGN_ROOT/slurm/ranks.sh" "$@"
}

# Runs a benchmark of this repository on all ranks: benchmark allreduce -b 1M
benchmark() {
    local name=$1
    shift
    cd "$HVD_SIGN_ROOT"
    export HVD_SIGN_BENCH_LAUNCHER=$LAUNCHER HVD_SIGN_BENCH_NODES=$NODES
    export HVD_SIGN_BENCH_INTERFACE=${INTERFACE%%,*}
    HVD_SIGN_BENCH_LAUNCH=$(printf '%q' "$HVD_SIGN_ROOT/slurm/ranks.sh")
    export HVD_SIGN_BENCH_LAUNCH
    python -m "benchmarks.$name" --network allocation --workers "$RANKS" --out "$JOB_DIR" "$@"
}
