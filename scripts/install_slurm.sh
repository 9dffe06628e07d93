#!/bin/bash
# Installs Debian's Slurm and munge, for `make test-slurm`, where this is root on Debian or a relative
# and they are not there. Elsewhere nothing happens, and the tests say why they are skipped.
set -euo pipefail

if command -v slurmctld slurmd munged sbatch >/dev/null || ((EUID)) || ! command -v apt-get >/dev/null
then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; }
echo "installing slurm-wlm and munge"
install || { apt-get update -qq && install; } || echo "apt-get could not install them" >&2
