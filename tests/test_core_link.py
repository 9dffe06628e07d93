"""The cost model, its file, and the choice that rests on it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from dataclasses import replace

import launch
import pytest

from hvd_sign.cli import main
from hvd_sign.core.buckets import check_bucket_bytes
from hvd_sign.core.options import VoteOptions
from hvd_sign.exchanges import get_exchange
from hvd_sign.exchanges.base import Load
from hvd_sign.exchanges.planning import (
    cheapest,
    dense_parts,
    planned_bucket_bytes,
    planned_segment_blocks,
)
from hvd_sign.transports import LocalTransport, link
from hvd_sign.transports.nodes import Nodes

MODEL = link.LinkModel(latency=1e-3, bandwidth=1e6, pack=1e9, tally=1e12, apply=1e9)


def seconds(model, exchange, coordinates, voters, *, planes=1, nodes=(), local="vote"):
    load = Load(coordinates, voters, planes, tuple(nodes), local)
    if exchange == "dense":
        return sum(dense_parts(model, load))
    return sum(get_exchange(exchange).parts(model, load))


def test_the_formula_on_round_numbers():
    # 8 million coordinates: a ballot of 1 MB and 1/64; M = 4.
    wire = 1e6 * (1 + 1 / 64) / 1e6
    both = 2 * 8e6 / 1e9
    sharded = seconds(MODEL, "sharded", 8_000_000, 4)
    assert sharded == pytest.approx(6e-3 + 2 * 3 / 4 * wire + both, rel=1e-4)
    gathered = seconds(MODEL, "allgather", 8_000_000, 4)
    assert gathered == pytest.approx(3e-3 + 3 * wire + both, rel=1e-4)
    exact = seconds(MODEL, "sharded", 8_000_000, 4, planes=2)
    assert exact == pytest.approx(6e-3 + 1.5 * (2 + 1 / 64) + both, rel=1e-4)
    dense = seconds(MODEL, "dense", 8_000_000, 4)
    assert dense == pytest.approx(6e-3 + 1.5 * 32e6 / 1e6 + both, rel=1e-4)
    with pytest.raises(ValueError, match=r"exchange: expected one of .*, got 'pigeon'"):
        seconds(MODEL, "pigeon", 1, 2)


def test_the_formula_of_nodes():
    # Nodes of 3 and 1: two followers at 10 MB/s and 1 us, two leaders at 2 MB/s and 100 us.
    measured = replace(
        MODEL, local_latency=1e-6, local_bandwidth=1e7, node_latency=1e-4, node_bandwidth=2e6
    )
    ballot = 1e6 * (1 + 1 / 64)
    both = 2 * 8e6 / 1e9
    fixed = 4 * 1e-6 + 2 * 1e-4 + ballot / 2e6 + both
    options = {"nodes": [3, 1]}
    vote = seconds(measured, "hierarchical", 8_000_000, 4, **options)
    assert vote == pytest.approx(fixed + 2 * 2 * ballot / 1e7, rel=1e-4)
    mean = seconds(measured, "hierarchical", 8_000_000, 4, local="mean", **options)
    assert mean == pytest.approx(fixed + 2 * (32e6 + ballot) / 1e7 + 2 * 8e6 / 1e9, rel=1e-4)
    # Where nothing was measured inside nodes or between them, the only constants serve.
    plain = seconds(MODEL, "hierarchical", 8_000_000, 4, **options)
    assert plain == pytest.approx(6e-3 + (1 + 4) * ballot / 1e6 + both, rel=1e-4)
    # Lone ranks shard as ever.
    alone = seconds(MODEL, "hierarchical", 8_000_000, 4, nodes=[1, 1, 1, 1])
    assert alone == pytest.approx(seconds(MODEL, "sharded", 8_000_000, 4))


@pytest.mark.parametrize(
    ("coordinates", "voters", "best"),
    [
        (64, 4, "allgather"),  # latency alone: fewer messages
        (8_000_000, 4, "sharded"),
        (8_000_000, 2, "allgather"),  # the same bytes, half the messages
        (64, 1000, "allgather"),
        (8_000_000, 1000, "sharded"),
    ],
)
def test_the_cheapest(coordinates, voters, best):
    transport = LocalTransport()
    transport.size = voters
    transport.link = MODEL
    assert cheapest(coordinates, VoteOptions(exchange="auto"), transport) == best


def together(names, model=MODEL):
    """A transport of voters on nodes of these names, for planning alone."""
    transport = LocalTransport()
    transport.size = len(names)
    transport.nodes = Nodes(names, 0, None)
    transport.link = model
    return transport


def test_hierarchical_where_nodes_have_several_ranks_and_it_is_faster():
    quick = replace(
        MODEL, local_latency=1e-9, local_bandwidth=1e12, node_latency=1e-3, node_bandwidth=1e6
    )
    options = VoteOptions(exchange="auto")
    assert cheapest(8_000_000, options, together("aabb", quick)) == "hierarchical"
    assert cheapest(8_000_000, options, together("aabb")) == "sharded"
    assert cheapest(8_000_000, options, together("aaaa", quick)) == "sharded"
    assert cheapest(8_000_000, options, together("abcd", quick)) == "sharded"
    unknown = together("aabb", quick)
    unknown.nodes = None
    assert cheapest(8_000_000, options, unknown) == "sharded"


def test_dense_where_it_is_allowed_and_the_wire_outruns_the_tally():
    options = VoteOptions(exchange="auto", fallback="allreduce")
    fast = replace(MODEL, bandwidth=1e12, tally=1e6)
    assert cheapest(8_000_000, options, together("abcd", fast), dense=True) == "dense"
    assert cheapest(8_000_000, options, together("abcd", fast)) == "sharded"
    assert cheapest(8_000_000, options, together("abcd"), dense=True) == "sharded"


def test_planned_buckets():
    # The last bucket's 1.539 s / n against n times 6 messages of 1 ms and the vote's 0.2 ms.
    transport = together("abcd")
    best = math.sqrt((1.5 * (1 + 1 / 64) + 0.016) / 6.2e-3)
    options = VoteOptions(exchange="auto")
    planned = planned_bucket_bytes([5_000_000, 3_000_000], options, transport)
    assert planned == pytest.approx(32e6 / best, rel=1e-4)
    known = together("abcd", replace(MODEL, vote=1e-3))
    best = math.sqrt((1.5 * (1 + 1 / 64) + 0.016) / 1e-3)
    planned = planned_bucket_bytes([5_000_000, 3_000_000], options, known)
    assert planned == pytest.approx(32e6 / best, rel=1e-4)
    # Never so small that votes outnumber what they carry, and one bucket where all is latency.
    assert planned_bucket_bytes([100], options, transport) == 65_536
    slow = together("abcd", replace(MODEL, latency=100.0))
    assert planned_bucket_bytes([8_000_000], options, slow) == 32_000_000


def test_planned_segments():
    options = VoteOptions(exchange="sharded")
    transport = together("abcd")
    # 16 ms of kernels hide behind 1.5 s of wire but for the n-th part; a segment costs 6.02 ms.
    best = math.sqrt(0.016 / 6.02e-3)
    segment = planned_segment_blocks(125_000, 1_000_000, options, transport)
    assert segment == pytest.approx(125_000 / best, rel=1e-3)
    assert planned_segment_blocks(125_000, 25_000, options, transport) == 25_000
    quick = together("abcd", replace(MODEL, latency=1e-6))
    best = math.sqrt(0.016 / 26e-6)
    assert planned_segment_blocks(125_000, 25_000, options, quick) == pytest.approx(
        125_000 / best, rel=1e-2
    )
    # 0.1 ms for each further segment of the pipeline, if that was measured.
    known = together("abcd", replace(MODEL, segment=1e-4))
    segment = planned_segment_blocks(125_000, 1_000_000, options, known)
    assert segment == pytest.approx(125_000 / math.sqrt(0.016 / 1e-4), rel=1e-2)
    transport.link = None
    assert planned_segment_blocks(125_000, 25_000, options, transport) == 25_000


@pytest.mark.parametrize("value", [0, -1, "large", None, True, float("nan")])
def test_bucket_bytes_are_checked(value):
    with pytest.raises(ValueError, match="bucket_bytes: expected a number above zero or 'auto'"):
        check_bucket_bytes(value)


def test_the_file_keeps_the_model(tmp_path):
    file = tmp_path / "folder" / "link.json"
    assert link.load(file) is None
    link.save(MODEL, file)
    assert link.load(file) == MODEL
    assert json.loads(file.read_text())["version"] == 1
    layered = replace(MODEL, local_latency=1e-6, local_bandwidth=1e9)
    link.save(layered, file)
    assert link.load(file) == layered


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"version": 2}', "expected version 1, got 2: measure again"),
        ("{}", "expected constants from `hvd-sign bench-link`"),
        ("nonsense", "expected constants from `hvd-sign bench-link`"),
        ('{"version": 1, "latency": 1}', "expected constants from `hvd-sign bench-link`"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, sentence):
    file = tmp_path / "link.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        link.load(file)


def test_bench_link_needs_ranks_and_time(capsys, monkeypatch):
    assert main(["bench-link"]) == 2
    assert "one rank has no link; start it with mpirun" in capsys.readouterr().err
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    assert main(["bench-link"]) == 2
    assert "HOROVOD_SIZE=2: horovodrun started several processes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench-link", "--seconds", "0"])
    assert "--seconds: expected a number above zero, got 0" in capsys.readouterr().err


def test_bench_link_and_auto(program, tmp_path):
    file = tmp_path / "link.json"
    extra = {"HVD_SIGN_LINK_FILE": str(file)}
    outcome = program("bench_link", launch.mpirun(2), extra=extra)
    assert "bandwidth" in outcome.output
    model = link.load(file)
    assert 0 < model.latency < 1
    assert model.bandwidth > 1e6
    assert model.local_latency is model.node_latency is None
    if importlib.util.find_spec("hvd_sign._engine") is not None:
        assert 0 < model.segment < 1
        assert 0 < model.vote < 1
        assert "us for each further one" in outcome.output
    assert outcome.output.count("a rank is done") == 2


def test_bench_link_tells_nodes_apart(program, tmp_path):
    file = tmp_path / "link.json"
    extra = {"HVD_SIGN_LINK_FILE": str(file)}
    outcome = program("bench_link", launch.mpirun(3), "2", extra=extra)
    assert "MB/s a rank, inside a node" in outcome.output
    assert "MB/s a rank, between nodes' leaders" in outcome.output
    model = link.load(file)
    assert 0 < model.local_latency < 1
    assert 0 < model.node_latency < 1
    assert min(model.local_bandwidth, model.node_bandwidth) > 1e6
