"""`ed-dpm figure`: the CSV beside a figure against hand computation, the PNG as a picture, bad input in one line."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.figures import inputs, style
from experiments.figures.inputs import SERIES, Trace
from experiments.figures.vanishing_points import vanishing_points
from tests.support.figures import (
    STEPS,
    check_picture,
    figure,
    make_sweep_table,
    make_trace,
    read_table,
    refused,
    sweep_rows,
)

pytest.importorskip("matplotlib")


@pytest.mark.slow
def test_vanishing(tmp_path):
    path = make_trace(tmp_path / "a.npz")
    other = make_trace(tmp_path / "b.npz", channels=3, seed=1, steps=STEPS[::2])
    old = make_trace(tmp_path / "old.npz", maps=0, y=None, scale=np.zeros((6, 50), np.float32))  # zeros on a log axis
    out = tmp_path / "new" / "figure.png"
    written = figure("vanishing", f"$a={path}", f"_b={other}", f"old={old}", "--out", out)
    assert written == [out, out.with_suffix(".csv")]
    check_picture(out)
    rows = read_table(written[1])
    assert [row["trace"] for row in rows] == ["$a"] * 50 + ["_b"] * 25 + ["old"] * 50
    trace = np.load(path)
    for step in (0, 17, 49):
        row, values = rows[step], {name: sorted(map(float, trace[name][:, step])) for name in SERIES}
        assert int(row["t"]) == STEPS[step]
        assert float(row["entropy_ratio"]) == pytest.approx(sum(values["entropy_ratio"]) / 6, rel=1e-6)
        for name in ("grad_norm", "scale", "relative_guidance"):
            v = values[name]  # of 6: the median is between the third and the fourth, the quartiles at 1.25 and 3.75
            expected = (v[1] + 0.25 * (v[2] - v[1]), (v[2] + v[3]) / 2, v[3] + 0.75 * (v[4] - v[3]))
            found = [float(row[f"{name}{end}"]) for end in ("_low", "", "_high")]
            assert found == pytest.approx(expected, rel=1e-6)


def test_vanishing_without_guidance(tmp_path):
    """A trace at scale 0 has neither gradient nor guidance, and one of nan has no more to show."""
    none = np.zeros((6, 50), np.float32)
    path = make_trace(tmp_path / "a.npz", scale=none, relative_guidance=none, grad_norm=none + np.nan)
    picture, data = figure("vanishing", f"a={path}", "--out", tmp_path / "f.png")
    check_picture(picture)
    assert {(row["scale"], row["grad_norm"]) for row in read_table(data)} == {("0", "nan")}


def brute_force(norm, entropy, t, threshold, certain):
    """The three definitions of one sample, word for word."""
    first = [t[i] for i in range(len(t)) if norm[i] < threshold]
    stays = [t[i] for i in range(len(t)) if all(n < threshold for n in norm[i:])]
    both = [
        t[i] for i in range(len(t))
        if all(n < threshold and h < certain for n, h in zip(norm[i:], entropy[i:], strict=True))
    ]  # fmt: skip
    return [max(points, default=math.nan) for points in (first, stays, both)]


def test_vanishing_points_are_those_of_a_loop():
    rng = np.random.RandomState(3)
    t = STEPS[::5]
    norm = np.where(rng.rand(500, 10) < rng.rand(500, 1), 0.01, 1.0)
    entropy = np.where(rng.rand(500, 10) < 0.8, 0.05, 0.5)
    norm[0], norm[1], entropy[2], norm[3, -1] = 0.01, 1.0, 0.5, np.nan
    found = vanishing_points(
        Trace("", Path(), t, {"grad_norm": norm, "entropy_ratio": entropy}, None), threshold=0.15, entropy=0.1
    )
    expected = [brute_force(norm[i], entropy[i], t, 0.15, 0.1) for i in range(500)]
    assert list(found) == ["first_below", "stays_below", "stays_below_certain"]
    np.testing.assert_array_equal(np.stack(list(found.values()), axis=1), np.array(expected))
    assert len({tuple(row) for row in expected}) > 20


@pytest.mark.slow
@pytest.mark.parametrize("steps", [STEPS, STEPS[:1], np.arange(999, -1, -4)], ids=len)
def test_vanishing_points(tmp_path, steps):
    norm = np.full((4, len(steps)), 0.5, np.float32)
    norm[1, 0], norm[2:] = 0.05, 0.05
    entropy = np.full_like(norm, 0.05)
    entropy[3] = 0.9
    path = make_trace(tmp_path / "a.npz", samples=4, steps=steps, maps=0, grad_norm=norm, entropy_ratio=entropy)
    picture, data = figure("vanishing-points", f"a={path}", f"b={path}", "--out", tmp_path / "f.png")
    check_picture(picture)
    top = str(steps[0])
    once = top if len(steps) == 1 else ""  # with one step, below once is below until the end
    points = [("", "", ""), (top, once, once), (top, top, top), (top, top, "")]
    assert [tuple(row.values()) for row in read_table(data)] == [
        (trace, str(sample), *points[sample]) for trace in "ab" for sample in range(4)
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_maps(tmp_path, channels):
    a = make_trace(tmp_path / "a.npz", channels=channels)
    b = make_trace(tmp_path / "b.npz", channels=channels, seed=1)
    out = tmp_path / "f.png"
    picture, data = figure("gradient-maps", f"UADM-G={a}", f"EDS={b}", "--count", 2, "--out", out)
    grey = check_picture(picture)
    rows = read_table(data)
    assert [(r["sample"], r["trace"], r["t"]) for r in rows] == [
        (str(sample), label, t) for sample in range(2) for label in ("UADM-G", "EDS") for t in ("980", "480", "0")
    ]
    g = np.load(b)["map_guidance"][1, 2].astype(np.float64).ravel().tolist()
    row = rows[-1]
    assert row["class"] == "1"
    assert float(row["rms"]) == pytest.approx(math.sqrt(sum(v * v for v in g) / len(g)), rel=1e-5)
    assert float(row["max"]) == pytest.approx(max(abs(v) for v in g), rel=1e-5)
    assert float(row["saturated"]) == pytest.approx(sum(abs(50 * v) > 1 for v in g) / len(g), rel=1e-5)
    figure("gradient-maps", f"UADM-G={a}", f"EDS={b}", "--count", 2, "--out", out, "--magnify", 1e-9)
    flat = check_picture(out)  # hardly anything but mid grey
    assert abs(flat.astype(int) - 128).min() <= 1
    assert (abs(flat.astype(int) - 128) <= 1).mean() > 0.3 > (abs(grey.astype(int) - 128) <= 1).mean()


def test_gradient_maps_that_do_not_belong_together(tmp_path):
    a, shape = make_trace(tmp_path / "a.npz"), (2, 3, 1, 4, 5)
    noise = make_trace(tmp_path / "noise.npz", map_x_t=np.zeros(shape, np.float32))
    refused("do not start from the same noise", "gradient-maps", f"a={a}", f"b={noise}", "--count", 1)
    classes = make_trace(tmp_path / "classes.npz", y=np.full(6, 5))
    refused("not have the same classes", "gradient-maps", f"a={a}", f"b={classes}", "--count", 1)
    steps = make_trace(tmp_path / "steps.npz", map_t=np.tile([980, 500, 0], (2, 1)))
    refused(r"\[980, 480, 0\] and \[980, 500, 0\]", "gradient-maps", f"a={a}", f"b={steps}", "--count", 1)
    colour = make_trace(tmp_path / "colour.npz", channels=3)
    refused("as .C, H, W.", "gradient-maps", f"a={a}", f"b={colour}", "--count", 1)
    old = make_trace(tmp_path / "old.npz", maps=0, y=None)
    refused("found no y, map_t, .* --trace_samples", "gradient-maps", f"a={a}", f"b={old}", "--count", 1)
    refused("one trace", "gradient-maps", f"a={a}")
    refused("--count: found 3, expected 1 to 2", "gradient-maps", f"a={a}", f"b={a}")


@pytest.mark.parametrize("channels", [1, 3])
def test_compare(tmp_path, channels):
    images = np.random.RandomState(0).randint(0, 256, (12, 6, 8, channels)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images, np.arange(12) % 4)
    np.savez(tmp_path / "b.npz", 255 - images, np.arange(12) % 4)
    names = tmp_path / "names.txt"
    names.write_text("cat\nsulphur-crested cockatoo\n$x$\nalp\n")
    both = [f"A={tmp_path}/a.npz", f"B={tmp_path}/b.npz"]
    picture, data = figure("compare", *both, "--class_names", names, "--samples", "5,2", "--out", tmp_path / "f.png")
    check_picture(picture)
    rows = read_table(data)
    assert [(r["label"], r["sample"], r["class"], r["class_name"]) for r in rows] == [
        (label, *rest) for label in "AB" for rest in (("5", "1", "sulphur-crested cockatoo"), ("2", "2", "$x$"))
    ]
    assert rows[0]["sha256"] == hashlib.sha256(images[5].tobytes()).hexdigest()
    pixels = [255 - int(v) for v in images[2].ravel()]
    mean = sum(pixels) / len(pixels)
    assert float(rows[3]["mean"]) == pytest.approx(mean, rel=1e-5)
    variance = sum((v - mean) ** 2 for v in pixels) / len(pixels)
    assert float(rows[3]["std"]) == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert len(read_table(figure("compare", *both, "--out", tmp_path / "g.png")[1])) == 20

    np.savez(tmp_path / "c.npz", images, np.arange(12) % 3)
    refused("different labels", "compare", both[0], f"C={tmp_path}/c.npz")
    np.savez(tmp_path / "d.npz", images)
    refused("different labels", "compare", both[0], f"D={tmp_path}/d.npz")
    np.savez(tmp_path / "e.npz", images[:, :4], np.arange(12) % 4)
    refused("expected the same shape", "compare", both[0], f"E={tmp_path}/e.npz")
    refused("--samples: found 12, expected less than 12", "compare", *both, "--samples", "0,12")
    refused("found 1,x", "compare", *both, "--samples", "1,x")
    names.write_text("cat\n")
    refused("--class_names: found 1 names", "compare", *both, "--class_names", names)


@pytest.mark.slow
def test_figures_take_folders(tmp_path):
    """A run's folder and images as the evaluator does, a run's folder for its trace, a report's for its table."""
    images = np.random.RandomState(0).randint(0, 256, (4, 6, 8, 3)).astype(np.uint8)
    run, pictures = tmp_path / "run", tmp_path / "pictures"
    run.mkdir()
    pictures.mkdir()
    np.savez(run / "samples_4x6x8x3.npz", images, np.arange(4))
    Image.fromarray(images[0]).save(run / "samples_4x6x8x3.png")
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(pictures / f"{number}_{number}.png")
    rows = read_table(figure("compare", f"A={run}", f"B={pictures}", "--out", tmp_path / "f.png")[1])
    assert [(row["label"], row["class"]) for row in rows] == [(label, str(i)) for label in "AB" for i in range(4)]
    assert rows[:4] == [row | {"label": "A"} for row in rows[4:]]

    refused("run: a folder, found no trace in it, expected one", "vanishing", f"a={run}")
    make_trace(run / "trace.npz")
    check_picture(figure("vanishing-points", f"a={run}", "--out", tmp_path / "g.png")[0])
    make_trace(run / "other.npz")
    refused(r"found 2 traces \(other.npz, trace.npz\) in it, expected one", "vanishing", f"a={run}")
    refused("a folder with a run in it", "compare", f"A={tmp_path}")

    make_sweep_table(run / "runs.csv", *sweep_rows())
    assert read_table(figure("sweep", run, "--out", tmp_path / "h.png")[1])


