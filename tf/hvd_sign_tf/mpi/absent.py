"""Names of Horovod's that its own library alone can serve: each says so, and what to do instead."""

from __future__ import annotations

from typing import Any, NoReturn

INSTEAD = {
    "SyncBatchNormalization": "take tf.keras.layers.BatchNormalization, and broadcast or average "
    "its moving statistics",
    "elastic": "start a job of a fixed size, and let it go on from a checkpoint",
    "PartialDistributedGradientTape": "hand DistributedGradientTape's gradient() the variables "
    "that ranks share, and a tf.GradientTape the others",
    "start_timeline": "set HVD_SIGN_TIMELINE, which names a file",
    "stop_timeline": "set HVD_SIGN_TIMELINE, which names a file",
    "broadcast_global_variables": "take hvd.broadcast_variables(variables, root_rank)",
    "BroadcastGlobalVariablesHook": "take hvd.keras.callbacks.BroadcastGlobalVariablesCallback",
}


class Absent:
    """Stands for a function, class or module: whatever is done with it raises RuntimeError."""

    def __init__(self, name: str) -> None:
        self._why = f"hvd.{name} needs Horovod itself (runtime 'mpi' is in use): {INSTEAD[name]}"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RuntimeError."""
        raise RuntimeError(self._why)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(self._why)


SyncBatchNormalization = Absent("SyncBatchNormalization")
elastic = Absent("elastic")
PartialDistributedGradientTape = Absent("PartialDistributedGradientTape")
start_timeline = Absent("start_timeline")
stop_timeline = Absent("stop_timeline")
broadcast_global_variables = Absent("broadcast_global_variables")
BroadcastGlobalVariablesHook = Absent("BroadcastGlobalVariablesHook")
