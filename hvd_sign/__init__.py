"""hvd_sign: the majority vote, 1 bit each way, as a plugin for Horovod."""

from pkgutil import extend_path

# From the repository's root the sources shadow an installed package that has the kernels.
__path__ = extend_path(__path__, __name__)

from hvd_sign._version import __version__
from hvd_sign.core.options import VoteOptions
from hvd_sign.core.stats import VoteStats, reset_vote_stats, vote_stats
from hvd_sign.core.training import TrainingOptions
from hvd_sign.frontend.compression import Compression, Compressor, VoteCompressor
from hvd_sign.frontend.numpy_api import allreduce
from hvd_sign.frontend.signs import majority_vote, pack_signs, unpack_signs
from hvd_sign.runtime.lifecycle import shutdown
from hvd_sign.votes import MajorityVote, VoteRule

__all__ = [
    "Compression",
    "Compressor",
    "MajorityVote",
    "TrainingOptions",
    "VoteCompressor",
    "VoteOptions",
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
