"""What the TensorFlow binding refuses, on all ranks alike, and what becomes of failed steps."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tf_helpers import (
    recorded,
    refused_alike,
    values,
    variables,
)


def test_after_a_step_that_failed_half_way(hvd_tf, world):
    first, second = variables((2,), (3,))

    @tf.function
    def verdicts(index):
        with tf.GradientTape() as tape:
            target = tf.reduce_sum(first) - tf.reduce_sum(second) * tf.gather([1.0], index)
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, num_groups=2)
        return tape.gradient(target, [first, second])

    verdicts(tf.constant(0))
    with pytest.raises(tf.errors.OpError, match="indices"):
        verdicts(tf.constant(7))
    for _ in range(2):
        ones, others = verdicts(tf.constant(0))
        assert ones.numpy().tolist() == [1, 1]
        assert others.numpy().tolist() == [-1, -1, -1]


def test_jacobians_are_refused(hvd_tf, world):
    (variable,) = variables((2,))
    tape, target = recorded([variable], [tf.ones(2)])
    tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote)
    for method in (tape.jacobian, tape.batch_jacobian):
        with pytest.raises(RuntimeError, match="take it from the tape itself"):
            method(target, variable)


def test_what_is_no_tape_is_refused(hvd_tf, world):
    with pytest.raises(TypeError, match=r"gradtape: expected a tf.GradientTape, got 'tape'"):
        hvd_tf.DistributedGradientTape("tape", op=hvd_tf.MajorityVote)


def test_sources_of_unknown_shape_are_refused(hvd_tf, world):
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def verdict(source):
        with tf.GradientTape() as tape:
            tape.watch(source)
            target = tf.reduce_sum(source)
        return hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote).gradient(target, source)

    with pytest.raises(ValueError, match=r"'source 0': expected a known shape, got \(None, 3\)"):
        verdict(tf.ones((2, 3)))


@pytest.mark.ranks(2)
def test_a_first_step_that_one_rank_refuses_ends_everyones(hvd_tf, world):
    table = tf.Variable(values(1, 4, 2))
    with tf.GradientTape() as tape:
        target = tf.reduce_sum(tf.gather(table, [1]) if world.rank == 0 else table)
    tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, seed=99)
    kind = TypeError if world.rank == 0 else ValueError
    with pytest.raises(kind, match=r"expected a dense gradient, got tf.IndexedSlices"):
        tape.gradient(target, table)


def test_sparse_gradients_need_to_be_asked_for(hvd_tf, world):
    table = tf.Variable(values(1, 130, 64))

    def verdict(**options):
        with tf.GradientTape() as tape:
            target = -tf.reduce_sum(tf.gather(table, [1, 3]))
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, **options)
        return tape.gradient(target, table)

    message = refused_alike(world, verdict)
    assert "expected a dense gradient, got tf.IndexedSlices; give sparse_as_dense=True" in message
    found = verdict(sparse_as_dense=True).numpy()
    assert (found[[1, 3]] == -1).all()
    assert (np.delete(found, [1, 3], axis=0) == 0).all()  # rows that nobody used do not move


@pytest.mark.ranks(2)
def test_other_variables_on_a_rank_are_an_error_everywhere(hvd_tf, world):
    (variable,) = variables((3 + (world.rank == 1),))

    def verdict():
        tape, target = recorded([variable], [tf.ones(variable.shape)])
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote)
        return tape.gradient(target, variable)

    message = refused_alike(world, verdict)
    assert "shape differs between ranks" in message
    assert "(4,) on rank 1" in message


def test_unsupported_types_are_refused(hvd_tf, world):
    message = refused_alike(
        world, lambda: hvd_tf.allreduce(tf.constant([1, 2]), op=hvd_tf.MajorityVote)
    )
    assert "expected one of float32, float64, float16, bfloat16, got int32" in message
    variable = tf.Variable([1.0 + 1j])

    def verdict():
        with tf.GradientTape() as tape:
            target = tf.math.real(variable[0])
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote)
        return tape.gradient(target, variable)

    assert "got complex" in refused_alike(world, verdict)


def test_what_one_rank_refuses_ends_everyones_vote(hvd_tf, world):
    tensor = tf.constant([1] if world.rank == 0 else [1.0])
    if world.rank == 0:
        with pytest.raises(TypeError, match="got int32"):
            hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote, name="mixed")
    else:
        with pytest.raises(ValueError, match=r"refused on rank 0: .*got int32"):
            hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote, name="mixed")


@pytest.mark.ranks(2)
def test_in_a_graph_ranks_that_differ_are_an_error(hvd_tf, world):

    @tf.function
    def vote(tensor):
        return hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote, name="in a graph")

    message = ""
    try:
        vote(tf.ones(1 + world.rank % 2))
    except tf.errors.OpError as error:
        message = str(error)
    assert "allreduce 'in a graph': shape differs between ranks" in message


def test_xla_is_refused_with_the_remedy(hvd_tf, world):
    @tf.function(jit_compile=True)
    def vote(tensor):
        return hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote)

    with pytest.raises(RuntimeError, match=r"XLA cannot compile .* jit_compile=False"):
        vote(tf.ones(3))


def test_graphs_without_an_order_are_refused(hvd_tf, world):
    def vote(tensor):
        return hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote)

    with tf.Graph().as_default(), pytest.raises(RuntimeError, match="no order that is the same"):
        vote(tf.ones(3))
    with pytest.raises(RuntimeError, match="no order that is the same"):
        tf.data.Dataset.from_tensors(tf.ones(3)).map(vote)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": "heads"}, "ties: expected one of 'coin', 'zero', 'positive', got 'heads'"),
        ({"exchange": "pigeon"}, "exchange: expected one of"),
        ({"algorithm": "magic"}, "algorithm: expected an Algorithm, or one of 'sign'"),
        ({"bucket_bytes": -1}, "bucket_bytes: expected a number above zero"),
        ({"gradient_predivide_factor": 0.0}, "gradient_predivide_factor: expected"),
    ],
)
def test_bad_options_are_refused(hvd_tf, world, options, message):
    variable = tf.Variable([1.0])

    def verdict():
        tape, target = recorded([variable], [tf.ones(1)])
        tape = hvd_tf.DistributedGradientTape(tape, op=hvd_tf.MajorityVote, **options)
        return tape.gradient(target, variable)

    assert message in refused_alike(world, verdict)


def test_options_of_votes_need_a_vote(hvd_tf, world):
    with tf.GradientTape() as tape:
        pass
    with pytest.raises(ValueError, match="ties: only a vote has such options"):
        hvd_tf.DistributedGradientTape(tape, ties="zero")
    with pytest.raises(ValueError, match="packs ballots, which need"):
        hvd_tf.DistributedGradientTape(tape, compression=hvd_tf.Compression.sign, op=hvd_tf.Sum)


def test_in_a_graph_what_one_rank_refuses_ends_everyones_unnamed_vote(hvd_tf, world):
    @tf.function
    def vote(tensor):
        return hvd_tf.allreduce(tensor, op=hvd_tf.MajorityVote)

    if world.rank == 0:
        with pytest.raises(TypeError, match="got int32"):
            vote(tf.constant([1]))
    else:
        with pytest.raises(tf.errors.OpError, match=r"refused on rank 0: .*got int32"):
            vote(tf.constant([1.0]))


def test_sign_compression_where_nothing_is_voted_on(hvd_tf, world):
    sign, rows = hvd_tf.Compression.sign, tf.ones(world.size)
    tape, _ = recorded([rows], [rows])

    @tf.function
    def in_a_graph(rows):
        return hvd_tf.reducescatter(rows, compression=sign)

    sgd = tf.keras.optimizers.SGD(1.0)
    for call in (
        lambda: hvd_tf.reducescatter(rows, compression=sign),
        lambda: hvd_tf.grouped_reducescatter([rows], compression=sign),
        lambda: in_a_graph(rows),
        lambda: hvd_tf.allreduce(rows, compression=sign, op=hvd_tf.Sum),
        lambda: hvd_tf.grouped_allreduce([rows], compression=sign, op=hvd_tf.Sum),
        lambda: hvd_tf.DistributedGradientTape(tape, compression=sign, op=hvd_tf.Sum),
        lambda: hvd_tf.DistributedOptimizer(sgd, compression=sign, op=hvd_tf.Sum),
    ):
        with pytest.raises(ValueError, match=r"compression: hvd\.Compression\.sign"):
            call()
    assert hvd_tf.allreduce(rows, op=hvd_tf.Max).numpy().tolist() == [1] * world.size


MISTAKES = {
    "a vote needs a dense tensor, got tf.SparseTensor": {
        "tensor": lambda: tf.sparse.from_dense([1.0])
    },
    "a vote needs a dense tensor, got tf.RaggedTensor": {
        "tensor": lambda: tf.ragged.constant([[1.0], []])
    },
    "a vote needs a dense tensor, got tf.IndexedSlices": {
        "tensor": lambda: tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0]), (3, 2))
    },
    "expected one of float32, float64, float16, bfloat16, got string": {
        "tensor": lambda: tf.constant(["a"])
    },
    "postscale_factor: expected a number, got 'x'": {"postscale_factor": "x"},
    "prescale_factor: expected a number, got None": {"prescale_factor": None},
    "average: not allowed together with op, got True": {"average": True},
    "seed: expected an integer, got 1.5": {"seed": 1.5},
    "got an unexpected keyword argument 'colour'": {"colour": 1},
}


def refused(hvd_tf, world, sentence: str, grouped: bool, mistakes: dict) -> None:
    """The last rank calls with its mistake, others without: all are told, twice, and go on."""
    last = world.size - 1
    good = {"op": hvd_tf.MajorityVote, "name": "wrong"}
    call, given, options = hvd_tf.allreduce, tf.fill([70], -2.0), good
    if world.rank == last:
        options = good | mistakes
        given = options.pop("tensor", lambda: given)()
        if grouped:
            call, given = hvd_tf.grouped_allreduce, [given]
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)) as caught:
            call(given, **options)
        assert sentence in str(caught.value)
        assert world.rank == last or f"refused on rank {last}: " in str(caught.value)
    for name in (None, "wrong"):
        got = hvd_tf.allreduce(tf.fill([70], -2.0), op=hvd_tf.MajorityVote, name=name)
        assert (got.numpy() == -1).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_what_one_rank_s_arguments_are_wrong_in_is_told_to_all(hvd_tf, world, grouped):
    for sentence, mistakes in MISTAKES.items():
        refused(hvd_tf, world, sentence, grouped, mistakes)
    for sentence, op, compression in (
        ("packs ballots, which need", hvd_tf.Sum, hvd_tf.Compression.sign),
        ("sends ballots; expected", hvd_tf.MajorityVote, hvd_tf.Compression.fp16),
    ):
        refused(hvd_tf, world, sentence, grouped, {"op": op, "compression": compression})
    options = {"op": hvd_tf.Sum, "ties": "zero"}
    refused(hvd_tf, world, "ties: only a vote has such options", grouped, options)


def test_what_is_no_name_or_no_list(hvd_tf, world):
    for name in (7, b"gradient", "\ud800"):
        with pytest.raises((TypeError, ValueError), match="name: expected"):
            hvd_tf.allreduce(tf.ones(3), op=hvd_tf.MajorityVote, name=name)
    for given in (5, []):
        with pytest.raises((TypeError, ValueError), match="tensors: expected"):
            hvd_tf.grouped_allreduce(given, op=hvd_tf.MajorityVote)
    assert (hvd_tf.allreduce(tf.ones(3), op=hvd_tf.MajorityVote).numpy() == 1).all()
