"""Keras' names and signatures for what ``hvd_sign.tensorflow`` does, and ``load_model``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import tensorflow as tf

from hvd_sign_tf import ops
from hvd_sign_tf import optimizer as voting
from hvd_sign_tf.backend import horovod_api
from hvd_sign_tf.keras.sessions import value_of
from hvd_sign_tf.local import variables_of
from hvd_sign_tf.sign_compression import Compression
from hvd_sign_tf.state import STATE_FILE

STATE_MEMBER = f"assets/optimizer/{STATE_FILE}"


def DistributedOptimizer(  # noqa: N802, the name that Horovod's users know
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = None,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: Any = horovod_api.global_process_set,
    scale_local_gradients: bool = True,
    **vote: Any,
) -> Any:
    """``hvd_sign.tensorflow.DistributedOptimizer``, in Keras' order of arguments."""
    return voting.DistributedOptimizer(
        optimizer,
        name=name,
        device_dense=device_dense,
        device_sparse=device_sparse,
        compression=compression,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        op=op,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
        num_groups=num_groups,
        groups=groups,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
        **vote,
    )


def PartialDistributedOptimizer(  # noqa: N802, the name that Horovod's users know
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: Any = None,
    groups: Any = None,
    process_set: Any = horovod_api.global_process_set,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
    **more: Any,
) -> Any:
    """A ``DistributedOptimizer`` that keeps the gradients of some layers to each rank.

    Its other arguments, a vote's own included, are those of ``DistributedOptimizer``.

    Args:
        local_layers: one layer of Keras or several, whose trainable variables are local.
        scale_local_gradients: their gradients are divided by the number of ranks.

    Raises:
        ValueError: as ``DistributedOptimizer``; or what are no layers.
    """
    local = variables_of(local_layers)
    wrapped = DistributedOptimizer(
        optimizer,
        name=name,
        device_dense=device_dense,
        device_sparse=device_sparse,
        compression=compression,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        op=op,
        groups=groups,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
        **more,
    )
    for variable in local:
        wrapped.register_local_var(variable)
    return wrapped


def broadcast_global_variables(root_rank: int) -> None:
    """Gives every rank one rank's values of a ``tf.compat.v1`` graph's variables.

    Raises:
        RuntimeError: eagerly, where no variable is global.
    """
    value_of(horovod_api.broadcast_global_variables(root_rank))


def allreduce(
    value: Any,
    name: str | None = None,
    average: bool | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: Any = None,
    compression: Any = Compression.none,
    **vote: Any,
) -> tf.Tensor:
    """``hvd_sign.tensorflow.allreduce`` of whatever becomes a tensor."""
    return value_of(
        ops.allreduce(
            tf.convert_to_tensor(value),
            average,
            compression=compression,
            op=op,
            prescale_factor=prescale_factor,
            postscale_factor=postscale_factor,
            name=name,
            **vote,
        )
    )


def allgather(value: Any, name: str | None = None) -> tf.Tensor:
    """``hvd_sign.tensorflow.allgather`` of whatever becomes a tensor."""
    return value_of(horovod_api.allgather(tf.convert_to_tensor(value), name=name))


def broadcast(value: Any, root_rank: int, name: str | None = None) -> tf.Tensor:
    """``hvd_sign.tensorflow.broadcast`` of whatever becomes a tensor."""
    return value_of(horovod_api.broadcast(tf.convert_to_tensor(value), root_rank, name=name))


def reducescatter(value: Any, name: str | None = None, op: Any = horovod_api.Average) -> tf.Tensor:
    """``hvd_sign.tensorflow.reducescatter`` of whatever becomes a tensor."""
    return value_of(horovod_api.reducescatter(tf.convert_to_tensor(value), op=op, name=name))


def load_model(
    filepath: Any,
    custom_optimizers: Any = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Any = Compression.none,
    legacy_opts: bool = False,
    **distributed: Any,
) -> Any:
    """Loads a model that was saved with its optimizer, and distributes that.

    Its slots and step count go on from what was saved; so does, from a ``.keras`` file, what the
    exchange keeps from step to step.

    Args:
        filepath: of the file that Keras wrote.
        custom_optimizers: classes of optimizers that are not Keras' own.
        custom_objects: for Keras.
        compression: ``hvd.Compression.sign`` votes.
        legacy_opts: as for Horovod; an optimizer is wrapped whichever family it is of.
        distributed: ``DistributedOptimizer``'s other arguments.

    Raises:
        ValueError: the model was saved without an optimizer.
    """
    known = {cls.__name__: cls for cls in custom_optimizers or ()}
    model = tf.keras.models.load_model(filepath, custom_objects={**known, **(custom_objects or {})})
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"filepath: {filepath} holds a model without an optimizer; compile it, and give "
            "compile() hvd.DistributedOptimizer(...)"
        )
    model.optimizer = DistributedOptimizer(model.optimizer, compression=compression, **distributed)
    state = getattr(model.optimizer, "exchange_state", None)
    if state is not None and isinstance(filepath, (str, Path)) and zipfile.is_zipfile(filepath):
        with zipfile.ZipFile(filepath) as archive:
            if STATE_MEMBER in archive.namelist():
                state.deserialize(archive.read(STATE_MEMBER))
    return model
