"""Detectron2's layout: its configuration with defaults filled in, its names, and what is only written otherwise."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.importing.detectron2_config import DEFAULTS, read_config
from model.importing.detectron2_supported import refuse
from model.importing.importer import import_model
from model.importing.result import ImportingError
from model.importing.rewriting import background_first, fuse_by_sum, scale_deltas
from model.inference.engine import Engine
from model.instances import Options
from tests.model.importing.detectron2_layout import CONFIG, layout, saved
from tests.model.importing.narrow import PIXELS, narrow_weights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Weights that find much in PIXELS, as Detectron2 lays them out: background last, and without boxes."""
    return layout(narrow_weights())


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    """CONFIG with other settings in sections of MODEL."""
    model = CONFIG["MODEL"] | {name: CONFIG["MODEL"].get(name, {}) | new for name, new in sections.items()}
    return CONFIG | {"MODEL": model}


@pytest.mark.parametrize("name", ["model_final.pth", "model_final.pkl"])
def test_checkpoint_and_the_configuration_beside_it_become_a_model(
    tmp_path: Path, tensors: dict[str, torch.Tensor], name: str
) -> None:
    imported = import_model(saved(tmp_path, tensors, name=name))
    architecture, rules = imported.model.architecture, imported.model.architecture.conventions
    assert imported.model.origin == "Detectron2"
    assert (architecture.backbone, architecture.classes) == ("resnet18", 4)
    assert (rules.resize, rules.paste, rules.anchor_strides) == ("detectron2", "detectron2", "level")
    assert (rules.pixel_mean, rules.pixel_std) == ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0))
    assert (rules.box_aligned, rules.box_samples, rules.candidates) == (True, 0, 1000)
    first = imported.network.state_dict()["backbone.body.conv1.weight"]
    assert torch.equal(first, tensors["backbone.bottom_up.stem.conv1.weight"].flip(1))
    engine = Engine(imported.network, imported.model, torch.device("cpu"))
    (found,) = engine.segment([PIXELS], [Options(score_threshold=0.05)])
    assert found.pasting == "detectron2"


