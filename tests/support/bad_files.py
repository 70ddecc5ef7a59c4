"""The files and folders that the rows of `bad_inputs.py` name."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from guided_diffusion.io import checkpoint
from tests.support.bad_inputs import CONFIGS
from tests.support.helpers import make_checkpoint, make_images


class Malicious:
    """An object whose unpickling makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def make_bad_files(folder: Path, images: Path, checkpoints: dict[str, Path]) -> dict[str, str]:
    """Write all of them, by name; code that is executed nevertheless makes the folder `executed` in `folder`."""
    found = dict(checkpoints) | {
        "images": images,
        "nowhere": folder / "nowhere",
        "empty": folder / "empty",
        "pipe": folder / "pipe",
        "pipe_npz": folder / "pipe.npz",
        "pipe_zip": folder / "pipe.zip",
        "device": "/dev/zero",
        "swapped": folder / "swapped.csv",
        "long_path": folder / ("a" * 5000),
        "corrupt": make_images(folder / "corrupt", classes=2, per_class=12),
        "five": make_images(folder / "five", classes=5),
        "two_cameras": make_images(folder / "two_cameras", names=["IMG", "DSC"], per_class=4),
    }
    found["empty"].mkdir()
    found["swapped"].write_text("\n".join(f"{path.name[:2]},{path.name}" for path in sorted(images.glob("*.png"))))
    for name in ("pipe", "pipe_npz", "pipe_zip"):
        os.mkfifo(found[name])
    for path in found["corrupt"].glob("c1_*.png"):
        path.write_bytes(path.read_bytes()[:60])
    found |= _checkpoints(folder, checkpoints)
    found |= _pictures(folder)
    found |= _arrays(folder)
    found |= _runs(folder)
    return {name: str(path) for name, path in found.items()}


