"""Votes on gradients with everything in them, in many small segments; prints the verdicts' digest.

Small votes are exchanged like large ones, or travel with the ranks' agreement.
"""

import hashlib
import sys

import numpy as np
from mpi4py import MPI

import hvd_sign
from hvd_sign.rounds import inline
from hvd_sign.rounds import native as rounds

rounds.SEGMENT_BLOCKS = int(sys.argv[1])
if sys.argv[2] == "exchanged":
    inline.MOST_BLOCKS = -1
world = MPI.COMM_WORLD
generator = np.random.default_rng(world.rank)
digest = hashlib.sha256()
for exchange in ("sharded", "allgather"):
    for ties in ("coin", "zero", "positive"):
        for scale in ("none", "mean_abs"):
            for size in (0, 1, 64, 65, 4096 * 3, 500_001):
                x = generator.standard_normal(size).astype(np.float32)
                x[generator.random(size) < 0.2] = 0
                x[30_000:35_000] = 0
                x[5_000:5_001] = np.nan
                verdict = hvd_sign.allreduce(
                    x, exchange=exchange, ties=ties, scale=scale, name="gradient"
                )
                digest.update(verdict.tobytes())
stats = hvd_sign.vote_stats()
assert stats.votes == 72
assert stats.nonfinite_chunks == 24
native = "hvd_sign._engine" in sys.modules
# In one piece, since the launcher mixes what ranks write.
print(f"\ndigest {digest.hexdigest()} {'native' if native else 'python'}\n", end="", flush=True)
