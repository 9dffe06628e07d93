"""Other compressed exchanges, small and clear, to measure votes against."""

from benchmarks.methods.baselines.base import Baseline
from benchmarks.methods.baselines.onebit import OneBitAverage
from benchmarks.methods.baselines.qsgd import QSGD
from benchmarks.methods.baselines.signs import SignBytes
from benchmarks.methods.baselines.topk import TopK

BASELINES: dict[str, type[Baseline]] = {
    "qsgd": QSGD,
    "topk": TopK,
    "sign-bytes": SignBytes,
    "onebit-average": OneBitAverage,
}
