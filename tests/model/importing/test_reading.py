"""Reading files of weights: what is plain comes back, and what would run code is refused and leaves no trace."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model.importing.reading import ReadingError, read

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}
ARRAYS = {name: tensor.numpy() for name, tensor in TENSORS.items()}


class Bomb:
    """A pickle of it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y


def refusal(path: Path) -> str:
    with pytest.raises(ReadingError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def assert_tensors(found: Any) -> None:
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(torch.as_tensor(found[name]), tensor)


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
def test_what_torch_saved_comes_back(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    document = {"model": OrderedDict(TENSORS), "epoch": 3, "args": argparse.Namespace(lr=0.02)}
    torch.save(document, path, _use_new_zipfile_serialization=zipped)
    found = read(path)
    assert found["epoch"] == 3
    assert_tensors(found["model"])


def test_numpy_values_beside_the_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": TENSORS, "ap": np.float64(0.5), "losses": np.ones(3, np.float32)}, path)
    found = read(path)
    assert float(found["ap"]) == 0.5
    assert found["losses"].tolist() == [1, 1, 1]


def test_safetensors_come_back(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    assert_tensors(read(path))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_come_back(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "__author__": "somebody"}, protocol))
    assert_tensors(read(path)["model"])


def test_a_pickle_of_python_2_comes_back(tmp_path: Path) -> None:
    """Its arrays' bytes are text in latin-1."""
    path = tmp_path / "model_final.pkl"
    old = pickle.dumps({"model": ARRAYS}, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(old)
    assert_tensors(read(path)["model"])


def test_pickles_that_run_code_are_refused_and_leave_no_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for protocol in (2, 4):
        path = tmp_path / f"evil{protocol}.pkl"
        path.write_bytes(pickle.dumps({"model": ARRAYS, "x": Bomb(trace)}, protocol))
        assert "posix.mkdir" in refusal(path)
    for zipped in (True, False):
        path = tmp_path / f"evil{zipped}.pth"
        torch.save({"model": TENSORS, "x": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
        assert "mkdir" in refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("torch", "load"),
        ("functools", "partial"),
    ],
)
def test_no_name_but_an_arrays_is_resolved(tmp_path: Path, module: str, name: str) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + b".")
    assert f"{module}.{name}" in refusal(path)


def test_bytes_are_encoded_by_no_other_codec(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.")
    assert "zip" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_is_refused_with_the_line_that_helps(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "whole.pth"
    torch.save(Whole(), path, _use_new_zipfile_serialization=zipped)
    text = refusal(path)
    assert "Whole" in text
    assert "torch.save(torch.load('whole.pth', map_location='cpu', weights_only=False).state_dict()" in text


def test_torchscript_is_refused_with_the_line_that_helps(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/__torch__.py"):
            archive.writestr(name, b"")
    text = refusal(path)
    assert "TorchScript" in text
    assert "torch.jit.load('script.pt'" in text


def test_other_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "photos.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"")
    assert "none that torch.save wrote" in refusal(path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save(TENSORS, whole)
    path = tmp_path / "half.pth"
    path.write_bytes(whole.getvalue()[:200])
    assert "damaged" in refusal(path)
    path = tmp_path / "half.pkl"
    path.write_bytes(pickle.dumps(ARRAYS)[:50])
    assert "damaged" in refusal(path)
    path = tmp_path / "half.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    assert "damaged" in refusal(path)


def test_what_is_no_file_of_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photo.pth"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    assert "no file of weights" in refusal(path)
    assert "no such file" in refusal(tmp_path / "absent.pth")
    assert "directory" in refusal(tmp_path)


def test_an_array_of_objects_holds_nothing_that_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps({"model": np.array([Bomb(trace)], dtype=object)}))
    assert "mkdir" in refusal(path)
    assert not trace.exists()