def test_a_checkpoint_without_its_configuration_is_asked_for_it(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    path = saved(tmp_path, tensors)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(
        ImportingError, match=r"whose configuration decides what the weights mean: --config config\.yaml"
    ):
        import_model(path)


def test_a_box_and_a_mask_for_all_classes_become_the_same_for_each(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    one = dict(tensors)
    for part in ("weight", "bias"):
        for name, rows in (("box_predictor.bbox_pred", 4), ("mask_head.predictor", 1)):
            one[f"roi_heads.{name}.{part}"] = tensors[f"roi_heads.{name}.{part}"][:rows].clone()
    config = changed(ROI_BOX_HEAD={"CLS_AGNOSTIC_BBOX_REG": True}, ROI_MASK_HEAD={"CLS_AGNOSTIC_MASK": True})
    state = import_model(saved(tmp_path, one, config)).network.state_dict()
    boxes = state["roi_heads.box_predictor.bbox_pred.weight"]
    assert torch.equal(boxes[4:8], boxes[12:16])
    assert torch.equal(boxes[:4], torch.zeros_like(boxes[:4]))


def test_means_of_a_pyramid_become_sums_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"backbone.fpn.{kind}_blocks.{n}.0" for kind in ("inner", "layer") for n in range(4)]
    shapes = {"inner": (5, 3, 1, 1), "layer": (5, 5, 3, 3)}
    tensors = {
        f"{name}.weight": torch.randn(shapes[name.split(".")[2][:5]], generator=generator) for name in names
    } | {f"{name}.bias": torch.randn(5, generator=generator) for name in names}
    features = [torch.randn(1, 3, 2 ** (5 - n), 2 ** (5 - n), generator=generator) for n in range(4)]

    def pyramid(state: dict[str, torch.Tensor], part: float) -> list[torch.Tensor]:
        above: torch.Tensor | None = None
        outputs = []
        for n in (3, 2, 1, 0):
            lateral, output = (
                [state[f"backbone.fpn.{kind}_blocks.{n}.0.{what}"] for what in ("weight", "bias")]
                for kind in ("inner", "layer")
            )
            inner = torch.conv2d(features[n], *lateral)
            if above is not None:
                inner = (inner + above.repeat_interleave(2, 2).repeat_interleave(2, 3)) * part
            above = inner
            outputs.append(torch.conv2d(inner, *output, padding=1))
        return outputs

    expected = pyramid(dict(tensors), 0.5)
    fuse_by_sum(tensors)
    for ours, theirs in zip(pyramid(tensors, 1.0), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_box_weights_go_into_the_predictor_and_background_to_the_front() -> None:
    tensors = {
        "roi_heads.box_predictor.cls_score.weight": torch.tensor([[1.0], [2.0], [9.0]]),
        "roi_heads.box_predictor.cls_score.bias": torch.tensor([1.0, 2.0, 9.0]),
        "roi_heads.box_predictor.bbox_pred.weight": torch.arange(1.0, 9).view(8, 1),
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(1.0, 9),
    }
    background_first(tensors, 2)
    scale_deltas(tensors, "roi_heads.box_predictor.bbox_pred", (20.0, 20.0, 10.0, 10.0))
    assert tensors["roi_heads.box_predictor.cls_score.bias"].tolist() == [9, 1, 2]
    half = [0, 0, 0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert tensors["roi_heads.box_predictor.bbox_pred.bias"].tolist() == half


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        pytest.param(
            {"ROI_HEADS": {"NAME": "CascadeROIHeads"}}, "False is not supported in a cascade", id="cascade"
        ),
        pytest.param(
            {"BACKBONE": {"NAME": "build_resnet_backbone"}},
            r"MODEL\.RPN\.IN_FEATURES: .* is not",
            id="no pyramid",
        ),
        pytest.param(
            {"META_ARCHITECTURE": "PanopticFPN"}, r"MODEL\.META_ARCHITECTURE: 'PanopticFPN'", id="panoptic"
        ),
        pytest.param(
            {"RESNETS": {"DEFORM_ON_PER_STAGE": [False, True, True, True]}},
            "DEFORM_ON_PER_STAGE",
            id="deformable",
        ),
        pytest.param(
            {"POINT_HEAD": {"NUM_FC": 3}}, r"MODEL\.POINT_HEAD\.NUM_FC: not a setting", id="a project's"
        ),
        pytest.param({"RESNETS": {"DEPTH": 34}}, "DEPTH is 34, but the weights' is 18", id="another depth"),
        pytest.param({"FPN": {"NORM": "LN"}}, r"MODEL\.FPN\.NORM: 'LN' is not supported", id="norm"),
        pytest.param(
            {"FPN": {"NORM": "SyncBN"}, "ROI_MASK_HEAD": {"NORM": "GN"}},
            r"MODEL\.ROI_MASK_HEAD\.NORM: 'GN' is not supported beside",
            id="norms",
        ),
        pytest.param({"ROI_HEADS": {"NUM_CLASSES": 5}}, "made for another architecture", id="classes"),
        pytest.param({"ROI_HEADS": {"NUM_CLASSES": "many"}}, r"NUM_CLASSES: 'many' is no value", id="text"),
        pytest.param(
            {"RPN": {"BBOX_REG_WEIGHTS": ["a", 1, 1, 1]}}, r"BBOX_REG_WEIGHTS: .* is no value", id="list"
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sections: dict[str, Any], message: str
) -> None:
    config = (
        CONFIG | {"MODEL": CONFIG["MODEL"] | sections}
        if "META_ARCHITECTURE" in sections
        else changed(**sections)
    )
    with pytest.raises(ImportingError, match=message):
        import_model(saved(tmp_path, tensors, config))


@pytest.mark.parametrize(
    ("base", "name", "value", "allowed"),
    [
        ("FPN", "INPUT.MIN_SIZE_TEST", 0, "1 and more are"),
        ("FPN", "INPUT.MAX_SIZE_TEST", 799, "800 and more are"),
        ("FPN", "MODEL.PIXEL_MEAN", [1.0], "3 numbers are"),
        ("FPN", "MODEL.PIXEL_STD", [1.0, 1.0, 0.0], "3 numbers above 0 are"),
        ("FPN", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5], 1.0], "a list of numbers for each level is"),
        ("FPN", "MODEL.ROI_BOX_HEAD.NUM_FC", -1, "0 and more are"),
        ("FPN", "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 16, "0 to 8 are"),
        ("FPN", "MODEL.ROI_MASK_HEAD.NUM_CONV", 0, "1 and more are"),
        ("FPN", "MODEL.RPN.BBOX_REG_WEIGHTS", [1.0, 1.0, 0.0, 1.0], "4 numbers above 0 are"),
        ("FPN", "MODEL.RPN.PRE_NMS_TOPK_TEST", 0, "1 and more are"),
        ("FPN", "TEST.DETECTIONS_PER_IMAGE", -1, "1 to 1000 are"),
        ("DilatedC5", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", ""),
        ("C4", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "'ROIAlignV2', 'ROIAlign' are"),
    ],
)
def test_values_beyond_what_is_supported_are_refused_by_name(
    tmp_path: Path, base: str, name: str, value: object, allowed: str
) -> None:
    path = tmp_path / "c.yaml"
    # As in the zoo's cascade.
    path.write_text(
        f"_BASE_: Base-RCNN-{base}.yaml\nMODEL: {{MASK_ON: true, ROI_BOX_HEAD: {{CLS_AGNOSTIC_BBOX_REG: true}}}}"
    )
    settings = read_config(path)
    refuse(settings)
    with pytest.raises(ImportingError, match=rf"^{re.escape(name)}: .*supported.*{allowed}"):
        refuse(settings | {name: value})


def test_channels_of_the_rpn_are_those_before_where_they_are_minus_one(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    head = "proposal_generator.rpn_head."
    wide = {name: tensor for name, tensor in tensors.items() if not name.startswith(head)}
    shapes = {"conv.conv0": (24, 16, 3, 3), "conv.conv1": (24, 24, 3, 3)}
    # Two sizes in one ratio.
    shapes |= {"objectness_logits": (2, 24, 1, 1), "anchor_deltas": (8, 24, 1, 1)}
    for name, shape in shapes.items():
        wide |= {f"{head}{name}.weight": torch.ones(shape), f"{head}{name}.bias": torch.ones(shape[0])}
    # Numbers without lists are for all levels.
    anchors = {"SIZES": [16, 48], "ASPECT_RATIOS": [0.5]}
    config = changed(RPN={"CONV_DIMS": [24, -1]}, ANCHOR_GENERATOR=anchors)
    architecture = import_model(saved(tmp_path, wide, config)).model.architecture
    assert architecture.rpn_channels == (24, 24)
    assert architecture.anchor_ratios == (0.5,)
    assert architecture.conventions.anchor_levels == ((16.0, 48.0),) * 5


def test_batch_norms_of_the_pyramid_are_kept(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    normed = {name: t for name, t in tensors.items() if not re.match(r"backbone\.fpn_.*bias", name)}
    for kind in ("lateral", "output"):
        for level in range(2, 6):
            norm = f"backbone.fpn_{kind}{level}.norm."
            normed |= {
                f"{norm}{part}": torch.ones(16) for part in ("weight", "bias", "running_mean", "running_var")
            }
            normed[f"{norm}num_batches_tracked"] = torch.tensor(7)
    imported = import_model(saved(tmp_path, normed, changed(FPN={"NORM": "SyncBN"})))
    assert imported.model.architecture.fpn_norm
    assert imported.model.architecture.head_norm == "batch"
    assert imported.network.state_dict()["backbone.fpn.inner_blocks.0.1.running_mean"].eq(1).all()


def test_norms_without_statistics_have_a_mean_of_0_and_a_variance_of_1(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    old = {name: tensor for name, tensor in tensors.items() if ".running_" not in name}
    imported = import_model(saved(tmp_path, old, name="model_final.pkl"))
    state = imported.network.state_dict()
    assert state["backbone.body.bn1.running_mean"].eq(0).all()
    assert state["backbone.body.layer4.1.bn2.running_var"].eq(1).all()
    assert any("norms have no statistics" in line for line in imported.report.assumed)


def test_lazy_configurations_are_refused_with_a_hint(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    path = saved(tmp_path, tensors)
    (tmp_path / "lazy.py").write_text("raise SystemExit('run')")
    (tmp_path / "lazy.yaml").write_text("model: {_target_: detectron2.modeling.GeneralizedRCNN}")
    (tmp_path / "code.yaml").write_text("MODEL: !!python/object/apply:os.mkdir [trace]")
    for name, message in (
        ("lazy.py", "never run here"),
        ("lazy.yaml", "LazyConfig"),
        ("code.yaml", "plain values"),
    ):
        with pytest.raises(ImportingError, match=message):
            import_model(path, config=tmp_path / name)
    assert not (tmp_path / "trace").exists()


def test_defaults_are_filled_in_and_text_is_read_as_detectron2_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "MODEL:\n  PIXEL_STD: (57.375, 57.12, 58.395)\n  ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: '(10, 10, 5, 5)'}\n"
        "  ANCHOR_GENERATOR: {SIZES: !!python/tuple [[32], [64]]}\nVERSION: 2\n"
    )
    settings = read_config(path)
    assert settings["MODEL.PIXEL_STD"] == [57.375, 57.12, 58.395]
    assert settings["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"] == [10, 10, 5, 5]
    assert settings["MODEL.ANCHOR_GENERATOR.SIZES"] == [[32], [64]]
    assert settings["MODEL.RPN.NMS_THRESH"] == DEFAULTS["MODEL.RPN.NMS_THRESH"] == 0.7


def test_base_files_are_followed_and_circles_and_absent_ones_named(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("MODEL: {RESNETS: {DEPTH: 101}}\nINPUT: {FORMAT: RGB}\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nINPUT: {FORMAT: BGR}\n")
    settings = read_config(tmp_path / "own.yaml")
    assert (settings["MODEL.RESNETS.DEPTH"], settings["INPUT.FORMAT"]) == (101, "BGR")
    (tmp_path / "other.yaml").write_text("MODEL: {RESNETS: {DEPTH: 152}}\n")
    (tmp_path / "both.yaml").write_text("_BASE_: [base.yaml, other.yaml]\n")
    settings = read_config(tmp_path / "both.yaml")
    assert (settings["MODEL.RESNETS.DEPTH"], settings["INPUT.FORMAT"]) == (152, "RGB")
    (tmp_path / "circle.yaml").write_text("_BASE_: circle.yaml\n")
    with pytest.raises(ImportingError, match="leads back to itself"):
        read_config(tmp_path / "circle.yaml")
    (tmp_path / "lost.yaml").write_text("_BASE_: nowhere.yaml\n")
    with pytest.raises(ImportingError, match=r"the file that it builds on is not there: .*nowhere\.yaml"):
        read_config(tmp_path / "lost.yaml")
    (tmp_path / "old.yaml").write_text("VERSION: 1\n")
    with pytest.raises(ImportingError, match="of VERSION 1"):
        read_config(tmp_path / "old.yaml")
