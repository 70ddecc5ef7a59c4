"""A small book of recipes and a folder of results with known numbers, for the tests that read them."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.spec import REPORTED, Network, Row, Run, Spec, Table

MODEL_SHA, CLASSIFIER_SHA, REFERENCE_SHA, JUDGE_SHA = "a1" * 32, "b2" * 32, "c3" * 32, "d4" * 32
COMMIT = "0123456789ab-dirty"


def make_run(name: str, classifier: str | None = "classifier", **flags) -> Run:
    return Run(name, "model", "ref.npz", {"num_samples": 1000, "timestep_respacing": "ddim25"} | flags, classifier)


RUNS = {
    run.name: run
    for run in (
        make_run("plain", classifier_scale=10.0, use_ddim=True),
        make_run("entropy-2", classifier_scale=2.0, eds=True),
        make_run("entropy-4", classifier_scale=4.0, eds=True),
        make_run("entropy-6", classifier_scale=6.0, eds=True),
        make_run("range-5", classifier_scale=1.0, guidance="range", guidance_factor=5.0, guidance_until=700),
        make_run("range-10", classifier_scale=1.0, guidance="range", guidance_factor=10.0, guidance_until=700),
        make_run("norm", classifier_scale=1.0, guidance="gradnorm", guidance_factor=300.0, guidance_norm=0.2),
        make_run("unguided", None, timestep_respacing="250"),
    )
}
NONE = {}
PAPER = dict(zip(REPORTED, (20.0, 7.0, 84.5, 0.71, 0.5), strict=True))
TABLES = (
    Table(
        "main",
        "The main table",
        (
            Row("main/cited", "Cited | elsewhere", {"fid": 36.51}, NONE),
            Row("main/plain", "Plain", PAPER, {"fid": 20.1}, "plain", "pub.npz"),
            Row("main/unguided", "Unguided", {"fid": 11.0}, NONE, "unguided"),
            Row("main/others", "Others", {"fid": 6.0}, NONE, None, "others.npz", "ref.npz"),
        ),
        "A note on the table.",
    ),
    Table(
        "rules",
        "The rules",
        (
            Row("rules/constant", "Baseline", {"fid": 20.0}, NONE, "plain"),
            Row("rules/range", "Range", {"fid": 19.0}, NONE, sweep=("range-5", "range-10")),
            Row("rules/entropy", "Entropy", {"fid": 16.0}, NONE, sweep=("entropy-2", "entropy-4", "entropy-6")),
            Row("rules/norm", "Norm", NONE, NONE, "norm"),
        ),
    ),
)
NETWORKS = {
    "model": Network("model", "model.pt", 1, {"image_size": 256, "class_cond": True, "use_fp16": True}),
    "classifier": Network("classifier", "classifier.pt", 1, {"image_size": 256}),
    "ect": Network("ect", "ect.pt", 1, {"image_size": 256}),
}
BOOK = Spec("A paper", "imagenet", NETWORKS, RUNS, {table.name: table for table in TABLES}, (0, 1))


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def put_metrics(out: Path, name: str, n: int, fid: float, **values) -> None:
    metrics = {
        "fid": fid, "sfid": 8.0, "inception_score": 90.0, "precision": 0.7, "recall": 0.6, "accuracy": None,
        "n_reference": 10_000, "n_samples": n, "engine": "inception", "reference": "/elsewhere/models/ref.npz",
        "samples": f"/made/{name}.npz",
    }  # fmt: skip
    write_json(out / "metrics" / f"{name}.json", metrics | values)


def put_step(out: Path, name: str, command: list[str], inputs: dict, **values) -> None:
    record = {
        "command": command, "commit": COMMIT, "device": "8 x NVIDIA H100", "finished": "2026-01-01T00:00:00+0000",
        "seconds": 500.0, "processes": 4, "inputs": inputs, "outputs": {},
    }  # fmt: skip
    write_json(out / "steps" / f"{name}.json", record | values)


def put_run(out: Path, run: str, *fids: float, n: int = 1000, **step) -> None:
    """Metrics and records of a run, a seed for each FID."""
    for seed, fid in enumerate(fids):
        name = f"{run}-seed{seed}-{n}"
        put_metrics(out, name, n, fid)
        files = {"models/ref.npz": REFERENCE_SHA, "models/graph.pb": JUDGE_SHA}
        put_step(out, f"evaluate-{name}", ["python", "evaluator.py", "--inception", "models/graph.pb"], files)
        command, inputs = ["mpiexec", "sample.py", "--model_path", "models/model.pt"], {"models/model.pt": MODEL_SHA}
        if RUNS[run].classifier:
            command += ["--classifier_path", "networks/ect/model000019.pt"]
            inputs["networks/ect/model000019.pt"] = CLASSIFIER_SHA
        put_step(out, f"sample-{name}", command, inputs, **step)
