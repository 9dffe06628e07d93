"""Other compressed exchanges, small and clear, to measure votes against."""

from benchmarks.baselines.base import Baseline
from benchmarks.baselines.onebit import OneBitAverage
from benchmarks.baselines.qsgd import QSGD
from benchmarks.baselines.signs import SignBytes
from benchmarks.baselines.topk import TopK

BASELINES: dict[str, type[Baseline]] = {
    "qsgd": QSGD,
    "topk": TopK,
    "sign-bytes": SignBytes,
    "onebit-average": OneBitAverage,
}
