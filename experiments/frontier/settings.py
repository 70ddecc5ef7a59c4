"""The settings of the study: those of the recipes, and what is tried on the best of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.frontier.work import flops
from experiments.spec import Run, Spec
from guidance_methods.config import SAMPLING_CONFIGS

REFERENCES, GRID = "references", "frontier"  # tables of the recipes; the first reference is the unit of work
# Flags of less work a step, on top of a setting's; those that the sampling scripts do not have are left out.
VARIANTS: tuple[dict[str, int], ...] = (
    {"cache_every": 2}, {"cache_every": 3}, {"guidance_every": 2}, {"cache_every": 2, "guidance_every": 2},
)  # fmt: skip
VARIED = 3  # settings of each rule on which the variants are tried


@dataclass(frozen=True)
class Setting:
    """A run with its work: FLOPs an image as a share of the unit's. fid: at the tuning seed, where that is known."""

    run: Run
    flops: int
    work: float
    fid: float | None = None

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def eds(self) -> bool:
        return bool(self.run.flags.get("eds"))


def references(spec: Spec) -> list[Run]:
    """The runs that settings are compared with, upstream's DDIM 25 first."""
    return [spec.runs[row.run] for row in spec.tables[REFERENCES].rows]


def grid(spec: Spec) -> list[Run]:
    """The runs of the first round: those of the recipes' table, and the first reference."""
    names = [name for row in spec.tables[GRID].rows for name in row.run_names]
    return list({run.name: run for run in [references(spec)[0], *(spec.runs[name] for name in names)]}.values())


def with_work(spec: Spec, runs: Sequence[Run], fids: Mapping[str, float] | None = None) -> list[Setting]:
    """Settings of runs, with their FIDs by name."""
    unit_run = references(spec)[0]
    counts = {name: flops(spec, run) for name, run in {run.name: run for run in (unit_run, *runs)}.items()}
    unit = counts[unit_run.name]
    return [Setting(run, counts[run.name], counts[run.name] / unit, (fids or {}).get(run.name)) for run in runs]


def front(settings: Sequence[Setting]) -> list[Setting]:
    """The Pareto-optimal settings by increasing work: none that costs no more has a lower FID."""
    found: list[Setting] = []
    for setting in sorted(settings, key=lambda one: (one.work, one.fid)):
        if not found or setting.fid < found[-1].fid:
            found.append(setting)
    return found


def fronts(settings: Sequence[Setting]) -> list[Setting]:
    """The Pareto-optimal settings without EDS, then those with it."""
    return [one for eds in (False, True) for one in front([other for other in settings if other.eds == eds])]


def variants(settings: Sequence[Setting]) -> list[Run]:
    """The runs of the second round: `VARIANTS` of the `VARIED` settings with the lowest FID on each rule's front."""
    known = {field.name for config in SAMPLING_CONFIGS for field in dataclasses.fields(config)}
    found = []
    for eds in (False, True):
        best = sorted((one for one in fronts(settings) if one.eds == eds), key=lambda one: one.fid)[:VARIED]
        for flags in (flags for flags in VARIANTS if flags.keys() <= known):
            words = "-".join(f"{name.removesuffix('_every')}{value}" for name, value in flags.items())
            found += [replace(one.run, name=f"{one.name}-{words}", flags=one.run.flags | flags) for one in best]
    return found