@pytest.mark.slow
def test_sweep(tmp_path):
    table = make_sweep_table(tmp_path / "runs.csv", *sweep_rows())
    picture, data = figure("sweep", table, "--out", tmp_path / "f.png")
    check_picture(picture)
    columns = ("rule", "classifier_scale", "guidance_factor", "seeds", "fid", "half_range", "best")
    assert [tuple(row[name] for name in columns) for row in read_table(data)] == [
        ("entropy", "2", "", "2", "12.5", "0.5", "False"),
        ("entropy", "5", "", "2", "9.5", "0.5", "True"),
        ("entropy", "10", "", "2", "14.5", "0.5", "False"),
        ("timestep", "1", "0.1", "2", "20.1", "0", "True"),
        ("timestep", "1", "0.2", "2", "20.2", "0", "False"),
        ("gradnorm", "1", "300", "1", "30", "0", "True"),
    ]
    for mark in ("", "False", "True", "SMOKE RUN"):
        make_sweep_table(table, *sweep_rows(mark))
        with Image.open(figure("sweep", table, "--out", tmp_path / "f.png")[0]) as image:
            top = np.asarray(image.convert("RGB"))[:60]
        assert ((top == (0xC2, 0x41, 0x0C)).all(axis=2).sum() > 500) == (mark not in ("", "False"))  # a red title
    assert len(read_table(figure("sweep", table, "--runs", "e-*", "--out", tmp_path / "f.png")[1])) == 3


