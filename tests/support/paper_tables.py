"""Figures and recipes of the paper and of the authors' release, typed from their text: what the recipes must say."""

from __future__ import annotations

# The authors' twelve recipes: (row, class_cond, respacing, gamma, EDS, ECT classifier, README's figures).
PUBLISHED_RECIPES = [
    ("table1/uadm-g-ddim25", False, "ddim25", 10.0, False, False, (14.22, 8.62, 83.38, 0.70, 0.46)),
    ("table2/uadm-g-eds-ddim25", False, "ddim25", 6.0, True, False, (10.09, 6.87, 133.89, 0.73, 0.46)),
    ("table1/uadm-g-ect-eds-ddim25", False, "ddim25", 6.0, True, True, (8.28, 6.38, 163.17, 0.76, 0.45)),
    ("table1/uadm-g-ddpm250", False, "250", 10.0, False, False, (12.00, 10.40, 95.41, 0.76, 0.44)),
    ("table2/uadm-g-eds-ddpm250", False, "250", 6.0, True, False, (7.98, 8.54, 179.36, 0.82, 0.40)),
    ("table1/uadm-g-ect-eds-ddpm250", False, "250", 4.0, True, True, (6.78, 6.56, 168.78, 0.81, 0.45)),
    ("table1/cadm-g-ddim25", True, "ddim25", 2.5, False, False, (5.47, 5.40, 196.00, 0.81, 0.49)),
    ("table3/cadm-g-eds-ddim25", True, "ddim25", 1.5, True, False, (4.76, 5.15, 221.38, 0.80, 0.51)),
    ("table1/cadm-g-ect-eds-ddim25", True, "ddim25", 2.0, True, True, (4.68, 5.13, 235.25, 0.82, 0.48)),
    ("table1/cadm-g-ddpm250", True, "250", 1.0, False, False, (4.59, 5.25, 186.70, 0.82, 0.52)),
    ("table3/cadm-g-eds-ddpm250", True, "250", 0.75, True, False, (3.96, 5.06, 219.13, 0.83, 0.52)),
    ("table1/cadm-g-ect-eds-ddpm250", True, "250", 1.0, True, True, (4.09, 5.07, 221.57, 0.83, 0.50)),
]
COMMON = {
    "image_size": 256, "attention_resolutions": "32,16,8", "num_channels": 256, "num_head_channels": 64,
    "num_res_blocks": 2, "learn_sigma": True, "resblock_updown": True, "use_scale_shift_norm": True,
    "use_fp16": True, "classifier_use_fp16": True, "diffusion_steps": 1000, "noise_schedule": "linear",
    "num_heads": 4, "channel_mult": "", "use_new_attention_order": False, "dropout": 0.0, "num_classes": 1000,
    "classifier_width": 128, "classifier_depth": 2, "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True, "classifier_resblock_updown": True, "classifier_pool": "attention",
    "num_samples": 50000, "guidance": "constant",
}  # fmt: skip

# The paper's tables, column by column as they are printed: FID, sFID, IS, precision, recall; None is a dash.
_ = None
PAPER = {
    "table1": (
        [36.51, 31.11, 12.26, 11.30, 6.95, 14.21, 8.28, 12, 6.78, 10.94, 5.44, 4.67, 4.59, 4.09],
        [8.24, 17.38, 5.42, _, 7.36, 8.53, 6.37, 10.4, 6.56, 6.02, 5.32, 5.12, 5.25, 5.07],
        [_, _, _, _, _, 83, 163.17, 95.41, 168.78, 100.98, 194.48, 235.24, 186.70, 221.57],
        [0.36, 0.36, 0.70, _, 0.87, 0.7, 0.76, 0.76, 0.81, 0.69, 0.81, 0.82, 0.82, 0.83],
        [0.67, 0.57, 0.62, _, 0.28, 0.46, 0.44, 0.44, 0.45, 0.63, 0.49, 0.47, 0.52, 0.50],
    ),
    "table2": (
        [12.0, 10.79, 7.98, 6.78, 14.21, 12.21, 10.09, 8.28],
        [10.4, 10.49, 10.61, 6.56, 8.53, 8.14, 6.86, 6.37],
        [95.41, 117.56, 178.73, 168.78, 83, 100.95, 133.71, 163.17],
        [0.76, 0.79, 0.82, 0.81, 0.7, 0.74, 0.73, 0.76],
        [0.44, 0.41, 0.40, 0.45, 0.46, 0.44, 0.45, 0.44],
    ),
    "table3": (
        [4.59, 4.62, 4.01, 4.09, 5.46, 5.34, 4.82, 4.67],
        [5.25, 5.16, 5.15, 5.07, 5.32, 5.3, 5.04, 5.12],
        [186.7, 182.48, 217.25, 221.57, 194.48, 196.8, 218.97, 235.24],
        [0.82, 0.81, 0.82, 0.83, 0.81, 0.81, 0.80, 0.82],
        [0.52, 0.53, 0.52, 0.50, 0.48, 0.49, 0.50, 0.48],
    ),
    "table4": (
        [20.17, 19.84, 19.42, 19.08, 16.56],
        [_] * 5,
        [84.53, 88.42, 87.42, 93.14, 133.26],
        [0.71, 0.70, 0.70, 0.71, 0.73],
        [0.59, 0.61, 0.63, 0.63, 0.66],
    ),
    "supplement-table1-64": (
        [4.06, 2.92, 2.07, 1.88], [3.96, 3.79, 4.29, 4.51], [_] * 4, [0.79, 0.74, 0.74, 0.76], [0.48, 0.62, 0.63, 0.61]
    ),
    "supplement-table1-128": (
        [6.02, 3.36, 5.91, 6.58, 6.22, 2.97, 2.68],
        [7.18, _, 5.09, 7.52, 7.10, 5.09, 5.10],
        [_] * 7,
        [0.86, _, 0.70, 0.77, 0.78, 0.78, 0.80],
        [0.35, _, 0.65, 0.50, 0.49, 0.59, 0.56],
    ),
}  # fmt: skip
METHODS = {
    "table1": [
        "DCTransformer", "VQ-VAE-2", "IDDPM", "SR3", "BigGAN-deep", "UADM-G (25)", "UADM-G+ECT+EDS (25)", "UADM-G",
        "UADM-G+ECT+EDS", "CADM", "CADM-G (25)", "CADM-G+ECT+EDS (25)", "CADM-G", "CADM-G+ECT+EDS",
    ],
    "table4": ["Baseline", "Constant (range 0-700)", "Timestep-aware", "Gradient Norm", "Entropy-driven"],
    "supplement-table1-64": ["BigGAN-deep", "IDDPM", "CADM-G", "CADM-G+EDS+ECT"],
    "supplement-table1-128": [
        "BigGAN-deep", "LOGAN", "CADM", "CADM-G (25)", "CADM-G+EDS+ECT (25)", "CADM-G", "CADM-G+EDS+ECT",
    ],
}  # fmt: skip
PARAMETERS = {
    "uadm-256": 552_814_086, "cadm-256": 553_838_086, "cadm-128": 421_529_606, "cadm-64": 295_904_454,
    "classifier-256": 54_096_360, "classifier-256-ect": 54_096_360, "classifier-128": 42_568_040,
    "classifier-128-ect": 42_568_040, "classifier-64": 65_438_568, "classifier-64-ect": 65_438_568,
}  # fmt: skip
