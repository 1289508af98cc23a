"""Model files: what is written comes back, and what is damaged or foreign is refused in one line."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.zoo import model_file
from model.zoo.model_file import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

from tests.model.zoo.models import CATEGORIES, DESCRIPTION, THIN, network


def refusal(path: Path) -> str:
    """What reading the file is refused with: one line that begins with the path."""
    with pytest.raises(ModelError) as caught:
        model_file.read(path)
    with pytest.raises(ModelError) as served:
        model_file.read(path, runnable=False)
    text = str(caught.value)
    assert text == str(served.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 600
    return text


def rewritten(
    whole: Path,
    to: Path,
    document: Callable[[dict[str, Any]], object] = lambda _: None,
    tensors: Callable[[dict[str, torch.Tensor]], object] = lambda _: None,
) -> Path:
    """The good file with its description or its tensors changed in place."""
    with safe_open(whole, framework="pt") as file:
        described = json.loads(file.metadata()["maskserve"])
    held = load_file(whole)
    document(described)
    tensors(held)
    save_file(held, to, {"maskserve": json.dumps(described)})
    return to


# What is written comes back


def test_float32_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_file.save(path, network(), DESCRIPTION)
    back, _ = model_file.read(path)
    for (name, ours), (other, theirs) in zip(
        network().state_dict().items(), back.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)


def test_half_rounds_matrices_to_float16_and_leaves_vectors_alone(whole: Path) -> None:
    stored = load_file(whole)
    back = model_file.read(whole)[0].state_dict()
    for name, ours in network().state_dict().items():
        if ours.ndim >= 2:
            assert stored[name].dtype == torch.float16
            assert torch.equal(back[name], ours.half().float())
            torch.testing.assert_close(back[name], ours, rtol=2**-11, atol=2**-24)
        else:
            assert stored[name].dtype == ours.dtype
            assert torch.equal(back[name], ours)
    assert {tensor.dtype for tensor in back.values()} == {torch.float32, torch.int64}


def test_network_is_read_ready_to_answer(whole: Path) -> None:
    back, _ = model_file.read(whole)
    assert not back.training
    assert {p.device.type for p in back.parameters()} == {"cpu"}


def test_weights_to_serve_are_the_same_without_torchvisions_modules(whole: Path) -> None:
    ours, model = model_file.read(whole, runnable=False)
    theirs, same = model_file.read(whole)
    assert type(ours).__module__ == "model.network.skeleton"
    assert model == same
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    assert all(mine[0] == other[0] and torch.equal(mine[1], other[1]) for mine, other in pairs)
    assert not ours.training


def test_description_comes_back_with_the_files_hash(whole: Path) -> None:
    _, model = model_file.read(whole)
    assert model == replace(DESCRIPTION, sha256=hashlib.sha256(whole.read_bytes()).hexdigest())
    assert model.label_ids().tolist() == [0, 3, 7]


def test_description_is_written_anew_around_the_same_tensors(whole: Path, tmp_path: Path) -> None:
    _, model = model_file.read(whole)
    path = tmp_path / "model.safetensors"
    known = replace(model, ranges={"rpn.head.conv.0.0": (-0.5, 3.25)}, object_extent=0.25)
    model_file.rewrite_metadata(path, whole, known)
    _, read = model_file.read(path)
    assert (read.ranges, read.object_extent) == (known.ranges, 0.25)
    before, after = load_file(whole), load_file(path)
    assert list(before) == list(after)
    assert all(after[n].dtype == t.dtype and torch.equal(after[n], t) for n, t in before.items())
    model_file.rewrite_metadata(path, path, model)  # onto itself
    assert path.read_bytes() == whole.read_bytes()


def test_network_in_another_memory_format_is_saved_alike(tmp_path: Path) -> None:

    path = tmp_path / "model.safetensors"
    model_file.save(path, copy.deepcopy(network()).to(memory_format=torch.channels_last), DESCRIPTION)
    assert torch.equal(
        model_file.read(path)[0].state_dict()["backbone.body.conv1.weight"],
        network().state_dict()["backbone.body.conv1.weight"],
    )


def test_description_numbers_categories_in_their_order() -> None:
    model = model_file.describe("parts", THIN, CATEGORIES, ap={"box": 0.5})
    assert (model.labels, model.ap) == ((1, 2), {"box": 0.5})
    assert model.label_ids().tolist() == [0, 7, 3]


def test_failing_write_leaves_the_old_file_and_nothing_else(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole.read_bytes())
    real = Path.write_bytes

    def full(part: Path, content: bytes) -> int:
        real(part, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        model_file.save(path, network(), DESCRIPTION)
    assert path.read_bytes() == whole.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_may_read_a_new_file_may_read_a_model(whole: Path, tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    assert whole.stat().st_mode == usual.stat().st_mode


def test_a_write_takes_the_old_files_place(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole.read_bytes())
    model_file.save(path, network(), replace(DESCRIPTION, name="newer"), half=True)
    assert model_file.read(path)[1].name == "newer"
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


# Files that are no model


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "gone.safetensors")


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "not a readable safetensors file" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 9, 200, -1])
def test_truncated_file_is_refused(whole: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole.read_bytes()[:kept])
    assert "not a readable safetensors file" in refusal(path)


@pytest.mark.parametrize("at", [0, 7, 8, 9])
def test_file_with_a_damaged_header_is_refused(whole: Path, tmp_path: Path, at: int) -> None:
    path = tmp_path / "flipped.safetensors"
    content = bytearray(whole.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    assert "not a readable safetensors file" in refusal(path)


def test_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("sprung").touch, ())

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    assert "not a readable safetensors file" in refusal(path)
    torch.save({"weight": torch.zeros(3)}, path)
    assert "not a readable safetensors file" in refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata)
        assert "none that `maskserve train` wrote" in refusal(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(lambda d: d.update(format=2), "written in format 2; this version", id="other format"),
        pytest.param(lambda d: d.pop("format"), "damaged (KeyError('format'))", id="no format"),
        pytest.param(lambda d: d.pop("categories"), "damaged (KeyError('categories'))", id="no categories"),
        pytest.param(lambda d: d.update(categories=[]), "do not fit its 3 classes", id="not one category"),
        pytest.param(lambda d: d.update(categories=[1]), "damaged (TypeError", id="odd categories"),
        pytest.param(lambda d: d.update(ap=[]), "damaged (AttributeError", id="odd ap"),
        pytest.param(lambda d: d.update(ranges={"a": [0]}), "damaged (ValueError", id="half a range"),
        pytest.param(lambda d: d.update(object_extent=-1), "extent of its objects", id="negative extent"),
        pytest.param(lambda d: d.update(object_extent=1e999), "extent of its objects", id="endless extent"),
        pytest.param(lambda d: d.update(object_extent="large"), "damaged (ValueError", id="extent in words"),
        pytest.param(
            lambda d: d.update(ranges={"a": [1, 0]}), "ranges of activations", id="range upside down"
        ),
        pytest.param(
            lambda d: d.update(ranges={"a": [0, 1e999]}), "ranges of activations", id="endless range"
        ),
        pytest.param(lambda d: d.update(ap={"box": "high"}), "damaged (ValueError", id="ap of words"),
        pytest.param(lambda d: d.update(architecture=None), "table of names", id="no architecture"),
        pytest.param(
            lambda d: d["architecture"].pop("norm_eps"), "missing architecture fields: norm_eps", id="no eps"
        ),
        pytest.param(
            lambda d: d["architecture"].update(extra=1), "unknown architecture fields: extra", id="extra"
        ),
        pytest.param(
            lambda d: d["architecture"].update(backbone="resnet9"),
            "no such backbone: 'resnet9'",
            id="backbone",
        ),
        pytest.param(
            lambda d: d["architecture"].update(fpn_channels=10**12), "cannot be built", id="absurd width"
        ),
        pytest.param(
            lambda d: d["categories"][0].update(label=3), "do not fit its 3 classes", id="label out"
        ),
        pytest.param(
            lambda d: d["categories"][0].update(label=0), "do not fit its 3 classes", id="background"
        ),
        pytest.param(
            lambda d: d["categories"][0].update(label=1), "do not fit its 3 classes", id="same label"
        ),
        pytest.param(lambda d: d["categories"][0].update(id=3), "do not fit its 3 classes", id="same id"),
        pytest.param(
            lambda d: d.update(format="1\n2"), "written in format '1\\n2'; this", id="format of lines"
        ),
        pytest.param(
            lambda d: d["architecture"].update(fpn_channels=2**70),
            "fpn_channels is above 65535",
            id="width 2^70",
        ),
        pytest.param(
            lambda d: d["architecture"].update(fpn_channels=60_000),
            "made for another architecture",
            id="width beyond any memory",
        ),
        pytest.param(
            lambda d: d["architecture"].update(rpn_convs=10**9), "rpn_convs is above 64", id="absurd depth"
        ),
        pytest.param(
            lambda d: d["architecture"].update(min_size=10**7, max_size=10**7),
            "min_size is above 65535",
            id="absurd size",
        ),
        pytest.param(
            lambda d: d["architecture"].update(anchor_sizes=[1, 2, 3, 4, 2**70]),
            "anchor_sizes is above 65535",
            id="absurd anchor",
        ),
        pytest.param(
            lambda d: d["categories"][0].update(id=2**63), "ids are not all from 0 to 2^63", id="id 2^63"
        ),
        pytest.param(
            lambda d: d["categories"][0].update(id=-3), "ids are not all from 0 to 2^63", id="id below 0"
        ),
        pytest.param(lambda d: d["categories"][0].update(id=1.7), "1.7 is no integer", id="broken id"),
        pytest.param(lambda d: d["categories"][0].update(label=1.7), "1.7 is no integer", id="broken label"),
        pytest.param(lambda d: d["categories"][0].update(name=" "), "names that are empty", id="empty name"),
        pytest.param(lambda d: d["categories"][0].update(name="nut"), "or the same", id="same name"),
        pytest.param(
            lambda d: d.update(ap={"box": float("nan")}), "AP is not from 0 to 1", id="ap of nothing"
        ),
        pytest.param(
            lambda d: d["architecture"].update(anchor_sizes=[32] * 100_000),
            "five anchor sizes are needed",
            id="100,000 anchor sizes",
        ),
        pytest.param(
            lambda d: d["architecture"].update(anchor_ratios=[1.0] * 100_000),
            "it has 100000 anchor ratios, of which 32 can be",
            id="100,000 anchor ratios",
        ),
        pytest.param(
            lambda d: d["architecture"].update(min_size=65_535, max_size=65_535),
            "its input of 65535 × 65535 has more than 16777216 pixels",
            id="input beyond any memory",
        ),
        pytest.param(
            lambda d: d["architecture"].update(proposals=65_535), "proposals is above 10000", id="proposals"
        ),
        pytest.param(
            lambda d: d["architecture"].update(conventions={"candidates": 10**6}),
            "candidates is above 10000",
            id="candidates",
        ),
        pytest.param(
            lambda d: d["architecture"].update(rpn_channels=[-1] * 10**5),
            "sizes and widths",
            id="100,000 widths",
        ),
        pytest.param(
            lambda d: d["architecture"].update(backbone="x" * 10**6), "no such backbone: 'xxx", id="backbone"
        ),
        pytest.param(lambda d: d.update(name="a\ud800"), "text that is not Unicode", id="surrogate"),
        pytest.param(
            lambda d: d.update(training={"by": ["\udfff"]}), "text that is not Unicode", id="surrogate inside"
        ),
        pytest.param(lambda d: d.update(name="a\nb"), r"'a\nb'", id="name of two lines"),
        pytest.param(
            lambda d: d["categories"][0].update(name="nut\u2028bolt"),
            r"'nut\u2028bolt'",
            id="category of two lines",
        ),
        pytest.param(
            lambda d: d.update(name="\x1b[2J"),
            "not one line of at most 200 characters",
            id="control characters",
        ),
        pytest.param(
            lambda d: d.update(name="n" * 10**6), "not one line of at most 200 characters", id="endless name"
        ),
        pytest.param(
            lambda d: d.update(ap={"a\tb": 0.5}),
            "not one line of at most 200 characters",
            id="odd name of an AP",
        ),
        pytest.param(lambda d: d.update(ap={"box": 83.9}), "AP is not from 0 to 1", id="ap in percent"),
        pytest.param(lambda d: d.update(ap={"box": 10**400}), "damaged (OverflowError", id="endless ap"),
    ],
)
def test_damaged_description_is_named(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    assert named in refusal(rewritten(whole, tmp_path / "changed.safetensors", document=change))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000])
def test_description_that_is_no_json_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(3)}, path, {"maskserve": text})
    assert "description of the model is damaged" in refusal(path)


def test_weights_of_another_architecture_are_refused(whole: Path, tmp_path: Path) -> None:
    def deeper(document: dict[str, Any]) -> None:
        document["architecture"].update(box_channels=16, rpn_convs=2)

    said = refusal(rewritten(whole, tmp_path / "other.safetensors", document=deeper))
    assert "made for another architecture" in said
    assert "2 tensors missing" in said
    assert "0 unknown" in said
    assert "6 of another shape" in said
    assert "rpn.head.conv.1" in said


def test_unknown_tensor_is_named(whole: Path, tmp_path: Path) -> None:
    path = rewritten(
        whole, tmp_path / "more.safetensors", tensors=lambda held: held.update(surprise=torch.zeros(1))
    )
    assert "1 unknown" in refusal(path)
    assert "surprise" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["backbone.body.conv1.weight", "backbone.body.bn1.running_var"])
def test_weights_that_are_no_numbers_are_refused(
    whole: Path, tmp_path: Path, name: str, value: float
) -> None:
    path = rewritten(
        whole, tmp_path / "poisoned.safetensors", tensors=lambda held: held[name].view(-1)[3:4].fill_(value)
    )
    assert f"{name} holds values that are not finite" in refusal(path)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("backbone.body.conv1.weight", torch.complex64),
        ("backbone.body.conv1.weight", torch.float8_e4m3fn),
        ("backbone.body.conv1.weight", torch.int8),
        ("backbone.body.bn1.num_batches_tracked", torch.float32),
    ],
)
def test_weights_of_another_kind_of_number_are_refused(
    whole: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    path = rewritten(
        whole, tmp_path / "kind.safetensors", tensors=lambda held: held.update({name: held[name].to(dtype)})
    )
    assert f"{name} holds {dtype} instead of torch." in refusal(path)


def test_weights_beyond_float32_are_refused(whole: Path, tmp_path: Path) -> None:
    def grow(held: dict[str, torch.Tensor]) -> None:
        held["backbone.body.bn1.bias"] = held["backbone.body.bn1.bias"].double() + 1e300

    path = rewritten(whole, tmp_path / "large.safetensors", tensors=grow)
    assert "backbone.body.bn1.bias holds values that are not finite" in refusal(path)


def test_variance_below_zero_is_refused(whole: Path, tmp_path: Path) -> None:
    name = "backbone.body.bn1.running_var"
    path = rewritten(whole, tmp_path / "odd.safetensors", tensors=lambda held: held[name][3:4].fill_(-1e-3))
    assert f"{name} holds variances below 0" in refusal(path)


def test_ap_where_there_was_nothing_to_count_is_kept(whole: Path, tmp_path: Path) -> None:
    path = rewritten(whole, tmp_path / "bare.safetensors", document=lambda d: d.update(ap={"box": -1.0}))
    assert model_file.read(path)[1].ap == {"box": -1.0}


def test_batch_counters_may_be_missing(whole: Path, tmp_path: Path) -> None:
    def drop(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if name.endswith("num_batches_tracked")]:
            del held[name]

    back, _ = model_file.read(rewritten(whole, tmp_path / "frozen.safetensors", tensors=drop))
    weight = "backbone.body.conv1.weight"
    assert torch.equal(back.state_dict()[weight], network().state_dict()[weight].half().float())