def test_sweep_takes_the_highest_of_other_metrics(tmp_path):
    table = make_sweep_table(tmp_path / "runs.csv", *sweep_rows())
    table.write_text(table.read_text().replace("fid", "recall"))
    rows = read_table(figure("sweep", table, "--metric", "recall", "--out", tmp_path / "f.png")[1])
    assert [row["classifier_scale"] for row in rows if row["rule"] == "entropy" and row["best"] == "True"] == ["10"]


def test_tables_that_are_no_sweep(tmp_path):
    def table(*rows) -> Path:
        return make_sweep_table(tmp_path / "runs.csv", *rows)

    row = ("a", 0, 50, "c", "entropy", 2, "", 9, "")
    refused("runs a and b are the same point", "sweep", table(row, ("b", *row[1:])))
    refused("one seed twice", "sweep", table(row, row))
    refused("found guidance magic", "sweep", table((*row[:4], "magic", *row[5:])))
    refused("found fid 'x', expected a number", "sweep", table((*row[:7], "x", "")))
    refused("found guidance_factor ''", "sweep", table((*row[:4], "range", *row[5:])))
    refused("no guided run", "sweep", table(("plain", 0, 50, "", "", "", "", 40, "")))
    refused("no guided run z", "sweep", table(row), "--runs", "z")
    refused("found no column accuracy", "sweep", table(row), "--metric", "accuracy")
    refused("invalid choice", "sweep", table(row), "--metric", "beauty")
    refused("would replace", "sweep", table(row), "--out", tmp_path / "runs.png")
    refused("cannot be read", "sweep", tmp_path / "none.csv")


