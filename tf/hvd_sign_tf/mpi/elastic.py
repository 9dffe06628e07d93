"""Elastic jobs, which Horovod's launcher and controller serve: their names."""

from hvd_sign.standalone.absent import absent_in_elastic
from hvd_sign.standalone.ranks import init, rank, shutdown


class HorovodInternalError(RuntimeError):
    """Horovod's; here nothing raises it. It stands for programs that name it."""


ObjectState = absent_in_elastic("ObjectState")
TensorFlowKerasState = absent_in_elastic("TensorFlowKerasState")
TensorFlowState = absent_in_elastic("TensorFlowState")
run = absent_in_elastic("run")
run_fn = absent_in_elastic("run_fn")