def _checkpoints(folder: Path, checkpoints: dict[str, Path]) -> dict[str, Path]:
    config = (checkpoints["model"].parent / "config.json").read_text()
    state = torch.load(checkpoints["model"], weights_only=True)
    whole = checkpoints["model"].read_bytes()

    def beside_config(name: str, data: bytes = b"", text: str = config, file: str = "model.pt") -> Path:
        path = folder / name / file
        path.parent.mkdir()
        path.write_bytes(data)
        (path.parent / "config.json").write_text(text)
        return path

    found = {
        "truncated": beside_config("truncated", whole[: len(whole) // 2]),
        "truncated_safetensors": beside_config("short", b"\x00" * 40, file="model.safetensors"),
        "text": beside_config("text", b"these are no weights\n"),
        "empty_file": beside_config("empty_file"),
        "no_json": beside_config("no_json", whole, "{not json"),
        "json_list": beside_config("json_list", whole, "[1, 2]"),
        "odd_json": beside_config("odd_json", whole, config.replace('"image_size": 8', '"image_size": "8"')),
        "bare": make_checkpoint(folder / "bare", "model", config_json=False),
        "bare_classifier": make_checkpoint(folder / "bare_classifier", "classifier", config_json=False),
        "step_150": make_checkpoint(folder / "step_150", "classifier").rename(folder / "step_150" / "model000150.pt"),
        "optimizer": beside_config("optimizer", file="opt000150.pt"),
        "classifier16": make_checkpoint(folder / "classifier16", "classifier", image_size=16),
        "grey_classifier": make_checkpoint(folder / "grey_classifier", "classifier", in_channels=1),
        "five_classes": make_checkpoint(folder / "five_classes", "model", class_cond=True, num_classes=5),
        "super_res_classes": make_checkpoint(folder / "super_res_classes", "super_res", class_cond=True),
        "wrong_shape": make_checkpoint(folder / "wrong_shape", "classifier", classifier_width=64),
        "named": make_checkpoint(folder / "named", "model", class_cond=True, notes={"class_names": ["b", "1", "0"]}),
        "other_names": make_checkpoint(folder / "other_names", "classifier", notes={"class_names": ["b", "c"]}),
        "odd_names": make_checkpoint(folder / "odd_names", "classifier", notes={"class_names": [1, 2]}),
        "odd_seen": make_checkpoint(folder / "odd_seen", "classifier", notes={"seen_classes": [4]}),
        "inf_classifier": make_checkpoint(folder / "inf_classifier", "classifier"),
    }
    shutil.copy(checkpoints["classifier"].parent / "config.json", found["wrong_shape"].parent)
    found["several"] = folder / "several"
    found["several"].mkdir()
    for name in ("a.pt", "b.pt"):
        shutil.copy(checkpoints["model"], found["several"] / name)
    torch.save(torch.optim.AdamW([torch.zeros(3)]).state_dict(), found["optimizer"])
    inf = torch.load(found["inf_classifier"], weights_only=True)
    next(iter(inf.values())).flatten()[3] = torch.inf
    torch.save(inf, found["inf_classifier"])

    bias, weight = state["out.2.bias"], state["out.2.weight"]
    damaged = torch.where(torch.arange(len(bias)) == 1, torch.nan, bias)
    contents = {
        "wrong_key": {("out.2.bios" if key == "out.2.bias" else key): value for key, value in state.items()},
        "list": list(state.values()),
        "nan": state | {"out.2.bias": damaged},
        "huge": state | {"out.2.bias": torch.full_like(bias, 2e38)},
        "meta": state | {"out.2.bias": bias.to("meta")},
        "sparse": state | {"out.2.weight": weight.to_sparse()},
        "complex": state | {"out.2.bias": bias.to(torch.complex64)},
        "float8": state | {"out.2.bias": bias.to(torch.float8_e4m3fn)},
        "integers": state | {"out.2.bias": bias.long()},
        "expanded": state | {"out.2.weight": torch.zeros(()).expand(1 << 20, 1 << 20)},
        "nested": state | {"out.2.bias": torch.nested.nested_tensor([bias, bias[:1]])},
        "quantized": state | {"out.2.bias": torch.quantize_per_tensor(bias, 1.0, 0, torch.qint8)},
        "malicious": state | {"extra": Malicious(folder / "executed")},
    }
    for name, content in contents.items():
        found[name] = beside_config(name)
        torch.save(content, found[name])
    found["float8_safetensors"] = beside_config("float8_safetensors", file="model.safetensors")
    checkpoint.save(contents["float8"], found["float8_safetensors"])
    for number, (_, key, value, *_) in enumerate(CONFIGS):
        text = json.dumps(json.loads(config) | {key: "VALUE"}).replace('"VALUE"', value)
        found[f"config_{number}"] = beside_config(f"config_{number}", whole, text)
    found["config_pipe"] = beside_config("config_pipe", whole)
    (folder / "config_pipe" / "config.json").unlink()
    os.mkfifo(folder / "config_pipe" / "config.json")
    found["malicious_legacy"] = beside_config("malicious_legacy")
    torch.save(contents["malicious"], found["malicious_legacy"], _use_new_zipfile_serialization=False)
    pickled = pickle.dumps(Malicious(folder / "executed"), protocol=2)
    found["malicious_pickle"] = beside_config("malicious_pickle", pickled)
    found["malicious_tar"] = beside_config("malicious_tar")
    with tarfile.open(found["malicious_tar"], "w") as archive:  # as torch wrote before 0.1.10
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    return found


def _pictures(folder: Path) -> dict[str, Path]:
    """Folders with four files c0_0.png ... c1_1.png of one kind, others without classes, and archives."""
    names = ("c0_0.png", "c0_1.png", "c1_0.png", "c1_1.png")

    def four(name: str, data: bytes, names: tuple[str, ...] = names) -> Path:
        (folder / name).mkdir()
        for file in names:
            (folder / name / file).write_bytes(data)
        return folder / name

    found = {
        "bomb": four("bomb", png_of_zeros(20_000, 20_000)),
        "strip": four("strip", png_of_zeros(9000, 1)),
        "text_png": four("text_png", b"no picture"),
        "postscript": four("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"),
        "empty_png": four("empty_png", b""),
        "float_png": four("float_png", tiff_of_floats()),
        "pipe_png": folder / "pipe_png",
        "flat": four("flat", png_of_zeros(8, 8), ("IMG0001.png", "IMG0002.png", "IMG0003.png")),
        "heic": four("heic", b"", ("a.heic", "b.heic")),
        "broken_link": folder / "broken_link",
        "link_loop": folder / "link_loop",
        "two_sizes": make_images(folder / "two_sizes", classes=1),
        "bomb_zip": folder / "bomb.zip",
        "half_zip": folder / "half.zip",
    }
    found["pipe_png"].mkdir()
    for name in names:
        os.mkfifo(found["pipe_png"] / name)
    for name in ("broken_link", "link_loop"):
        (folder / name).mkdir()
    (folder / "broken_link" / "cats").symlink_to(folder / "nowhere")
    (folder / "link_loop" / "cats").symlink_to(folder / "link_loop")
    make_images(folder / "large", classes=1, size=16)
    shutil.copy(folder / "large" / "c0_0.png", found["two_sizes"] / "c9_9.png")
    with zipfile.ZipFile(found["bomb_zip"], "w") as archive:
        archive.write(found["bomb"] / "c0_0.png", "c0_0.png")
    data = bytearray(found["bomb_zip"].read_bytes())
    data[data.rindex(b"PK\x01\x02") + 2] = 9  # it ends like an archive, but its directory is damaged
    found["half_zip"].write_bytes(data)
    return found


def tiff_of_floats() -> bytes:
    """Values from 0 to 1, of 32 bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(buffer, format="TIFF")
    return buffer.getvalue()


def png_of_zeros(width: int, height: int) -> bytes:
    """A complete PNG of one bit a pixel, made without holding its pixels in memory."""
    packer = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _arrays(folder: Path) -> dict[str, Path]:
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    arrays = {
        "base_samples": {"arr_0": pictures},
        "no_arr_0": {"images": pictures},
        "large": {"arr_0": np.zeros((2, 8, 8, 3), np.uint8)},
        "floats": {"arr_0": pictures.astype(float)},
        "none": {"arr_0": pictures[:0]},
        "label_9": {"arr_0": pictures, "arr_1": np.array([0, 9])},
        "one_label": {"arr_0": pictures, "arr_1": np.array([0])},
        "objects": {"arr_0": np.array([Malicious(folder / "executed")] * 2, dtype=object)},
    }
    found = {}
    for name, content in arrays.items():
        found[name] = folder / f"{name}.npz"
        np.savez(found[name], **content)
    found["shards"] = folder / "shards"
    found["shards"].mkdir()
    for name in ("rank0.npz", "rank1.npz"):
        shutil.copy(found["base_samples"], found["shards"] / name)
    found["truncated_npz"] = folder / "truncated.npz"
    found["truncated_npz"].write_bytes(found["base_samples"].read_bytes()[:150])
    found["npy"] = folder / "base.npy"
    np.save(found["npy"], pictures)

    header = io.BytesIO()
    claim = {"descr": "|u1", "fortran_order": False, "shape": (1 << 34, 4, 4, 3)}
    np.lib.format.write_array_header_1_0(header, claim)
    for name, member in {"claims": header.getvalue(), "odd_header": header.getvalue().replace(b"}", b"(")}.items():
        found[name] = folder / f"{name}.npz"
        with zipfile.ZipFile(found[name], "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("arr_0.npy", member)
            if name == "claims":
                archive.getinfo("arr_0.npy").file_size += 48 << 34  # written to the directory on closing
    return found


def _runs(folder: Path) -> dict[str, Path]:
    """Folders of runs."""
    for name in ("runs/a", "runs/b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "run.json").write_text("{}")
        Image.new("RGB", (8, 8)).save(folder / name / "grid.png")
    (folder / "training").mkdir()
    (folder / "training" / "model000100.pt").write_text("")
    texts = {"other_run": json.dumps({"seed": 7}), "broken_run": "{", "list_run": "[1]"}
    for name, text in texts.items():
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    return {name: folder / name for name in (*texts, "runs", "training")}
