"""hvd_sign: the majority vote, 1 bit each way, as a plugin for Horovod."""

from pkgutil import extend_path

# From the repository's root the sources shadow an installed package that has the kernels.
__path__ = extend_path(__path__, __name__)

from hvd_sign._version import __version__
from hvd_sign.collectives import allreduce
from hvd_sign.compression import Compression, Compressor
from hvd_sign.runtime import shutdown
from hvd_sign.signs import majority_vote, pack_signs, unpack_signs
from hvd_sign.stats import VoteStats, reset_vote_stats, vote_stats
from hvd_sign.votes import MajorityVote, VoteRule

__all__ = [
    "Compression",
    "Compressor",
    "MajorityVote",
    "VoteRule",
    "VoteStats",
    "__version__",
    "allreduce",
    "majority_vote",
    "pack_signs",
    "reset_vote_stats",
    "shutdown",
    "unpack_signs",
    "vote_stats",
]
