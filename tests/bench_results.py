"""Literal result files, small enough to work out every figure of them by hand."""

from __future__ import annotations

from typing import Any

LABELS = {"fp32": "Horovod fp32", "fp16": "Horovod fp16", "vote": "majority vote", "ddp": "DDP"}
STATS = {"pack_seconds": 0.25, "exchange_seconds": 1.5, "tally_seconds": 0.125}


def network(rate: float | None, workers: int, mode: str) -> dict[str, Any]:
    on_wire = mode == "cluster"
    return {
        "mode": mode,
        "workers": workers,
        "launcher": "mpirun",
        "why": "asked for",
        "rate": f"{rate:g}" if rate else None,
        "bits_per_second": rate,
        "measured": [rate * 0.9 if rate else 2e10] * workers if on_wire else None,
        "interface": "eth0" if on_wire else None,
    }


def result(kind: str, rate: float | None, workers: int, mode: str, **more: Any) -> dict[str, Any]:
    return {
        "schema_version": 2,
        "kind": kind,
        "framework": "torch",
        "started": "2024-02-29T12:00:00+00:00",
        "command": f"python -m benchmarks.{kind} --rate {rate}",
        "versions": {"python": "3.11.7", "git": "0123abc"},
        "machine": {"cpu": "A CPU", "cores": 2, "memory_bytes": 2**33, "load_before": 0.25},
        "network": network(rate, workers, mode),
        **more,
    }


def allreduce(
    seconds: dict[str, list[float]],
    rate: float | None = 1e9,
    workers: int = 4,
    mode: str = "cluster",
    **more: Any,
) -> dict[str, Any]:
    """Medians of the methods, by size: 1 KiB, 2 KiB and so on; a vote sends size/32, others size.

    Copying memory goes at 1e9 bytes/s.
    """
    sizes = [1024 << place for place in range(len(next(iter(seconds.values()))))]
    measured = [
        {
            "size": size,
            "method": name,
            "label": LABELS.get(name, name),
            "votes": name.startswith("vote"),
            "seconds": [0.5 * medians[place], medians[place], 3 * medians[place]],
            "payload_bytes": size / 32 if name.startswith("vote") else size,
            "wire_bytes": 2 * size,
            "wrong": 0,
        }
        for place, size in enumerate(sizes)
        for name, medians in seconds.items()
    ]
    setup = {"sizes": sizes, "cycle_time": 1.0, "memory_bytes_per_second": 1e9}
    return result("allreduce", rate, workers, mode, setup=setup, measured=measured, **more)


def epoch(seconds: float, wait: float | None, accuracy: float | None, stats: Any) -> dict[str, Any]:
    return {
        "epoch": 0,
        "steps": 10,
        "seconds": seconds,
        "wait_seconds": wait,
        "harness_seconds": 0.001 * seconds,
        "cpu_seconds": 0.4 * seconds,
        "machine_seconds": 1.6 * seconds,
        "payload_bytes": 1e6,
        "wire_bytes": 1.1e6,
        "loss": 1.0,
        "accuracy": accuracy,
        "iterations": [320 / seconds],
        "stats": stats,
    }


def trained(name: str, *epochs: tuple[float, float | None, float | None]) -> dict[str, Any]:
    """A method's training; of each epoch seconds, seconds of waiting and accuracy."""
    vote = name.startswith("vote")
    stats = {**STATS, "apply_seconds": 0.5, "wait_seconds": 1.0, "ties": 7} if vote else None
    return {
        "name": name,
        "label": LABELS.get(name, name),
        "votes": vote,
        "optimizer": f"the optimizer of {name}",
        "payload_source": "counted",
        "replicas_equal": None if name == "local" else True,
        "epochs": [epoch(*figures, stats) for figures in epochs],
    }


def training(
    *methods: dict[str, Any], rate: float | None = 1e9, workers: int = 4, **more: Any
) -> dict[str, Any]:
    setup = {
        "baseline": "fp32",
        "model_text": "a network of 9 weights",
        "data_text": "Some <Data>",
        "data_origin": "a shelf",
        "kind": "images",
        "masked": False,
        "epochs": 2,
        "steps": 10,
        "batch": 8,
        "samples_per_step": 8 * workers,
        "train_samples": 80 * workers,
        "test_samples": 100,
        "warmup": 1,
        "batches_per_iter": 10,
        "turns": "epoch",
        "target_accuracy": None,
    }
    return result("training", rate, workers, "cluster", setup=setup, methods=[*methods], **more)


def overlap() -> dict[str, Any]:
    row = {"method": "vote", "label": "majority vote", "alone": [0.1, 0.2], "backward": [0.4]}
    setup = {"layers": 5, "coordinates": 1000, "cycle_time": 20.0}
    measured = [{**row, "exposed": [0.01, 0.05]}]
    return result("overlap", 1e9, 4, "cluster", setup=setup, measured=measured)
