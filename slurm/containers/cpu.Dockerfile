# hvd_sign on CPUs: PyTorch, TensorFlow 2.15, and a Horovod with MPI and Gloo for both.
#
# Never built so far: there was no container engine where it was written, on 2026-11-27. Its steps
# are those of `make setup` on Debian 12: Python 3.11, Open MPI 4.1.4, PyTorch 2.13.0, Horovod 0.28.1.
#
#   git archive HEAD | docker build -f slurm/containers/cpu.Dockerfile -t hvd-sign:cpu -
FROM debian:12

# The distribution's versions belong together; pinning them breaks the next build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y \
        g++ libopenmpi-dev make openmpi-bin openssh-client python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY . /opt/hvd-sign
WORKDIR /opt/hvd-sign
RUN make setup && rm -rf /root/.cache

ENV PATH=/opt/hvd-sign/.venv/bin:$PATH \
    OMPI_ALLOW_RUN_AS_ROOT=1 \
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
CMD ["hvd-sign", "doctor"]
