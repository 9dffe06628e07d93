"""The cost model, its file, and the choice that rests on it."""

from __future__ import annotations

import json
import re

import launch
import pytest

from hvd_sign import link
from hvd_sign.boxes import cheapest
from hvd_sign.buckets import Bucket, TensorSpec
from hvd_sign.cli import main
from hvd_sign.options import VoteOptions
from hvd_sign.transports import LocalTransport

MODEL = link.LinkModel(latency=1e-3, bandwidth=1e6, pack=1e9, tally=1e12, apply=1e9)


def test_the_formula_on_round_numbers():
    # 8 million coordinates: a ballot of 1 MB and 1/64; M = 4.
    wire = 1e6 * (1 + 1 / 64) / 1e6
    both = 2 * 8e6 / 1e9
    sharded = MODEL.seconds("sharded", 8_000_000, 4)
    assert sharded == pytest.approx(6e-3 + 2 * 3 / 4 * wire + both, rel=1e-4)
    gathered = MODEL.seconds("allgather", 8_000_000, 4)
    assert gathered == pytest.approx(3e-3 + 3 * wire + both, rel=1e-4)
    exact = MODEL.seconds("sharded", 8_000_000, 4, planes=2)
    assert exact == pytest.approx(6e-3 + 1.5 * (2 + 1 / 64) + both, rel=1e-4)
    with pytest.raises(ValueError, match="the cost model knows no 'pigeon'"):
        MODEL.seconds("pigeon", 1, 2)


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
    bucket = Bucket(0, (TensorSpec("t", (coordinates,), "float32", 0),))
    assert cheapest(bucket, VoteOptions(exchange="auto"), transport) == best


def test_the_file_keeps_the_model(tmp_path):
    file = tmp_path / "folder" / "link.json"
    assert link.load(file) is None
    link.save(MODEL, file)
    assert link.load(file) == MODEL
    assert json.loads(file.read_text())["version"] == 1


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


def test_bench_link_needs_ranks_and_time(capsys):
    assert main(["bench-link"]) == 2
    assert "one rank has no link; start it with mpirun" in capsys.readouterr().err
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
    assert outcome.output.count("a rank is done") == 2
