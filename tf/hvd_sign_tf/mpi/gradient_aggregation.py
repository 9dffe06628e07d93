"""Sums of several passes in graphs of TensorFlow 1: their name."""

from hvd_sign.standalone.absent import Absent

PASSES = "give hvd.DistributedOptimizer backward_passes_per_step"

LocalGradientAggregationHelper = Absent("LocalGradientAggregationHelper", PASSES)
