"""The page of results: what it says is worked out by hand, and it is read as a browser would."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import bench_results as literal
import pytest

from benchmarks import report
from benchmarks.reporting import findings, glossary, page, results
from benchmarks.reporting.results import ResultError

CALLS = literal.allreduce({"fp32": [0.001, 0.008], "fp16": [0.003, 0.004], "vote": [0.002, 0.001]})
TRAINING = literal.training(
    literal.trained("fp32", (6.0, 3.0, 0.5), (4.0, 2.0, 0.75)),
    literal.trained("vote", (2.0, 1.0, 0.4), (2.0, 0.5, 0.625)),
    literal.trained("ddp", (1.0, None, 0.5), (1.0, None, 0.5)),
    literal.trained("local", (0.5, None, None), (0.5, None, None)),
)
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Reader(HTMLParser):
    """Collects texts, addresses and ids; every tag must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.texts.append(" ".join(data.split()))


def read(*loaded: dict) -> Reader:
    return Reader(page.render(page.report(loaded)))


def test_the_page_needs_nothing_else() -> None:
    text = page.render(page.report([CALLS, TRAINING, literal.overlap()]))
    reader = Reader(text)
    assert reader.tags & {"script", "link", "iframe", "object", "embed", "img"} == set()
    assert reader.addresses
    assert [one for one in reader.addresses if not one.startswith("#")] == []
    assert {one[1:] for one in reader.addresses} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert re.findall(r"@import|url\((?!#)", text) == []
    assert text.count("<svg") == 4
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", drawings) == []  # light and dark
    assert "Some &lt;Data&gt;" in text


def test_the_page_holds_the_figures() -> None:
    texts = read(CALLS, TRAINING).texts
    # fp32: 640 samples in 10 s; 320 / 6 and 320 / 4 a second are 13.33 from their mean, x 1.96.
    assert "Horovod fp32, 8 ms" in texts
    for figure in ("5.00", "2.50 x", "75.00%", "62.50%", "2 KiB", "8.00 x", "64 ± 26.1"):
        assert figure in texts, figure
    assert "2 results, 2024-02-29: A CPU (2 cores)." in texts
    assert "python -m benchmarks.training --rate 1000000000.0" in texts
    assert {"A CPU", "0123abc", "3.11.7"} <= set(texts)
    assert "the optimizer of vote" in " ".join(texts)


def test_the_headline_figures() -> None:
    slow = literal.allreduce({"fp32": [0.032], "fp16": [0.016], "vote": [0.001]}, rate=1e8)
    cards = page.cards(page.report([CALLS, TRAINING, slow]))
    times, minus = "\u00d7", "\u2212"
    assert [(card.title, card.figure) for card in cards] == [
        ("An epoch of training", f"2.5 {times}"),
        ("An epoch of training", f"0.5 {times}"),  # DDP: 1 second, the vote 2
        ("Accuracy", f"{minus}12.5"),
        ("A large tensor", f"8.0 to 32 {times}"),
        ("A large tensor", f"4.0 to 16 {times}"),
    ]


def test_of_trainings_the_best_vote_is_compared_in_time_to_an_accuracy_too() -> None:
    result = literal.training(
        literal.trained("fp32", (6.0, 3.0, 0.5), (4.0, 2.0, 0.75)),
        literal.trained("vote", (2.0, 1.0, 0.4), (2.0, 0.5, 0.625)),
        literal.trained("lion", (2.0, 1.0, 0.4), (2.0, 0.5, 0.7)),
        literal.trained("signum", (2.0, 1.0, 0.75), (2.0, 0.5, 0.875)),
    )
    (held,) = findings.contests(result)
    assert (held.ours.name, [other.name for other in held.others]) == ("signum", ["fp32"])
    # fp32 takes both epochs, 10 s; Signum the first alone, 2 s.
    result["setup"]["target_accuracy"] = 0.75
    cards = [(c.title, c.figure, c.text) for c in page.cards(page.report([result]))][-2:]
    assert cards == [
        ("Accuracy", "+12.5", "percentage points beside Horovod fp32, after as many epochs"),
        ("Accuracy", "5.0 \u00d7", "as fast to the stated accuracy as Horovod fp32"),
    ]
    texts = read(result).texts
    assert {"to target", "2.0 s", "10.0 s"} <= set(texts)
    result["setup"]["target_accuracy"] = 0.8  # which fp32 does not reach
    titles = [card.text for card in page.cards(page.report([result]))]
    assert not any("stated" in title for title in titles)


