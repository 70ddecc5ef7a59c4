"""Names, signatures, defaults, flags, and the state dicts of the published checkpoints."""

from __future__ import annotations

import argparse
import importlib
import inspect
from functools import partial
from itertools import product

import torch

from benchmarks.upstream import FORK_ONLY_PARAMETERS
from guided_diffusion import script_util
from tests.parity.compare import Case, Cases, Refusal, outcome_of
from tests.parity.published import PUBLISHED

CASES = Cases()
BITWISE = 0.0

# Upstream's public names; RELIED_ON_METHODS adds the methods of classes.
PUBLIC = {
    "dist_util": "setup_dist dev load_state_dict sync_params",
    "fp16_util": """
        convert_module_to_f16 convert_module_to_f32 make_master_params model_grads_to_master_grads
        master_params_to_model_params unflatten_master_params get_param_groups_and_shapes
        master_params_to_state_dict state_dict_to_master_params zero_master_grads zero_grad
        param_grad_or_zeros check_overflow MixedPrecisionTrainer
    """,
    "gaussian_diffusion": """
        get_named_beta_schedule betas_for_alpha_bar ModelMeanType ModelVarType LossType
        GaussianDiffusion _extract_into_tensor
    """,
    "respace": "space_timesteps SpacedDiffusion _WrappedModel",
    "image_datasets": """
        load_data ImageDataset center_crop_arr random_crop_arr _list_image_files_recursively
    """,
    "logger": """
        logkv logkv_mean logkvs dumpkvs getkvs log debug info warn error set_level set_comm get_dir
        record_tabular dump_tabular profile_kv profile get_current Logger configure reset
        scoped_configure make_output_format KVWriter SeqWriter HumanOutputFormat JSONOutputFormat
        CSVOutputFormat TensorBoardOutputFormat get_rank_without_mpi_import mpi_weighted_mean
    """,
    "losses": "normal_kl approx_standard_normal_cdf discretized_gaussian_log_likelihood",
    "nn": """
        SiLU GroupNorm32 conv_nd linear avg_pool_nd update_ema zero_module scale_module mean_flat
        normalization timestep_embedding checkpoint CheckpointFunction
    """,
    "resample": """
        create_named_schedule_sampler ScheduleSampler UniformSampler LossAwareSampler
        LossSecondMomentResampler
    """,
    "script_util": """
        diffusion_defaults classifier_defaults model_and_diffusion_defaults
        classifier_and_diffusion_defaults sr_model_and_diffusion_defaults create_model_and_diffusion
        create_model create_classifier create_classifier_and_diffusion sr_create_model_and_diffusion
        sr_create_model create_gaussian_diffusion add_dict_to_argparser args_to_dict str2bool
    """,
    "train_util": """
        TrainLoop parse_resume_step_from_filename get_blob_logdir find_resume_checkpoint
        find_ema_checkpoint log_loss_dict
    """,
    "unet": """
        AttentionPool2d TimestepBlock TimestepEmbedSequential Upsample Downsample ResBlock
        AttentionBlock QKVAttentionLegacy QKVAttention count_flops_attn UNetModel SuperResModel
        EncoderUNetModel
    """,
}
CONSTANTS = {
    "fp16_util": ("INITIAL_LOG_LOSS_SCALE",),
    "train_util": ("INITIAL_LOG_LOSS_SCALE",),
    "dist_util": ("GPUS_PER_NODE", "SETUP_RETRY_COUNT"),
    "script_util": ("NUM_CLASSES",),
    "logger": ("DEBUG", "INFO", "WARN", "ERROR", "DISABLED"),
}
RELIED_ON_METHODS = {
    "GaussianDiffusion": """
        q_mean_variance q_sample q_posterior_mean_variance p_mean_variance condition_mean
        condition_score p_sample p_sample_loop p_sample_loop_progressive ddim_sample
        ddim_reverse_sample ddim_sample_loop ddim_sample_loop_progressive training_losses
        calc_bpd_loop _vb_terms_bpd _prior_bpd _scale_timesteps _predict_xstart_from_eps
        _predict_xstart_from_xprev _predict_eps_from_xstart
    """,
    "UNetModel": "forward convert_to_fp16 convert_to_fp32",
    "SuperResModel": "forward",
    "EncoderUNetModel": "forward convert_to_fp16 convert_to_fp32",
    "TimestepBlock": "forward",
    "TimestepEmbedSequential": "forward",
    "ResBlock": "forward",
    "AttentionBlock": "forward",
    "QKVAttention": "forward count_flops",
    "QKVAttentionLegacy": "forward count_flops",
    "MixedPrecisionTrainer": """
        zero_grad backward optimize master_params_to_state_dict state_dict_to_master_params
    """,
    "TrainLoop": "run_loop run_step forward_backward log_step save",
    "ScheduleSampler": "weights sample",
    "LossAwareSampler": "update_with_local_losses update_with_all_losses",
    "Logger": "logkv logkv_mean dumpkvs log set_level set_comm get_dir close",
    "LossType": "is_vb",
    "_WrappedModel": "__call__",
}

