"""Batch normalisation over all ranks' batches: its name."""

from hvd_sign.standalone.absent import Absent

SyncBatchNorm = Absent(
    "SyncBatchNorm",
    "take torch.nn.SyncBatchNorm with torch.distributed, or torch.nn.GroupNorm, which needs no "
    "other rank's batch",
)
