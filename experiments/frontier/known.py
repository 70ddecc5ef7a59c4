"""The best known setting for a budget of work, from the committed results of the study."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.documents import read_csv
from experiments.spec import ROOT
from guided_diffusion.errors import InputError

RESULTS = ROOT / "results" / "frontier"
TABLE = "frontier.csv"


def best_within(work: float, folder: Path) -> Iterator[str]:
    """Lines that name, for each study in a folder, the setting of the lowest FID with at most a share of the work.

    :param work: of upstream's DDIM 25. InputError, naming the file, for a damaged one.
    """
    paths = sorted(folder.glob(f"*/{TABLE}"))
    if not paths:
        yield f"{folder}: no results of the frontier yet: `ed-dpm run frontier` makes them"
    for path in paths:
        known = read_settings(path)
        settings = [setting for setting in known if setting["work"] <= work]
        if not settings:
            least = min((setting["work"] for setting in known), default=math.nan)
            found = f"no setting known with at most {work:g} of the work of DDIM 25 (least: {least:.3f})"
            yield f"{path.parent.name}: {found}"
            continue
        best = min(settings, key=lambda setting: (setting["fid"], setting["work"]))
        change = "{ddim25_percent:+.1f} %, {ddim25_low:+.1f} to {ddim25_high:+.1f}, against DDIM 25".format(**best)
        yield f"{path.parent.name}: {best['setting']}, work {best['work']:.3f}, FID {best['fid']:.4f} ({change})"
        yield f"  {best['flags']}"


def read_settings(path: Path) -> list[dict[str, Any]]:
    """The settings that have a FID and were compared with DDIM 25. InputError, naming the file, for a damaged one."""
    expected = "expected what `ed-dpm run frontier` writes"
    try:
        found = [row for row in read_csv(path, expected)[1] if row["ddim25_percent"]]
        numbers = ("work", "fid", "ddim25_percent", "ddim25_low", "ddim25_high")
        return [
            {"setting": row["setting"], "eds": row["eds"] == "True", "flags": row["flags"]}
            | {name: float(row[name]) for name in numbers}
            for row in found
        ]
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: found {error}, {expected}") from None