BUILDERS = {
    "model": ("create_model_and_diffusion", "model_and_diffusion_defaults"),
    "sr": ("sr_create_model_and_diffusion", "sr_model_and_diffusion_defaults"),
    "classifier": ("create_classifier_and_diffusion", "classifier_and_diffusion_defaults"),
}


def our_module(name: str):
    return importlib.import_module(f"guided_diffusion.{name}")


def build(module, builder: str, **flags):
    """(model, diffusion) from the defaults of one implementation, as the scripts build them."""
    function, defaults = (getattr(module, name) for name in BUILDERS[builder])
    return function(**defaults() | flags)


def signature(function) -> list[tuple]:
    """(name, kind, default) of each parameter."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind.name, "none" if p.default is p.empty else p.default) for p in parameters]


def upstream_comes_first(ours, theirs, fork: bool) -> tuple[list, list]:
    """Both signatures; of ours only the parts that a caller of upstream could notice.

    That is the first positional parameters, upstream's keyword-only ones, and any further one that has
    to be given. Parameters that ours adds behind them with a default do not count.
    """
    theirs = [p for p in signature(theirs) if not (fork and p[0] in FORK_ONLY_PARAMETERS)]
    ours = signature(ours)
    names = {name for name, _, _ in theirs}
    positional = [p for p in ours if p[1] != "KEYWORD_ONLY"]
    noticed = positional[: sum(p[1] != "KEYWORD_ONLY" for p in theirs)]
    for p in ours:
        optional = p[2] != "none" or p[1].startswith("VAR_")
        if p not in noticed and (p[0] in names or not optional):
            noticed.append(p)
    return noticed, theirs


def has_signature(theirs) -> bool:
    """Whether upstream wrote the signature, which it did not for enums and layers that inherit torch's constructor."""
    if not inspect.isclass(theirs):
        return True
    return not hasattr(theirs, "__members__") and theirs.__init__ is not torch.nn.Module.__init__


def compare_signatures(peer, module):
    ours, theirs = our_module(module), getattr(peer, module)
    for name in PUBLIC[module].split():
        mine = getattr(ours, name, None)
        if mine is None:
            yield name, "missing", "present"
            continue
        yield f"{name} is a class", inspect.isclass(mine), inspect.isclass(getattr(theirs, name))
        if has_signature(getattr(theirs, name)):
            yield name, *upstream_comes_first(mine, getattr(theirs, name), peer.is_fork)
        for method in RELIED_ON_METHODS.get(name, "").split():
            if not hasattr(mine, method):
                yield f"{name}.{method}", "missing", "present"
                continue
            pair = (getattr(mine, method), getattr(getattr(theirs, name), method))
            yield f"{name}.{method}", *upstream_comes_first(*pair, peer.is_fork)


for module in PUBLIC:
    CASES.append(
        Case(f"names and signatures of {module}", partial(compare_signatures, module=module), BITWISE)
    )


@CASES.add("constants and enum members", BITWISE)
def constants(peer):
    for module, names in CONSTANTS.items():
        for name in names:
            value = getattr(getattr(peer, module), name)
            yield f"{module}.{name}", getattr(our_module(module), name, "missing"), value
    for name in ("ModelMeanType", "ModelVarType", "LossType"):
        sides = (our_module("gaussian_diffusion"), peer.gaussian_diffusion)
        yield name, *({m.name: m.value for m in getattr(side, name)} for side in sides)
    for member in peer.gaussian_diffusion.LossType:
        mine = our_module("gaussian_diffusion").LossType[member.name]
        yield f"is_vb of {member.name}", mine.is_vb(), member.is_vb()


@CASES.add("default flags: names, values and types", BITWISE)
def defaults(peer):
    for name in PUBLIC["script_util"].split():
        if name.endswith("_defaults"):
            yield name, getattr(script_util, name)(), getattr(peer.script_util, name)()


