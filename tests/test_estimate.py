"""GPU-hours of a run from what was measured: records of sampling, and benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ed_dpm_patches.reproduce.estimate import gpu_hours, number_of_steps
from guided_diffusion.errors import InputError
from tests.fabricated_results import BOOK, RUNS, make_run, put_run, write_json


def test_gpu_hours_from_a_record(tmp_path):
    put_run(tmp_path, "plain", 20.0, n=100)  # 500 s on 4 GPUs: 20 GPU-seconds an image
    hours, source = gpu_hours(BOOK, RUNS["plain"], tmp_path, tmp_path / "none")
    assert hours == pytest.approx(20 * 1000 / 3600)
    assert source == "measured: 100 samples of plain on 8 x NVIDIA H100"
    longer = replace(RUNS["entropy-2"], classifier="ect", flags=RUNS["entropy-2"].flags | {"timestep_respacing": "50"})
    hours, source = gpu_hours(BOOK, longer, tmp_path, tmp_path / "none")  # same architecture, other weights
    assert hours == pytest.approx(2 * 20 * 1000 / 3600) and source.endswith("H100, 25 steps scaled to 50")
    assert gpu_hours(BOOK, RUNS["unguided"], tmp_path, tmp_path / "none") is None
    put_run(tmp_path, "entropy-4", 20.0, n=1000)  # more images: 2 GPU-seconds each
    assert gpu_hours(BOOK, RUNS["plain"], tmp_path, tmp_path / "none")[0] == pytest.approx(2 * 1000 / 3600)


def test_gpu_hours_ignore_cpus_and_rehearsals(tmp_path):
    put_run(tmp_path / "cpu", "plain", 20.0, device="CPU x86_64, 2 cores")
    put_run(tmp_path / "rehearsal", "plain", 20.0)
    write_json(tmp_path / "rehearsal" / "book.json", {"recipes": "somewhere", "rehearsal": True})
    for name in ("cpu", "rehearsal", "empty"):
        assert gpu_hours(BOOK, RUNS["plain"], tmp_path / name, tmp_path / "none") is None
    assert gpu_hours(BOOK, RUNS["plain"], None, tmp_path / "none") is None
    write_json(tmp_path / "rehearsal" / "book.json", {"recipes": "somewhere", "rehearsal": False})
    assert gpu_hours(BOOK, RUNS["plain"], tmp_path / "rehearsal", tmp_path / "none")


def put_benchmark(results: Path, **values) -> None:
    rows = [
        {"config": "published-256-b8", "part": "guided step", "ours_seconds": 0.8},
        {"config": "published-256-b32", "part": "guided step", "ours_seconds": 1.6},
        {"config": "published-256-b32", "part": "UNet", "ours_seconds": 0.32},
        {"config": "published-256-uncond-b32", "part": "guided step", "ours_seconds": 0.01},
        {"config": "published-64-b32", "part": "guided step", "ours_seconds": 0.01},
        {"config": "64x64", "part": "guided step", "ours_seconds": 0.01},
    ]
    content = {"what": "sampling", "half": True, "device": "NVIDIA H100", "torch": "2.6.0+cu124", "rows": rows}
    write_json(results / "gpu.json", content | values)


def test_gpu_hours_from_a_benchmark(tmp_path):
    put_benchmark(tmp_path)
    hours, source = gpu_hours(BOOK, RUNS["plain"], None, tmp_path)
    assert hours == pytest.approx(1.6 / 32 * 25 * 1000 / 3600)
    assert source == "benchmark: guided step on NVIDIA H100, batches of 32"
    assert gpu_hours(BOOK, RUNS["unguided"], None, tmp_path)[0] == pytest.approx(0.32 / 32 * 250 * 1000 / 3600)
    put_run(tmp_path / "out", "plain", 20.0)
    assert gpu_hours(BOOK, RUNS["plain"], tmp_path / "out", tmp_path)[1].startswith("measured")


@pytest.mark.parametrize(
    "values",
    [{"half": False}, {"what": "training"}, {"device": "AMD EPYC"}, {"torch": "2.6.0+cpu"}, {"rows": []}],
)
def test_gpu_hours_need_a_benchmark_that_fits(tmp_path, values):
    put_benchmark(tmp_path, **values)
    assert gpu_hours(BOOK, RUNS["plain"], None, tmp_path) is None


def test_number_of_steps():
    assert [number_of_steps(make_run("x", timestep_respacing=text)) for text in ("250", "ddim25", "10,15,20")] == [
        250, 25, 45,
    ]  # fmt: skip
    with pytest.raises(InputError, match="x: timestep_respacing: found '25%', expected such as"):
        number_of_steps(make_run("x", timestep_respacing="25%"))
