#!/bin/bash
# Installs Debian's Slurm and munge, for `make test-slurm`, where this is root on Debian or a relative
# and they are not there. Elsewhere nothing happens, and the tests say why they are skipped.
set -euo pipefail

missing=0
for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null || missing=1
done
if ((!missing || EUID)) || ! command -v apt-get >/dev/null; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null; }
echo "installing slurm-wlm and munge"
install || { apt-get update -qq && install; } || echo "apt-get could not install them" >&2
