"""Which rule, scale and interval of guidance, for given networks, with a budget of images.

    ed-dpm tune --model_path U --classifier_path C --reference R.npz --rules constant,timestep,entropy \\
        --budget 20000 --use_ddim True --timestep_respacing ddim25 --out runs/tune

Any other flag of `ed-dpm sample` (architecture, sampler, batch size, ...) is given to every run. Two thirds of the
images choose, by successive halving; the others show how sure the choice is, on further seeds. After an interruption
the same command resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ed_dpm_patches.config import interval
from ed_dpm_patches.rules import RULES
from evaluations.metrics.registry import METRICS
from experiments.cli import Parser, add_jobs, count
from experiments.runner import Runner
from experiments.spec import ROOT, short
from experiments.steps import claim
from experiments.tune import report
from experiments.tune.runs import Runs
from experiments.tune.search import Search, grid
from guidance_methods.config import SAMPLING_CONFIGS, SECOND_MODELS
from guided_diffusion.config.configs import ModelConfig
from guided_diffusion.config.flags import ParsedFlags
from guided_diffusion.config.flags import Parser as SampleParser
from guided_diffusion.distributed.shutdown import run_main
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import hash_file, read_json
from guided_diffusion.sampling import setup

# What a run gets from its setting.
OWN = (
    "classifier_scale", "eds", "guidance", "guidance_factor", "guidance_interval", "num_samples", "seed", "log_dir",
    "trace",
)  # fmt: skip
FILES = ("model_path", "classifier_path", *SECOND_MODELS, "guidance_file")
CHOOSING_SEED, SEEDS = 101, (1, 2)
CHOOSING = 2 / 3  # of the budget


def main(argv: list[str] | None = None) -> None:
    """Search, confirm, report. InputError for a bad flag, a budget that is too small, or a run that failed."""
    args, parsed = parse(argv)
    parsed = _with_files(parsed)
    model, diffusion = setup.model_configs(parsed, parsed.values.get("model_path", ""), ModelConfig)
    if not parsed.values.get("classifier_path"):
        raise InputError("--classifier_path: missing, expected the path of a checkpoint")
    for rule in {"multi", "negative"} & {*args.rules}:
        if "guidance_classes" not in parsed.values:
            raise InputError(f"--rules {rule}: found without --guidance_classes, expected the classes of that rule")
    arms = grid(args.rules, args.intervals, _centres(args.diagnosis, parsed.values["classifier_path"]))
    search = Search(arms, int(args.budget * CHOOSING))
    if search.budget < search.needed:
        least = int(search.needed / CHOOSING) + 1
        raise InputError(
            f"--budget {args.budget}: found too few images for {len(arms)} settings, expected at least {least}, or "
            "fewer --rules and --intervals"
        )
    out = short(args.out)
    flags = {name: _in_root(value) if name in FILES else value for name, value in parsed.values.items()}
    asked = {name: str(value) for name, value in flags.items()}
    kept = {name: getattr(args, name) for name in ("reference", "budget", "rules", "intervals", "metric", "features")}
    (ROOT / out).mkdir(parents=True, exist_ok=True)
    claim(ROOT / out / "tune.json", {"flags": asked, "tune": {name: str(value) for name, value in kept.items()}})
    evaluator = [word for name in ("features", "inception") if (path := getattr(args, name))
                 for word in (f"--{name}", path)]  # fmt: skip
    runs = Runs(
        Runner(out), out, flags, f"{model.image_size}x{model.image_size}x{model.in_channels}",
        diffusion.diffusion_steps, args.reference, evaluator, args.metric, args.jobs,
    )  # fmt: skip
    ranked = search.run(lambda arms, count: runs.values(arms, count, CHOOSING_SEED))
    arms = [ranked[0], *report.rivals(search, ranked)]
    count = max(search.smallest, (args.budget - search.images) // (len(arms) * len(SEEDS)))
    for seed in SEEDS:
        runs.values(arms, count, seed)
    values = {arm: [runs.figures(arm, count, seed)[args.metric] for seed in SEEDS] for arm in arms}
    against = dict(zip(arms[1:], (runs.compare([arms[0]], rival, count, SEEDS)[0] for rival in arms[1:]), strict=True))
    confirmed = report.Confirmed(count, values, against)
    metric = METRICS[args.metric]
    words = " ".join(f"--{name} {value}" for name, value in runs.guidance(arms[0]).items())
    sign = 1 if metric.lower_is_better else -1
    text = report.sentences(search, confirmed, metric.column, words, sign)
    for path in report.write(search, confirmed, text, metric.column, sign, ROOT / out):
        print(f"report: {path}")
    print("\n".join(text))


def create_parser() -> Parser:
    """Return the parser of the search's own options."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    add = parser.add_argument
    add("--reference", type=_in_root, required=True, metavar="NPZ",
        help="the evaluator's reference: images, statistics or a name")  # fmt: skip
    add("--rules", type=_rules, default=("constant", "timestep", "entropy"), metavar="A,B",
        help=f"of {', '.join(RULES)} (constant,timestep,entropy)")  # fmt: skip
    add("--intervals", type=_intervals, default=("",), metavar="LO,HI;LO,HI",
        help="timesteps with guidance, each with every rule and scale; an empty one is all of them (all)")  # fmt: skip
    add("--budget", type=count, default=20000, metavar="N", help="images in all (20000)")
    tested = [name for name, metric in METRICS.items() if metric.figure]  # the paired test has no others
    add("--metric", choices=tested, default="fid", help="what chooses (fid)")
    add("--features", type=_in_root, metavar="CHECKPOINT", help="the evaluator's network in place of Inception")
    add("--inception", type=_in_root, metavar="PATH", help="the evaluator's frozen Inception graph")
    add("--diagnosis", type=Path, metavar="JSON", help="of `ed-dpm diagnose`: scales to start from")
    add("--out", type=Path, default=Path("runs/tune"), metavar="DIR", help="for all that is made (runs/tune)")
    add_jobs(parser, "runs at a time (1)", default=1)
    return parser


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, ParsedFlags]:
    """Return the options of the search, and the flags of every run. InputError for those that a setting has."""
    args, rest = create_parser().parse_known_args(argv)
    parsed = SampleParser(None, *SAMPLING_CONFIGS).parse(rest)
    if given := [name for name in OWN if name in parsed.values]:
        raise InputError(f"--{given[0]}: found, but every setting has its own, expected none")
    return args, parsed


