"""Synchronised batch normalisation: its name."""

from hvd_sign.standalone.absent import Absent

SyncBatchNormalization = Absent(
    "SyncBatchNormalization",
    "take tf.keras.layers.BatchNormalization, and broadcast or average its moving statistics",
)
