# hvd_sign on NVIDIA's GPUs: PyTorch with CUDA, and a Horovod with NCCL, MPI and Gloo.
#
# Never built so far: there was neither a container engine nor a GPU where it was written, on
# 2026-11-27. Written for Ubuntu 24.04 (Python 3.12, GCC 13, Open MPI 4.1.6 with UCX), CUDA 12.8, the
# NCCL of this base, PyTorch 2.9.1, Horovod 0.28.1. On Python 3.12 there is no TensorFlow 2.15.
#
#   git archive HEAD | docker build -f slurm/containers/gpu.Dockerfile -t hvd-sign:gpu -
#
# CUDA of the base and of the PyTorch have to be of one major version. ARCHITECTURES: compute
# capabilities without the point: 80 A100, 86 and 89 workstations and L40, 90 H100.
ARG BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04
# hadolint ignore=DL3006
FROM ${BASE}
ARG TORCH=torch==2.9.1
ARG ARCHITECTURES=80,86,89,90

# The distribution's versions belong together; pinning them breaks the next build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y \
        g++ libopenmpi-dev make openmpi-bin openssh-client python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/hvd-sign
WORKDIR /opt/hvd-sign
RUN HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_BUILD_CUDA_CC_LIST="$ARCHITECTURES" \
    make setup TORCH="$TORCH" \
    && rm -rf /root/.cache

ENV PATH=/opt/hvd-sign/.venv/bin:$PATH \
    OMPI_ALLOW_RUN_AS_ROOT=1 \
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
CMD ["hvd-sign", "doctor"]
