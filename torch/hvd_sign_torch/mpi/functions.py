"""Objects, parameters and optimizers' states given to all ranks."""

from hvd_sign.standalone.objects import allgather_object, broadcast_object
from hvd_sign_torch.mpi.states import broadcast_parameters