@pytest.mark.slow
def test_bad_input(tmp_path):
    good = make_trace(tmp_path / "a.npz")
    for name in ("vanishing", "vanishing-points", "gradient-maps", "compare"):
        refused("expected LABEL=FILE", name, good)
        refused("none.npz: no such file", name, f"a={tmp_path}/none.npz")
        refused("different labels", name, f"a={good}", f"a={good}")
        refused("are required", name)
        for junk in (b"", b"no archive", good.read_bytes()[:-90]):
            (tmp_path / "junk.npz").write_bytes(junk)
            refused("junk.npz: not a readable npz", name, f"a={tmp_path}/junk.npz", f"b={good}")
        np.savez(tmp_path / "pickled.npz", t=np.array([{}], dtype=object), y=[None], arr_0=np.array([None]))
        refused("pickled.npz: not a readable npz", name, f"a={tmp_path}/pickled.npz", f"b={good}")
        np.savez(tmp_path / "empty.npz", other=1)
        refused("empty.npz: found no ", name, f"a={tmp_path}/empty.npz", f"b={good}")
    refused("--sample: found 2, expected 0 to 1", "vanishing", f"a={good}", "--sample", 2)
    refused("--out: found f.pdf", "vanishing", f"a={good}", "--out", "f.pdf")
    refused(r"f\.png: cannot be written", "vanishing", f"a={good}", "--out", good / "f.png")
    for changed, match in (
        ({"scale": np.zeros((6, 3))}, "found scale of shape"),
        ({"t": STEPS}, "found t of shape"),
        ({"t": np.tile(STEPS[::-1], (6, 1))}, "decreasing"),
        ({"map_t": None}, "found no map_t"),
        ({"map_x_t": np.zeros((2, 3, 1, 4))}, r"map_x_t \[2, 3, 1, 4\]"),
    ):
        refused(match, "vanishing", f"a={make_trace(tmp_path / 'bad.npz', **changed)}")


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trace = make_trace(tmp_path / "a.npz")
    refused("matplotlib: not installed", "vanishing", f"a={trace}", "--out", tmp_path / "f.png")
    assert not list(tmp_path.glob("*.png")) and not list(tmp_path.glob("*.csv"))


