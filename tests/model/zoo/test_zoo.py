"""The names of models: what each means, and what is said of one that means nothing."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.data import Category
from model.network.architecture import Architecture
from model.network.build import build
from model.zoo import catalogue as weights
from model.zoo import zoo
from model.zoo.errors import DamagedWeightsError
from model.zoo.model_file import ModelError
from model.zoo.zoo import COCO_CATEGORIES
from tests.model.zoo.models import THIN


@pytest.fixture
def bundled(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(zoo, "bundled_path", lambda _name: whole)
    return whole


COCO_THIN = replace(THIN, classes=91)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[weights.Weights], dict[str, Path]]:
    """The catalogue and files for it: the zoo's COCO models are as thin as ours, their hashes true."""
    torch.manual_seed(2)
    state = build(COCO_THIN).state_dict()
    folder, entries, files = tmp_path_factory.mktemp("genuine"), [], {}
    for number, entry in enumerate(weights.catalogue()):
        file = folder / f"{entry.name}.pth"
        torch.save({**state, "rpn.head.bbox_pred.bias": torch.full((12,), float(number))}, file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        entries.append(replace(entry, sha256=sha256, url=f"http://weights.invalid/{file.name}"))
        files[entry.name] = file
    return entries, files


@pytest.fixture
def coco(
    genuine: tuple[list[weights.Weights], dict[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, Path]]:
    """An empty weights folder, and the genuine files for it, which tests only read."""
    entries, files = genuine
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(weights, "catalogue", lambda: tuple(entries))
    monkeypatch.setattr(zoo, "COCO", dict.fromkeys(files, COCO_THIN))
    return tmp_path / "weights", files


def put(file: Path, folder: Path) -> Path:
    entry = weights.find(file.stem)
    entry.path(folder).write_bytes(file.read_bytes())
    return entry.path(folder)


def test_the_name_of_a_bundled_model_is_its_file(bundled: Path, tmp_path: Path) -> None:
    _, model = zoo.load("shapes", tmp_path)
    assert (model.name, model.notice) == ("parts", None)


def test_what_the_catalogue_adds_to_a_file_holds_for_its_path_too(tmp_path: Path) -> None:
    path = zoo.bundled_path("shapes")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes())
    names = "shapes", str(path), str(copy)
    extents = {zoo.load(name, tmp_path, runnable=False)[1].object_extent for name in names}
    assert extents == {weights.bundled()["shapes"].object_extent} != {0.0}


def test_bundled_files_lie_beside_the_catalogue() -> None:
    assert zoo.bundled_path("shapes") == weights.bundled_folder() / "shapes.safetensors"
    assert all(entry.path.exists() for entry in weights.bundled().values())


def test_auto_without_coco_weights_is_the_first_bundled_model_and_says_how_to_get_the_other(
    bundled: Path, coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: pytest.fail("reached for the network"))
    entries = [weights.Bundled(name, f"all {name}", "data", "0", 0.3) for name in ("parts", "shapes")]
    monkeypatch.setattr(weights, "bundled", lambda: {entry.name: entry for entry in entries})
    asked: list[str] = []
    monkeypatch.setattr(zoo, "bundled_path", lambda name: asked.append(name) or bundled)
    _, model = zoo.load("auto", coco[0])
    assert (asked, model.name) == (["parts"], "parts")
    assert model.notice is not None
    assert "small bundled model, which finds all parts and nothing else" in model.notice
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


@pytest.mark.parametrize("runnable", [True, False])
def test_coco_model_that_is_named_is_fetched(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, runnable: bool
) -> None:
    folder, files = coco
    asked: list[tuple[str, Path]] = []

    def fetch(name: str, to: Path, **_: object) -> Path:
        asked.append((name, to))
        return put(files[name], to)

    monkeypatch.setattr(weights, "fetch", fetch)
    network, model = zoo.load("maskrcnn_resnet50_fpn_v2", folder, runnable=runnable)
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
    assert (type(network).__module__ == "torchvision.models.detection.mask_rcnn") == runnable


def test_the_model_of_keypoints_knows_people_and_is_never_chosen_by_itself(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files = coco
    put(files["keypointrcnn_resnet50_fpn"], folder)
    with_keypoints = replace(THIN, classes=91, keypoints=17, keypoint_convs=1, keypoint_channels=4)
    file = folder / files["keypointrcnn_resnet50_fpn"].name
    torch.save(build(with_keypoints).state_dict(), file)
    entry = replace(
        weights.find("keypointrcnn_resnet50_fpn"), sha256=hashlib.sha256(file.read_bytes()).hexdigest()
    )
    rest = [each for each in weights.catalogue() if each.name != entry.name]
    monkeypatch.setattr(weights, "catalogue", lambda: (entry, *rest))
    monkeypatch.setitem(zoo.COCO, entry.name, with_keypoints)

    assert zoo.load("auto", folder)[1].keypoints is None
    _, model = zoo.load(entry.name, folder, runnable=False)
    assert model.ap == {"box": 0.546, "keypoints": 0.65}
    assert [category.name for category in model.categories] == ["person"]
    assert model.keypoints is not None
    assert model.keypoints.names[-1] == "right_ankle"


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


@pytest.mark.parametrize("runnable", [True, False])
def test_coco_file_of_another_architecture_is_named_in_one_line(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, runnable: bool
) -> None:
    path = coco[0] / "odd.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    monkeypatch.setattr(weights, "fetch", lambda *_, **__: path)
    with pytest.raises(ModelError, match="not the weights of maskrcnn_resnet50_fpn") as caught:
        zoo.load("maskrcnn_resnet50_fpn", coco[0], runnable=runnable)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runnable", [True, False])
def test_coco_file_older_than_todays_layer_names_is_read(
    coco: tuple[Path, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, runnable: bool
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
    network, _ = zoo.load("maskrcnn_resnet50_fpn", coco[0], runnable=runnable)
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
            f"there are auto, nuclei, shapes, {', '.join(zoo.COCO)}, or the path of a file",
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


def test_names_that_are_files_of_ours_are_known(bundled: Path, coco: tuple[Path, dict[str, Path]]) -> None:
    assert zoo.file_of("shapes") == bundled
    assert zoo.file_of("a/b.safetensors") == Path("a/b.safetensors")
    assert zoo.file_of("maskrcnn_resnet50_fpn") is None
