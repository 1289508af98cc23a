"""Model files: what is written comes back, what is damaged or foreign is named in one line; and the zoo's names."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from model.data import Category
from model.network.architecture import SMALL, Architecture
from model.network.build import build
from model.zoo import catalogue as weights
from model.zoo import model_file, zoo
from model.zoo.download import DamagedWeightsError
from model.zoo.model_file import Model, ModelError
from model.zoo.zoo import COCO_CATEGORIES

if TYPE_CHECKING:
    from collections.abc import Callable

THIN = replace(
    SMALL, classes=3, fpn_channels=8, box_channels=8, mask_channels=8, proposals=20, min_size=64, max_size=96
)
CATEGORIES = (Category(7, "bolt"), Category(3, "nut"))
DESCRIPTION = Model(
    name="parts",
    architecture=THIN,
    categories=CATEGORIES,
    labels=(2, 1),
    ap={"box": 0.9, "mask": 0.85},
    ap_source="measured on three photos",
    training={"recipe": {"steps": 3}, "hours": 0.5},
)


@functools.cache
def network() -> nn.Module:
    torch.manual_seed(1)
    made = build(THIN)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 1e-9, 1e6)  # outside of what float16 holds
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file; tests that damage it take a copy."""
    path: Path = tmp_path_factory.mktemp("zoo") / "whole.safetensors"
    model_file.save(path, network(), DESCRIPTION, half=True)
    return path


def refusal(path: Path) -> str:
    """What reading the file is refused with: one line that begins with the path."""
    with pytest.raises(ModelError) as caught:
        model_file.read(path)
    text = str(caught.value)
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


def test_description_comes_back_with_the_files_hash(whole: Path) -> None:
    _, model = model_file.read(whole)
    assert model == replace(DESCRIPTION, sha256=hashlib.sha256(whole.read_bytes()).hexdigest())
    assert model.label_ids().tolist() == [0, 3, 7]


def test_description_is_written_anew_around_the_same_tensors(whole: Path, tmp_path: Path) -> None:
    _, model = model_file.read(whole)
    path = tmp_path / "model.safetensors"
    model_file.rewrite_metadata(path, whole, replace(model, ranges={"rpn.head.conv.0.0": (-0.5, 3.25)}))
    assert model_file.read(path)[1].ranges == {"rpn.head.conv.0.0": (-0.5, 3.25)}
    before, after = load_file(whole), load_file(path)
    assert list(before) == list(after)
    assert all(after[n].dtype == t.dtype and torch.equal(after[n], t) for n, t in before.items())
    model_file.rewrite_metadata(path, path, model)  # onto itself
    assert path.read_bytes() == whole.read_bytes()


def test_names_that_are_files_of_ours_are_known(bundled: Path, coco: tuple[Path, dict[str, Path]]) -> None:
    assert zoo.file_of("shapes") == bundled
    assert zoo.file_of("a/b.safetensors") == Path("a/b.safetensors")
    assert zoo.file_of("maskrcnn_resnet50_fpn") is None


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


# Names


