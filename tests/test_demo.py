"""The demo: its split, its plan, and a short run from the data to the report."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from demo import conclusions, digits  # noqa: E402
from demo.plan import CONFIGURATIONS, FULL, MODEL, QUICK, TRACED_SCALE, Configuration, Plan  # noqa: E402
from demo.results import LOW_ENTROPY, METRICS, VANISHED_NORM, Results, Score, read_results  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def test_parts_are_disjoint_cover_everything_and_hold_all_classes():
    _, labels = digits.load_images()
    parts = digits.split(labels)
    together = np.concatenate(list(parts.values()))
    assert len(together) == 1797
    assert set(together) == set(range(1797))
    for numbers in parts.values():
        shares = np.bincount(labels[numbers], minlength=10) / len(numbers)
        assert shares == pytest.approx(np.bincount(labels) / len(labels), abs=0.01)


def test_images_use_the_whole_range():
    images, _ = digits.load_images()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.uint8)
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}


def test_shipped_model_is_small():
    assert (ROOT / MODEL).stat().st_size <= 3e6


def test_thirteen_configurations_four_of_them_traced_at_one_scale():
    assert len(CONFIGURATIONS) == len({c.name for c in CONFIGURATIONS}) == 13
    traced = [c for c in CONFIGURATIONS if c.traced]
    assert [c.scale for c in traced] == [TRACED_SCALE] * 4
    assert len({(c.classifier, c.rule) for c in traced}) == 4


def test_seeds_are_shared_by_all_configurations():
    commands = [step.command for step in Plan(Path("out"), FULL).sampling()]
    seeds = [command[command.index("--seed") + 1] for command in commands]
    assert seeds == ["0", "1"] * 13


def scores(fid: tuple[float, float]) -> dict[str, Score]:
    return {metric: Score(fid if metric == "fid" else (0.5, 0.6)) for metric in METRICS}


@pytest.mark.parametrize(
    ("eds_fid", "expected"), [(0.1, "EDS beats"), (0.5, "EDS does not beat"), (0.9, "EDS is worse")]
)
def test_verdict_follows_the_numbers(eds_fid, expected):
    """All configurations at 0.5 but one with EDS, each with seeds 0.04 apart."""
    other = 0.95 if eds_fid == 0.9 else 0.5
    values = {c: 0.5 if c.rule != "eds" else other for c in CONFIGURATIONS}
    values[Configuration("ect", "eds", TRACED_SCALE)] = eds_fid
    results = Results({c: scores((v - 0.02, v + 0.02)) for c, v in values.items()}, scores((0.1, 0.1)), {})
    # Two seeds d apart have a variance of d^2 / 2; so has the difference of two means of two.
    pair = results.best("eds"), results.best("constant")
    assert results.noise(*pair, "recall") == pytest.approx(0.1 / 2**0.5)
    assert 0.04 / 2**0.5 * 0.4 < results.noise(*pair, "fid") < 0.04 / 2**0.5 * 2.5
    assert conclusions.verdict(results).startswith(expected)
    if eds_fid == 0.1:
        assert results.best("eds") == Configuration("ect", "eds", TRACED_SCALE)


def test_one_seed_gives_no_verdict():
    assert conclusions.relation(-1.0, float("nan")) == "of unknown significance (one seed)"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_quick_run(tmp_path):
    command = [sys.executable, str(ROOT / "demo" / "run.py"), "--quick", "--out", str(tmp_path / "a demo")]
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    out = tmp_path / "a demo"

    files = [{path.name for path in (out / "data" / part).iterdir()} for part in digits.PARTS]
    assert len(set.union(*files)) == sum(map(len, files)) == 1797

    report = (out / "report.html").read_text()
    assert str(out / "report.html") in first.stdout
    assert "nan" not in report.split("</table>")[0].split("<table>")[1]
    table_rows = re.findall(r"<tr><td[^>]*>.*?</tr>", report.split("</table>")[0])
    assert len(table_rows) == len(CONFIGURATIONS) + 1  # and real digits
    assert not re.findall(r'(?:src|href)="(?!data:)', report)
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("vanishing", "curves", "samples"))

    results = read_results(Plan(out, QUICK))
    assert np.isfinite([score.values for row in results.scores.values() for score in row.values()]).all()
    for trace in results.traces.values():
        assert trace["entropy_ratio"].shape == (QUICK.num_samples, 5)
        expected = (trace["grad_norm"] < VANISHED_NORM) & (trace["entropy_ratio"] < LOW_ENTROPY)
        assert (trace["vanished"] == expected).all()

    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert first.stdout.count(" s in all") == 1 + 3 + 13 + 14 and " s in all" not in again.stdout
    clash = subprocess.run([*command[:2], "--out", str(out)], capture_output=True, text=True)
    assert clash.returncode == 2
    assert len(clash.stderr.strip().splitlines()) == 1