def test_where_the_vote_loses_is_told_by_name() -> None:
    assert findings.losses(CALLS) == [
        ("Horovod fp32", "2.00 times as fast", "1 KiB of fp32"),
    ]
    model = "a network of 9 weights on Some <Data>"
    assert findings.losses(TRAINING) == [
        ("Horovod fp32", "75.00 % right instead of 62.50 %", model),
        ("DDP", "2.00 times as fast", f"an epoch of {model}"),
    ]
    wide = literal.allreduce({"fp32": [0.001, 0.002, 0.03], "vote": [0.004, 0.003, 0.01]})
    ((_, better, where),) = findings.losses(wide)
    assert (better, where) == ("up to 4.00 times as fast", "2 of 3 sizes, 1 KiB to 2 KiB of fp32")
    shown = page.report([CALLS, TRAINING])
    assert shown.score == (2, 6)  # two sizes with two others each, and two others in the training
    texts = read(CALLS, TRAINING).texts
    assert "2 of 6" in texts
    assert "75.00 % right instead of 62.50 %" in texts


def test_a_vote_that_never_loses_is_not_said_to() -> None:
    best = literal.allreduce({"fp32": [0.002], "vote": [0.001]})
    assert "0 of 1" in read(best).texts
    assert any(text.startswith("Nowhere in these results") for text in read(best).texts)


def test_the_plain_vote_is_compared_whatever_other_votes_do() -> None:
    several = literal.allreduce({"vote-zero": [0.001], "vote": [0.004], "fp32": [0.002]})
    (held,) = findings.contests(several)
    assert (held.ours.name, [other.name for other in held.others]) == ("vote", ["fp32"])
    with_momentum = literal.allreduce({"signum": [0.001], "vote": [0.004], "fp32": [0.002]})
    (held,) = findings.contests(with_momentum)
    assert (held.ours.name, [other.name for other in held.others]) == ("vote", ["fp32"])
    assert findings.contests(literal.allreduce({"vote": [1.0]})) == []


def test_frameworks_stand_beside_each_other_and_repetitions_apart() -> None:
    other = literal.training(literal.trained("vote", (1.0, 0.5, 0.9)), framework="tensorflow")
    shown = page.report([TRAINING, other, TRAINING])
    assert [len(section.results) for section in shown.sections] == [2, 1]
    assert [section.id for section in shown.sections] == [
        "training-1e+09-4",
        "training-1e+09-4-2",
    ]
    reader = read(TRAINING, other)
    assert {"PyTorch", "TensorFlow", "majority vote, TensorFlow: 90.0 %"} <= set(reader.texts)


def test_what_is_true_of_one_framework_alone_is_said_so() -> None:
    versions = {"python": "3.11.7", "tensorflow": "2.21.0", "keras": "3.12.0", "git": "0123abc"}
    other = literal.training(
        {**literal.trained("fp32", (2.0, 1.0, 0.5)), "label": "MPI fp32"},
        {**literal.trained("vote", (1.0, 0.5, 0.9)), "replicas_equal": False},
        framework="tensorflow",
        runtime="mpi",
        versions=versions,
    )
    (section,) = page.report([TRAINING, other]).sections
    assert section.where.endswith("; PyTorch and TensorFlow 2.21")
    assert section.warnings == [
        "TensorFlow 2.21: WARNING: the workers' weights differ at the end: majority vote."
    ]
    assert {
        "PyTorch: Framework: ranks of Horovod.",
        "TensorFlow 2.21: Framework: tensorflow 2.21.0, keras 3.12.0, ranks of hvd_sign's own "
        "runtime on MPI, without Horovod.",
        "Learning rates fall linearly to zero over the training.",
    } <= set(section.notes)
    assert len(section.notes) == len(set(section.notes))
    losses = [(d.framework, d.loss.other) for d in page.report([TRAINING, other]).losses]
    assert losses == [("PyTorch", "Horovod fp32"), ("PyTorch", "DDP")]
    # Each vote beside the fp32 of its own run.
    texts = read(TRAINING, other).texts
    assert {"Horovod fp32, 5 s", "MPI fp32, 2 s"} <= set(texts)
    assert "majority vote, TensorFlow 2.21: 90.0 %" in texts