@CASES.add("flags: parsing, abbreviations, str2bool, args_to_dict", BITWISE)
def flags(peer):
    values = {"flag": False, "on": True, "rate": 0.5, "count": 3, "name": "", "nothing": None}
    lines = (
        "", "--flag yes --on F --rate 2 --count 5 --name a,b --nothing x", "--flag TRUE", "--flag", "--fl 1",
        "--flag 2", "--count 1.5", "--rate x", "--unknown 1", "--on=no --rate=1e-3", "--name",
    )  # fmt: skip
    for line in lines:
        sides = []
        for side in (script_util, peer.script_util):
            parser = argparse.ArgumentParser()
            parser.error = refuse
            side.add_dict_to_argparser(parser, values)
            parsed = outcome_of(parser.parse_args, line.split())
            refused = isinstance(parsed, Refusal)
            sides.append(parsed if refused else side.args_to_dict(parsed, values))
        yield line, *sides
    for value in ("yes", "True", "T", "y", "1", "no", "FALSE", "f", "n", "0", "", "on", True, False):
        yield (
            f"str2bool {value!r}",
            outcome_of(script_util.str2bool, value),
            outcome_of(peer.script_util.str2bool, value),
        )


def refuse(message):
    raise ValueError(message)


def compare_published(peer, name):
    builder, flags, keys, count = PUBLISHED[name]
    with torch.device("meta"):
        sides = [build(side, builder, **flags) for side in (script_util, peer.script_util)]
    layouts = [{key: (tuple(v.shape), str(v.dtype)) for key, v in m.state_dict().items()} for m, _ in sides]
    yield "shapes, dtypes", *layouts
    yield "order of the keys", *map(list, layouts)
    yield "named parameters", *([key for key, _ in m.named_parameters()] for m, _ in sides)
    yield "number of keys", len(layouts[0]), keys
    yield "number of parameters", sum(p.numel() for p in sides[0][0].parameters()), count
    yield "fp16 attribute", *(str(m.dtype) for m, _ in sides)
    for model, _ in sides:
        model.convert_to_fp16()
    yield (
        "dtypes in half precision",
        *({key: str(v.dtype) for key, v in m.state_dict().items()} for m, _ in sides),
    )
    yield "diffusion", *(described(diffusion) for _, diffusion in sides)


def described(diffusion) -> dict:
    names = ("model_mean_type", "model_var_type", "loss_type")
    enums = {name: getattr(diffusion, name).name for name in names}
    return enums | {
        "rescale_timesteps": diffusion.rescale_timesteps,
        "steps": (diffusion.num_timesteps, diffusion.original_num_steps),
        "betas": diffusion.betas,
    }


for name in PUBLISHED:
    CASES.append(Case(f"published checkpoint {name}", partial(compare_published, name=name), BITWISE))


@CASES.add("create_gaussian_diffusion: every combination of flags", BITWISE)
def diffusion_flags(peer):
    switches = (
        "learn_sigma",
        "sigma_small",
        "use_kl",
        "predict_xstart",
        "rescale_timesteps",
        "rescale_learned_sigmas",
    )
    for values in product((False, True), repeat=len(switches)):
        flags = dict(zip(switches, values, strict=True))
        sides = [
            described(side.create_gaussian_diffusion(steps=20, timestep_respacing="ddim5", **flags))
            for side in (script_util, peer.script_util)
        ]
        yield f"{flags}", *sides


@CASES.add("builders: image sizes, channel_mult, pools, and what is refused", BITWISE)
def builder_flags(peer):
    """Both refuse an image size that neither knows; ours knows more sizes than upstream."""
    settings = [("model", {"image_size": size}) for size in (64, 128, 256, 512, 100)]
    settings += [
        ("model", {"image_size": 32, "channel_mult": mult}) for mult in ("1,2", "1", "2,2,2", "0.5,1", "x")
    ]
    settings += [("model", {"attention_resolutions": text}) for text in ("32", "64,8", "16,8,4", "x")]
    settings += [
        ("model", {"class_cond": True, "num_heads_upsample": 2}),
        ("model", {"use_new_attention_order": True}),
    ]
    settings += [("classifier", {"image_size": size}) for size in (64, 128, 256, 512)]
    settings += [("classifier", {"classifier_pool": p}) for p in ("adaptive", "spatial", "spatial_v2", "max")]
    settings += [
        ("classifier", {"classifier_attention_resolutions": "16", "classifier_resblock_updown": False})
    ]
    settings += [("sr", {"large_size": size}) for size in (64, 256, 512)]
    for builder, flags in settings:
        with torch.device("meta"):
            sides = [outcome_of(layout, side, builder, flags) for side in (script_util, peer.script_util)]
        yield f"{builder} {flags}", *sides


def layout(side, builder: str, flags: dict) -> dict:
    model, _ = build(side, builder, **flags | ({"num_channels": 32} if builder != "classifier" else {}))
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
