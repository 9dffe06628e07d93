"""Elastic jobs, which Horovod's launcher and controller serve: their names."""

from hvd_sign.standalone.absent import absent_in_elastic
from hvd_sign.standalone.ranks import init, shutdown
from hvd_sign_torch.mpi.elastic.sampler import ElasticSampler
from hvd_sign_torch.mpi.elastic.state import TorchState

run = absent_in_elastic("run")
run_fn = absent_in_elastic("run_fn")