@pytest.mark.slow
def test_class_names_of_the_run(tmp_path, monkeypatch):
    """From a config.json, or from the checkpoints that run.json names; the pictures of every figure use them."""
    (tmp_path / "classifier").mkdir()
    config = tmp_path / "classifier" / "config.json"
    config.write_text(json.dumps({"class_names": ["cat", "dog", "owl"], "num_classes": 5}))
    paths = [make_trace(tmp_path / f"{name}.npz", seed=seed) for seed, name in enumerate("ab")]
    files = [inputs.labelled(f"{path.stem}={path}") for path in paths]
    assert inputs.read_class_names(None, files) is None
    assert inputs.read_class_names(config) == ["cat", "dog", "owl", "class 3", "class 4"]
    run = {"classifier_path": str(tmp_path / "classifier" / "model.pt"), "model_path": "not/there.pt"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    names = inputs.read_class_names(None, files)
    assert [inputs.class_name(names, label) for label in range(5)] == ["cat", "dog", "owl", "class 3", "class 4"]

    titles = []
    picture_grid = style.picture_grid
    monkeypatch.setattr(
        style, "picture_grid", lambda axes, blocks, **rest: titles.extend(b[0] for b in blocks) or
        picture_grid(axes, blocks, **rest),
    )  # fmt: skip
    figure("vanishing", f"a={paths[0]}", "--sample", 1, "--out", tmp_path / "f.png")
    figure("gradient-maps", *(f"{p.stem}={p}" for p in paths), "--count", 1, "--out", tmp_path / "f.png")
    figure("vanishing", f"a={paths[0]}", "--class_names", config, "--out", tmp_path / "f.png")
    assert titles == ["a: sample 1, dog", "sample 0, cat", "a: sample 0, cat"]
    for content, line in {
        "{}": "other.json: found no class_names",
        '{"class_names": [1]}': "model.pt: config.json beside it has class_names that are no list of up to 1000 names",
        '{"class_names": ["a"], "num_classes": "2"}': "has num_classes '2', expected a whole number from 1",
    }.items():
        (tmp_path / "other.json").write_text(content)
        refused(line, "vanishing", f"a={paths[0]}", "--class_names", tmp_path / "other.json")


@pytest.mark.slow
def test_the_band_of_vanishing_is_explained(tmp_path, monkeypatch):
    from matplotlib.figure import FigureBase

    told = []
    legend = FigureBase.legend
    monkeypatch.setattr(FigureBase, "legend", lambda *a, **rest: told.append(rest["title"]) or legend(*a, **rest))
    figure("vanishing", f"a={make_trace(tmp_path / 'a.npz', maps=0)}", "--out", tmp_path / "f.png")
    assert told == ["bands: the middle half of the samples"]