def test_what_is_not_shown_is_said() -> None:
    needed = page.report([CALLS]).missing
    assert len(needed) == 5
    assert "accuracy against time needs a training result with accuracies" in needed
    assert not any(text.startswith("time against size") for text in needed)
    assert "What is not shown" in read(CALLS).texts


def test_warnings_are_not_hidden_among_the_notes() -> None:
    apart = json.loads(json.dumps(TRAINING))
    apart["methods"][1]["replicas_equal"] = False
    (section,) = page.report([apart]).sections
    assert section.warnings == ["WARNING: the workers' weights differ at the end: majority vote."]


@pytest.mark.parametrize("result", [CALLS, literal.overlap()])
def test_every_column_is_explained(result: dict) -> None:
    (section,) = page.report([result]).sections
    columns = {column.replace("\n", " ") for column in section.grids[0].columns}
    assert columns == set(glossary.COLUMNS[result["kind"]])


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_the_command(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "a result"
    folder.mkdir()
    results.save(folder, TRAINING)
    calls = write(tmp_path, "calls.json", CALLS)
    out = tmp_path / "deep" / "out"
    twice = [str(folder), str(folder / "result.json"), str(calls), str(calls)]
    assert report.main([*twice, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "allreduce-1e+09-4-allreduce-speedup.png",
        "allreduce-1e+09-4-allreduce.png",
        "index.html",
        "training-1e+09-4-accuracy.png",
        "training-1e+09-4-epoch-time.png",
    ]
    assert "A network of 9 weights on Some <Data>" in Reader((out / "index.html").read_text()).texts
    printed = capsys.readouterr().out
    assert "majority vote" in printed
    assert str(out / "index.html") in printed.replace("\n", "")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema_version": 1}, "expected schema_version 2, got 1"),
        ({"kind": "kernels"}, "expected a result of kind training, allreduce, overlap, got 'ker"),
        ({"methods": []}, "$.methods: [] should be non-empty"),
        ({"network": None}, "$.network: None is not of type 'object'"),
        ({"setup": {}}, "$.setup: 'model_text' is a required property"),
    ],
)
def test_what_is_no_result_is_refused_before_anything_is_written(
    tmp_path: Path, capsys, change: dict, sentence: str
) -> None:
    good = write(tmp_path, "good.json", CALLS)
    bad = write(tmp_path, "bad.json", {**TRAINING, **change})
    assert report.main([str(good), str(bad), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"report: {bad}")
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_folder_that_cannot_be_made(tmp_path: Path, capsys) -> None:
    assert report.main([str(tmp_path / "nothing.json")]) == 2
    assert f"report: cannot read {tmp_path / 'nothing.json'}" in capsys.readouterr().err
    good = write(tmp_path, "good.json", CALLS)
    assert report.main([str(good), "--out", str(good / "out")]) == 2
    assert "report: --out: cannot write to" in capsys.readouterr().err


def test_damage_inside_an_epoch_is_found(tmp_path: Path) -> None:
    damaged = json.loads(json.dumps(TRAINING))
    damaged["methods"][1]["epochs"][0]["seconds"] = "fast"
    with pytest.raises(ResultError, match=r"methods\[1\]\.epochs\[0\]\.seconds: 'fast' is not of"):
        results.load(write(tmp_path, "damaged.json", damaged))
