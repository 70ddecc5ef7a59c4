"""Reading untrusted files, strict loading, atomic writing."""

import http.server
import json
import os
import pickle
import threading

import pytest
import torch
from torch import nn

from guided_diffusion import dist_util
from guided_diffusion.errors import InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.io.atomic import write_atomically
from guided_diffusion.training.diffusion_loop import load_optimizer


class Opens:
    """Runs a shell command when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def assert_same(left, right):
    assert set(left) == set(right)
    for key in left:
        assert torch.equal(left[key], right[key]), key


@pytest.fixture
def state():
    return make_model().state_dict()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "new/folder/model.pt"])
def test_what_is_saved_is_read(tmp_path, state, name):
    checkpoint.save(state, tmp_path / name)
    assert_same(checkpoint.read_state_dict(tmp_path / name), state)
    assert_same(dist_util.load_state_dict(str(tmp_path / name), map_location="cpu"), state)


def test_values_may_be_parameters_and_share_memory(tmp_path):
    model = make_model()
    values = dict(model.named_parameters())
    values["tied"] = values["0.weight"]
    values["turned"] = values["0.weight"].t()
    for name in ("a.pt", "a.safetensors"):
        checkpoint.save(values, tmp_path / name)
        assert_same(checkpoint.read_state_dict(tmp_path / name), values)
    other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.save(dict(model.named_parameters()), tmp_path / "b.pt")
    checkpoint.load_weights(other, tmp_path / "b.pt")
    assert_same(other.state_dict(), model.state_dict())


def test_optimizer_state_is_read_but_is_no_state_dict(tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint.save(optimizer.state_dict(), tmp_path / "opt.pt")
    found = dist_util.load_state_dict(str(tmp_path / "opt.pt"))
    assert found["param_groups"] == optimizer.state_dict()["param_groups"]
    with pytest.raises(InputError, match=r"opt\.pt: found an optimizer's state, expected the weights"):
        checkpoint.read_state_dict(tmp_path / "opt.pt")


def test_files_of_the_older_torch_format(tmp_path, state):
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same(checkpoint.read_state_dict(tmp_path / "old.pt"), state)


@pytest.mark.parametrize("kind", ["torch", "pickle", "pickle2"])
@pytest.mark.parametrize("read", [checkpoint.read_state_dict, dist_util.load_state_dict])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, kind, read):
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    if kind == "torch":
        torch.save({"weight": Opens(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Opens(mark), protocol=2 if kind == "pickle2" else None))
    with pytest.raises(InputError) as caught:
        read(str(path))
    assert not mark.exists()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    if kind != "pickle":
        assert "refused: it wants to run or build posix.system" in str(caught.value)


def test_weights_only_cannot_be_switched_off(tmp_path):
    torch.save({"weight": Opens(tmp_path / "ran")}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="refused"):
        dist_util.load_state_dict(str(tmp_path / "model.pt"), weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 300, -1])
def test_truncated_files_are_named(tmp_path, state, suffix, keep):
    path = tmp_path / f"model.{suffix}"
    checkpoint.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.\w+: not a checkpoint, or truncated \(\D*\d+ bytes"):
        checkpoint.read_state_dict(path)


@pytest.mark.parametrize(
    "prepare, message",
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "found a folder, expected a regular file"),
        (lambda path: path.write_text("<html>not found</html>"), "not a checkpoint, or truncated"),
        (lambda path: torch.save([1, 2], path), "expected a state dict .* found a list"),
        (lambda path: torch.save({"a": 1}, path), "expected a state dict .* found a int under 'a'"),
        (lambda path: torch.save({1: torch.ones(1)}, path), "expected a state dict .* under 1"),
    ],
)
def test_other_unusable_files_are_named(tmp_path, prepare, message):
    path = tmp_path / "model.pt"
    prepare(path)
    with pytest.raises(InputError, match=rf"model\.pt: {message}") as caught:
        checkpoint.read_state_dict(path)
    assert "\n" not in str(caught.value)


def test_an_empty_path_and_an_unknown_scheme():
    with pytest.raises(InputError, match="found an empty string"):
        dist_util.load_state_dict("")
    with pytest.raises(InputError, match=r"ftp9://host/model\.pt: cannot be fetched"):
        dist_util.load_state_dict("ftp9://host/model.pt")


def test_reading_over_http(tmp_path, state):
    checkpoint.save(state, tmp_path / "model.pt")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        assert_same(checkpoint.read_state_dict(f"{root}/model.pt"), state)
        with pytest.raises(InputError, match=rf"{root}/other\.pt: cannot be fetched: .*404"):
            checkpoint.read_state_dict(f"{root}/other.pt")
        server.shutdown()


def test_loading_is_strict_and_says_what_differs(tmp_path):
    model = make_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {f"extra{i}": torch.zeros(1) for i in range(5)}
    state |= {"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(7), "2.bias": torch.tensor(1.0)}
    checkpoint.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError) as caught:
        checkpoint.load_weights(model, tmp_path / "model.pt")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/model.pt: ") and "\n" not in line
    assert "8 keys in the file, 4 in the model" in line
    assert "1 missing: 2.weight;" in line
    assert "5 unexpected: extra0, extra1, extra2 and 2 more;" in line
    assert "2 of the wrong shape: 0.bias (found 7, expected 4), 2.bias (found scalar, expected 2)" in line
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_the_counts_that_a_model_expects(tmp_path, device, dtype):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    state = {key: values.to(dtype) if values.ndim else values + 3 for key, values in make().state_dict().items()}
    checkpoint.save(state, tmp_path / "model.pt")
    with torch.device(device):
        model = make()
    checkpoint.load_weights(model, tmp_path / "model.pt")
    found = model.state_dict()
    assert found["1.num_batches_tracked"] == 3 and {value.dtype for value in model.parameters()} == {torch.float32}
    assert_same(found, {key: value.to(found[key].dtype) for key, value in state.items()})


def test_an_optimizer_state_of_odd_tensors_is_refused(tmp_path):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    for odd in (torch.zeros(7), torch.zeros(()).expand(4, 3), torch.zeros(4, 3).to_sparse(), [1]):
        state["state"][0]["exp_avg"] = odd
        checkpoint.save(state, tmp_path / "opt000001.pt")
        with pytest.raises(InputError, match="opt000001.pt: does not fit this model's parameters") as caught:
            load_optimizer(torch.optim.AdamW(model.parameters()), str(tmp_path / "model000001.pt"), 1, required=True)
        assert "\n" not in str(caught.value)


def test_a_long_line_is_shortened_and_control_characters_are_shown():
    line = str(InputError(f"--model_path {'a' * 5000}: no\x1b such\0file"))
    assert line == f"--model_path {'a' * 200}...{'a' * 99}: no\\x1b such\\x00file"
    assert len(str(InputError("a " * 10**6))) < 4100


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_nothing_behind(tmp_path, existing):
    path = tmp_path / "model.pt"
    if existing:
        path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as file:
        file.write(b"half")
        file.flush()
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == (["model.pt"] if existing else [])
    if existing:
        assert path.read_bytes() == b"old"
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"a": lambda: None}, path)
    assert len(list(tmp_path.iterdir())) == int(existing)


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    with write_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert {entry.parent for entry in tmp_path.rglob("*.tmp")} == {tmp_path}
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_and_links_are_those_of_a_plain_write(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with write_atomically(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"x"
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_config_beside_a_checkpoint(tmp_path):
    model_path = tmp_path / "run" / "model000000.pt"
    assert checkpoint.read_config(model_path) is None
    config = {"image_size": 64, "channel_mult": "", "dropout": 0.1, "class_cond": True, "data_dir": tmp_path}
    checkpoint.write_config(tmp_path / "run", config)
    assert checkpoint.read_config(model_path) == config | {"data_dir": str(tmp_path)}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["image_size"] == 64
    expected = "expected a JSON object, found"
    for text, found in (("{", f"{expected} no JSON"), ("[1]", f"{expected} a list")):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(InputError, match=rf"config\.json: {found}"):
            checkpoint.read_config(model_path)


def test_config_beside_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.write_config(".", {"a": 1})
    assert checkpoint.read_config("model.pt") == {"a": 1}
