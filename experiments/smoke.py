"""A smoke run: the same rows and scripts, with networks so small, steps and data so few that it takes minutes.

Every network becomes one of 32 channels that is trained for some steps on 8x8 digits; the published files that
cannot be had that way, references and samples, become digits too. The results mean nothing but that every step of
every row works.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.spec import DIGITS, HELDOUT, Flags, Network, Spec, Training

MARK = "SMOKE RUN"
WARNING = (
    f"{MARK}: made by small stand-ins of the networks, to try all steps. The values mean nothing, and neither do "
    "their differences."
)
SAMPLES = 16  # a run, unless --num_samples says otherwise
_IMAGES, _STEPS = 32, 20  # of a training
# Flags that are not here keep their values.
_BFLOAT16: Flags = {"amp_dtype": "bf16"}  # mixed precision stays on; a CPU takes 10 times as long for float16
_DIGITS: Flags = {"image_size": 8, "in_channels": 1, "num_classes": 10}
_SMALL_MODEL: Flags = {"num_channels": 32, "num_head_channels": 32}
_SMALL_CLASSIFIER: Flags = {"classifier_width": 32, "classifier_num_head_channels": 32}
_FEATURES = Network(
    name="features",
    checkpoint="features",
    parameters=0,
    flags=_DIGITS | _SMALL_CLASSIFIER,
    training=Training(_IMAGES, {"noised": False, "iterations": 2 * _STEPS}, part="evaluator"),
)


def smoke(spec: Spec) -> Spec:
    """The same tables, marked, with stand-ins for networks and data."""
    guiding = {run.classifier for run in spec.runs.values()}
    networks = {
        name: _small_classifier(network) if name in guiding else _small_model(network)
        for name, network in spec.networks.items()
    }
    tables = {
        name: replace(table, title=f"{MARK}: {table.title}", note=f"{WARNING} {table.note}".strip())
        for name, table in spec.tables.items()
    }
    runs = {
        name: replace(run, reference=HELDOUT, flags=_fewer_steps(run.flags) | _BFLOAT16)
        for name, run in spec.runs.items()
    }
    return replace(
        spec, title=f"{MARK}: {spec.title}", data=DIGITS, networks=networks | {_FEATURES.name: _FEATURES},
        features=_FEATURES.name, runs=runs, tables=tables, smoke=True,
    )  # fmt: skip


def _fewer_steps(flags: Flags) -> Flags:
    return flags | {"timestep_respacing": "25"} if flags.get("timestep_respacing") == "250" else flags


def _small_classifier(network: Network) -> Network:
    own = network.training.flags if network.training else {"ect": True} if "ECT" in network.checkpoint else {}
    training = Training(_IMAGES, own | {"iterations": _STEPS} | _BFLOAT16)
    flags = network.flags | _SMALL_CLASSIFIER | _DIGITS
    return replace(network, checkpoint=network.name, parameters=0, flags=flags, training=training, derived=None)


def _small_model(network: Network) -> Network:
    # A network with a number of heads in place of a width of heads keeps it.
    narrower = {name: value for name, value in _SMALL_MODEL.items() if name in network.flags}
    training = {"lr": 1e-3, "lr_anneal_steps": _STEPS, "ema_rate": "0.5"} | _BFLOAT16
    return replace(
        network,
        checkpoint=network.name,
        parameters=0,
        flags=network.flags | narrower | _DIGITS,
        training=Training(_IMAGES, training, script="image_train"),
        derived=None,
    )
