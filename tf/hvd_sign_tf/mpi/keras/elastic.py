"""Elastic jobs of Keras, which Horovod's launcher and controller serve: their names."""

from hvd_sign.standalone.absent import absent_in_elastic
from hvd_sign_tf.mpi.elastic import TensorFlowKerasState, run

CommitStateCallback = absent_in_elastic("CommitStateCallback")
KerasState = absent_in_elastic("KerasState")
UpdateBatchStateCallback = absent_in_elastic("UpdateBatchStateCallback")
UpdateEpochStateCallback = absent_in_elastic("UpdateEpochStateCallback")