def _rules(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in RULES]:
        raise argparse.ArgumentTypeError(f"found {unknown[0]!r}, expected of {', '.join(RULES)}")
    return names


def _intervals(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(interval(part) for part in text.split(";")))


def _with_files(parsed: ParsedFlags) -> ParsedFlags:
    """Replace the networks' folders by their files, and local paths by absolute ones."""
    paths = {flag: setup.trained_file(flag, path) for flag in FILES if (path := parsed.values.get(flag))}
    found = {flag: str(Path(path).absolute()) for flag, path in paths.items() if Path(path).exists()}
    return dataclasses.replace(parsed, values=parsed.values | found)


def _in_root(path: str) -> str:
    """Return a local file's path as it is typed in the folder where the runs start; anything else as it is."""
    return str(short(Path(path))) if Path(path).exists() else path


def _centres(path: Path | None, classifier: str) -> dict[str, float]:
    """Return the scale by rule that a diagnosis suggests for a classifier, {} without a diagnosis.

    InputError for another file, and for the diagnosis of other classifiers.
    """
    if path is None:
        return {}
    expected = "expected the JSON of `ed-dpm diagnose`"
    try:
        result = read_json(path)
    except FileNotFoundError:
        raise InputError(f"--diagnosis {path}: no such file, {expected}") from None
    try:
        scales = {
            name: {rule: found["gamma"][0] for rule, found in entry["rules"].items()}
            for name, entry in result["classifiers"].items()
        }
        names = {digest: name for name, digest in result["run"]["networks"].items() if name in scales}
    except (KeyError, TypeError, AttributeError, IndexError):
        raise InputError(f"--diagnosis {path}: found no scales of classifiers, {expected}") from None
    name = names.get(hash_file(classifier))
    if name is None:
        raise InputError(
            f"--diagnosis {path}: found the classifiers {', '.join(scales)}, expected one with the content of "
            f"--classifier_path {classifier}, or no --diagnosis"
        )
    return {rule: scale for rule, scale in scales[name].items() if isinstance(scale, float) and scale > 0}


if __name__ == "__main__":
    run_main(main)