@pytest.fixture
def bundled(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(zoo, "bundled", lambda: whole)
    return whole


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Path]]:
    """A weights folder, and genuine files for it: the zoo's COCO models are as thin as ours, their hashes true."""
    architecture = replace(THIN, classes=91)
    torch.manual_seed(2)
    state = build(architecture).state_dict()
    folder, entries, files = tmp_path / "weights", [], {}
    for number, entry in enumerate(weights.catalogue()):
        file = tmp_path / f"{entry.name}.pth"
        torch.save({**state, "rpn.head.bbox_pred.bias": torch.full((12,), float(number))}, file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        entries.append(replace(entry, sha256=sha256, url=f"http://weights.invalid/{file.name}"))
        files[entry.name] = file
    folder.mkdir()
    monkeypatch.setattr(weights, "catalogue", lambda: tuple(entries))
    monkeypatch.setattr(zoo, "COCO", dict.fromkeys(files, architecture))
    return folder, files


def put(file: Path, folder: Path) -> Path:
    entry = weights.find(file.stem)
    entry.path(folder).write_bytes(file.read_bytes())
    return entry.path(folder)


def test_shapes_is_the_bundled_file(bundled: Path, tmp_path: Path) -> None:
    _, model = zoo.load("shapes", tmp_path)
    assert (model.name, model.notice) == ("parts", None)


def test_bundled_file_lies_beside_the_catalogue() -> None:
    assert zoo.bundled() == weights.bundled_folder() / "shapes.safetensors"


def test_auto_without_coco_weights_is_the_bundled_model_and_says_how_to_get_the_other(
    bundled: Path, coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: pytest.fail("reached for the network"))
    _, model = zoo.load("auto", coco[0])
    assert model.name == "parts"
    assert model.notice is not None
    assert "small bundled model" in model.notice
    assert "`maskserve weights fetch maskrcnn_resnet50_fpn_v2`" in model.notice
    assert "80 categories, 186 MB" in model.notice


def test_auto_takes_the_best_verified_coco_model(coco: tuple[Path, dict[str, Path]]) -> None:
    folder, files = coco
    put(files["maskrcnn_resnet50_fpn"], folder)
    _, first = zoo.load("auto", folder)
    put(files["maskrcnn_resnet50_fpn_v2"], folder)
    _, second = zoo.load("auto", folder)
    assert [first.name, second.name] == ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"]
    assert first.notice is second.notice is None


def test_auto_passes_over_damaged_weights(bundled: Path, coco: tuple[Path, dict[str, Path]]) -> None:
    folder, files = coco
    path = put(files["maskrcnn_resnet50_fpn"], folder)
    path.write_bytes(path.read_bytes()[:-1])
    assert zoo.load("auto", folder)[1].name == "parts"


def test_coco_model_that_is_named_is_fetched(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files = coco
    asked: list[tuple[str, Path]] = []

    def fetch(name: str, to: Path, **_: object) -> Path:
        asked.append((name, to))
        return put(files[name], to)

    monkeypatch.setattr(weights, "fetch", fetch)
    network, model = zoo.load("maskrcnn_resnet50_fpn_v2", folder)
    assert asked == [("maskrcnn_resnet50_fpn_v2", folder)]
    entry = weights.find("maskrcnn_resnet50_fpn_v2")
    assert (model.sha256, model.ap) == (
        entry.sha256,
        {"box": entry.box_ap / 100, "mask": entry.mask_ap / 100},
    )
    assert "COCO val2017" in model.ap_source
    saved = torch.load(files["maskrcnn_resnet50_fpn_v2"], weights_only=True)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())
    assert not network.training


def test_coco_categories_are_cocos(coco: tuple[Path, dict[str, Path]]) -> None:
    assert len(COCO_CATEGORIES) == 80
    assert COCO_CATEGORIES[0] == Category(1, "person")
    assert COCO_CATEGORIES[16] == Category(18, "dog")
    assert COCO_CATEGORIES[-1] == Category(90, "toothbrush")
    folder, files = coco
    put(files["maskrcnn_resnet50_fpn"], folder)
    _, model = zoo.load("maskrcnn_resnet50_fpn", folder)
    ids = model.label_ids().tolist()
    assert len(ids) == 91
    assert (ids[18], ids[12], ids[0]) == (18, 0, 0)  # COCO has no category 12


@pytest.mark.parametrize(
    "content", [pytest.param(b"no pickle", id="no pickle"), pytest.param(b"", id="empty")]
)
def test_coco_file_that_is_not_readable_is_named_in_one_line(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = coco[0] / "odd.pth"
    path.write_bytes(content)
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: path)
    with pytest.raises(ModelError, match="not readable as torchvision's weights") as caught:
        zoo.load("maskrcnn_resnet50_fpn", coco[0])
    assert "\n" not in str(caught.value)


def test_coco_file_of_another_architecture_is_named_in_one_line(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = coco[0] / "odd.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: path)
    with pytest.raises(ModelError, match="not the weights of maskrcnn_resnet50_fpn") as caught:
        zoo.load("maskrcnn_resnet50_fpn", coco[0])
    assert "\n" not in str(caught.value)


def test_coco_file_older_than_todays_layer_names_is_read(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's V1 file of 2019 is: its pyramid, RPN and mask head were plain convolutions."""
    saved = torch.load(coco[1]["maskrcnn_resnet50_fpn"], weights_only=True)
    older = [
        (r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        *((rf"mask_head\.{n}\.0\.", f"mask_head.mask_fcn{n + 1}.") for n in range(4)),
    ]
    old = {functools.reduce(lambda n, pair: re.sub(*pair, n), older, name): t for name, t in saved.items()}
    assert len(set(saved) - set(old)) == 2 * (8 + 1 + 4)
    path = coco[0] / "old.pth"
    torch.save(old, path)
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: path)
    network, _ = zoo.load("maskrcnn_resnet50_fpn", coco[0])
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())


def test_failed_fetch_is_passed_on(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> Path:
        raise DamagedWeightsError("the file that arrived is damaged")

    monkeypatch.setattr(weights, "fetch", fetch)
    with pytest.raises(DamagedWeightsError):
        zoo.load("maskrcnn_resnet50_fpn", coco[0])


def test_path_of_a_file_is_a_name(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.load(str(whole), tmp_path)[1].name == "parts"
    monkeypatch.chdir(whole.parent)
    assert zoo.load("whole.safetensors", tmp_path)[1].name == "parts"
    monkeypatch.setenv("HOME", str(whole.parent))
    assert zoo.load("~/whole.safetensors", tmp_path)[1].name == "parts"
    with pytest.raises(ModelError, match="there is no such file"):
        zoo.load("runs/mine", tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("shape", "did you mean shapes?"),
        ("maskrcnn_resnet50", "did you mean maskrcnn_resnet50_fpn?"),
        ("mask_rcnn_resnet50_fpn_v2", "did you mean maskrcnn_resnet50_fpn_v2?"),
        (
            "yolo",
            "there are auto, shapes, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2, or the path of a file",
        ),
    ],
)
def test_unknown_name_is_answered_with_the_closest(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        zoo.load(name, tmp_path)
    assert str(caught.value) == f"no model is called {name!r}: {hint}"


def test_every_name_of_the_catalogue_has_an_architecture() -> None:
    assert {entry.name for entry in weights.catalogue()} == set(zoo.COCO)
    assert all(isinstance(architecture, Architecture) for architecture in zoo.COCO.values())
