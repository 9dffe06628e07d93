"""What Horovod's own library alone can serve."""

from __future__ import annotations

from hvd_sign.standalone.absent import Absent

broadcast_global_variables = Absent(
    "broadcast_global_variables", "take hvd.broadcast_variables(variables, root_rank)"
)
BroadcastGlobalVariablesHook = Absent(
    "BroadcastGlobalVariablesHook", "take hvd.keras.callbacks.BroadcastGlobalVariablesCallback"
)
