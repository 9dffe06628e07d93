"""Sums of several passes: their name."""

from hvd_sign.standalone.absent import Absent
from hvd_sign_tf.mpi.gradient_aggregation import PASSES

LocalGradientAggregationHelperEager = Absent("LocalGradientAggregationHelperEager", PASSES)
