"""Backbones from classifiers' files, and detectors that take what they know to other categories."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from model.data import Category
from model.network.architecture import C4, SMALL, V2, ArchitectureError
from model.network.build import build
from model.training.initial import load_backbone, transfer, widen
from model.zoo import model_file
from model.zoo.model_file import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from model.network.architecture import Architecture

THIN = replace(SMALL, classes=4, fpn_channels=8, box_channels=8, mask_channels=8)
CATEGORIES = (Category(7, "cat"), Category(2, "dog"), Category(3, "owl"))


def resnet18() -> Any:
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None)


def test_classifiers_weights_become_the_backbone(tmp_path: Path) -> None:
    classifier = resnet18()
    save_file(classifier.state_dict(), tmp_path / "resnet18.safetensors")
    network: Any = build(THIN)
    load_backbone(network, THIN, str(tmp_path / "resnet18.safetensors"), tmp_path)
    assert torch.equal(network.backbone.body.conv1.weight, classifier.conv1.weight)
    assert torch.equal(network.backbone.body.layer4[1].conv2.weight, classifier.layer4[1].conv2.weight)


def test_fifth_stage_of_a_c4_is_filled_too(tmp_path: Path) -> None:
    classifier = resnet18()
    save_file(classifier.state_dict(), tmp_path / "resnet18.safetensors")
    architecture = replace(C4, backbone="resnet18", classes=4)
    network: Any = build(architecture)
    load_backbone(network, architecture, str(tmp_path / "resnet18.safetensors"), tmp_path)
    assert torch.equal(network.roi_heads.box_head.res5[1].conv2.weight, classifier.layer4[1].conv2.weight)
    assert not any("layer4" in name for name, _ in network.backbone.named_parameters())


def test_names_of_features_fit_vgg(tmp_path: Path) -> None:
    architecture = replace(THIN, backbone="vgg16", norm="frozen")
    network: Any = build(architecture)
    tensors = {
        f"features.{name}": torch.full_like(tensor, 0.5)
        for name, tensor in network.backbone.body.state_dict().items()
    }
    save_file({**tensors, "classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg.safetensors")
    load_backbone(network, architecture, str(tmp_path / "vgg.safetensors"), tmp_path)
    assert all((tensor == 0.5).all() for tensor in network.backbone.body.state_dict().values())


def test_pickle_is_read_only_where_its_name_has_its_hash(tmp_path: Path) -> None:
    network = build(THIN)
    plain = tmp_path / "resnet18.pth"
    torch.save(resnet18().state_dict(), plain)
    with pytest.raises(ModelError, match="name has its hash"):
        load_backbone(network, THIN, str(plain), tmp_path)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    named = tmp_path / f"resnet18-{digest[:8]}.pth"
    plain.rename(named)
    assert load_backbone(network, THIN, str(named), tmp_path) == str(named)
    forged = tmp_path / f"resnet18-{'0' * 8}.pth"
    named.rename(forged)
    with pytest.raises(ModelError, match="is damaged"):
        load_backbone(network, THIN, str(forged), tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="not the weights of a resnet18"):
        load_backbone(build(THIN), THIN, str(tmp_path / "other.safetensors"), tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        load_backbone(build(THIN), THIN, str(tmp_path / "none.safetensors"), tmp_path)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ModelError, match="cannot be read"):
        load_backbone(build(THIN), THIN, str(tmp_path / "text.safetensors"), tmp_path)


def test_imagenet_is_fetched_by_torchvisions_name_and_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(url: str, destination: Path, sha256: str, **_: Any) -> None:
        asked.append((url, sha256))
        torch.save(resnet18().state_dict(), destination)

    monkeypatch.setattr("model.training.initial.download", fetch)
    monkeypatch.setattr("model.training.initial.verify", lambda *_: "")
    load_backbone(build(THIN), THIN, "imagenet", tmp_path)
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd")]


@pytest.mark.parametrize("masks", ["sigmoid", "softmax", "agnostic"])
def test_categories_that_are_known_by_name_keep_what_they_learned(masks: str) -> None:
    architecture = replace(THIN, masks=masks)
    network: Any = build(architecture)
    model = model_file.describe("old", architecture, CATEGORIES)
    wanted = (Category(1, "owl"), Category(2, "horse"), Category(3, "cat"), Category(4, "cow"))
    made: Any
    made, changed, known = transfer(network, model, wanted)
    assert known == ["owl", "cat"]
    assert changed == replace(architecture, classes=5)
    old, new = network.roi_heads, made.roi_heads
    for theirs, ours in ((0, 0), (3, 1), (1, 3)):  # background, owl, cat
        assert torch.equal(
            new.box_predictor.cls_score.weight[ours], old.box_predictor.cls_score.weight[theirs]
        )
        rows = slice(4 * ours, 4 * ours + 4), slice(4 * theirs, 4 * theirs + 4)
        assert torch.equal(
            new.box_predictor.bbox_pred.bias[rows[0]], old.box_predictor.bbox_pred.bias[rows[1]]
        )
        if masks != "agnostic":
            assert torch.equal(
                new.mask_predictor.mask_fcn_logits.weight[ours],
                old.mask_predictor.mask_fcn_logits.weight[theirs],
            )
    if masks == "agnostic":
        assert torch.equal(
            new.mask_predictor.mask_fcn_logits.weight, old.mask_predictor.mask_fcn_logits.weight
        )
    assert torch.equal(made.backbone.body.conv1.weight, network.backbone.body.conv1.weight)


def test_labels_with_gaps_are_followed() -> None:
    architecture = replace(THIN, classes=91)
    network: Any = build(architecture)
    model = model_file.Model("coco", architecture, (Category(88, "teddy bear"),), (88,))
    made: Any
    made, _, known = transfer(network, model, (Category(5, "dragon"), Category(9, "teddy bear")))
    assert known == ["teddy bear"]
    ours, theirs = (n.roi_heads.box_predictor.cls_score.bias for n in (made, network))
    assert torch.equal(ours[2], theirs[88])


V2_THIN = replace(
    V2, backbone="resnet18", classes=4, fpn_channels=8, box_channels=8, mask_channels=8, proposals=50
)


@pytest.mark.parametrize(
    "architecture", [THIN, V2_THIN], ids=["one norm", "norms and convolutions everywhere"]
)
def test_widened_network_computes_what_it_did_before(architecture: Architecture) -> None:
    architecture = replace(architecture, min_size=96, max_size=128)
    torch.manual_seed(2)
    narrow = build(architecture)
    with torch.no_grad():
        for name, tensor in narrow.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
    wide, described = widen(narrow, architecture, 12)
    assert described == replace(architecture, fpn_channels=12, mask_channels=12)
    image = torch.rand(3, 90, 110)
    with torch.no_grad():
        before, after = narrow([image])[0], wide([image])[0]
    assert len(before["boxes"]) > 5
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=1e-4, atol=1e-4)


def test_what_a_widened_network_gains_can_learn() -> None:
    """Nothing reads the new channels yet, so that the weights that read them must get a gradient."""
    torch.manual_seed(3)
    network, _ = widen(build(THIN), THIN, 12)
    network.train()
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    sum(network([torch.rand(3, 64, 64)], [target]).values()).backward()
    reading: Any = network
    for layer in (reading.rpn.head.cls_logits, reading.roi_heads.mask_predictor.mask_fcn_logits):
        assert (layer.weight[:, 8:] == 0).all()
        assert (layer.weight.grad[:, 8:] != 0).any()


@pytest.mark.parametrize(
    ("architecture", "channels"), [(THIN, 7), (replace(C4, backbone="resnet18", classes=4), 512)]
)
def test_networks_are_not_made_narrower_and_a_c4_has_no_channels_to_add(
    architecture: Architecture, channels: int
) -> None:
    with pytest.raises(ArchitectureError, match="can be widened"):
        widen(build(THIN), architecture, channels)
