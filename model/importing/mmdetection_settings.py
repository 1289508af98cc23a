"""What MMDetection's configuration says, setting by setting: those that are not supported are refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.importing.detectron2 import above
from model.importing.result import ImportingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STRIDES = [4, 8, 16, 32, 64]
NORM_EPS = 1e-5
# Steps of a test pipeline that are read, or that change no pixel.
_STEPS = (
    "Collect", "DefaultFormatBundle", "ImageToTensor", "LoadAnnotations", "LoadImageFromFile", "LoadImageFromNDArray",
    "MultiScaleFlipAug", "Normalize", "PackDetInputs", "Pad", "RandomFlip", "Resize",
)  # fmt: skip


class Table:
    """A table of a configuration, whose settings are all asked for or refused: what is left over is not known."""

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, dict):
            raise ImportingError(f"{name} is no table of settings")
        self.values, self.name, self._asked = values, name, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        """The setting's value."""
        self._asked.add(key)
        return self.values.get(key, default)

    def table(self, key: str) -> Table:
        """The table under a key; empty where there is none. Raises ImportingError."""
        return Table(self.get(key, {}) or {}, f"{self.name}.{key}")

    def only(self, key: str, *allowed: Any) -> Any:
        """The setting's value, which must be one of these; the first is its default."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise ImportingError(
                f"{self.name}.{key}: {value!r:.60} is not supported; {', '.join(map(repr, allowed))} is"
            )
        return value

    def done(self, *others: str) -> None:
        """Refuse what was not asked for, but for settings that matter in training only."""
        left = sorted(set(self.values) - self._asked - set(others))
        if left:
            raise ImportingError(f"{self.name}.{left[0]}: a setting of MMDetection that is not known here")


@dataclass(slots=True)
class Settings:
    """What is read of a configuration before the tensors are looked at."""

    bgr: bool = False
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    # Shorter and longer side, pixels.
    scale: tuple[int, int] = (800, 1333)
    # Whether the strides are in the 1×1 convolutions.
    caffe: bool = False
    norm_eps: float = NORM_EPS
    # The parts that have GroupNorm: "fpn", "box", "mask".
    group_norm: set[str] = field(default_factory=set)
    box_stds: Sequence[float] = ()
    rpn_stds: Sequence[float] = ()
    conventions: dict[str, Any] = field(default_factory=dict)


def read_settings(document: Mapping[str, Any], model: Table) -> Settings:
    """All of a configuration that decides answers. Raises ImportingError for what is not supported."""
    settings = Settings()
    _refuse_kinds(model)
    model.only("type", "MaskRCNN", "FasterRCNN")
    _read_input(document, model, settings)
    backbone = model.table("backbone")
    backbone.only("type", "ResNet", "ResNeXt")
    settings.caffe = backbone.only("style", "pytorch", "caffe") == "caffe"
    for key, allowed in (
        ("num_stages", (4,)),
        ("deep_stem", (False,)),
        ("avg_down", (False,)),
        ("dcn", (None,)),
        ("plugins", (None,)),
        ("dilations", ([1, 1, 1, 1],)),
        ("strides", ([1, 2, 2, 2],)),
        ("out_indices", ([0, 1, 2, 3],)),
        ("stem_channels", (None, 64)),
        ("in_channels", (3,)),
        ("conv_cfg", (None,)),
    ):
        backbone.only(key, *allowed)
    norm = backbone.table("norm_cfg")
    norm.only("type", "BN", "SyncBN")
    settings.norm_eps = float(norm.get("eps", NORM_EPS))
    norm.done("requires_grad", "momentum")
    for key in ("depth", "groups", "base_width", "base_channels"):
        backbone.get(key)
    backbone.done(
        "frozen_stages", "norm_cfg", "norm_eval", "init_cfg", "with_cp", "zero_init_residual", "pretrained"
    )
    neck = model.table("neck")
    neck.only("type", "FPN")
    pyramid: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("num_outs", (5,)),
        ("start_level", (0,)),
        ("end_level", (-1,)),
        ("add_extra_convs", (False,)),
        ("relu_before_extra_convs", (False,)),
        ("no_norm_on_lateral", (False,)),
        ("act_cfg", (None,)),
        ("conv_cfg", (None,)),
        ("upsample_cfg", ({"mode": "nearest"},)),
    )
    for key, allowed in pyramid:
        neck.only(key, *allowed)
    read_norm(neck, "fpn", settings)
    neck.get("in_channels")
    neck.get("out_channels")
    neck.done("init_cfg")
    _read_heads(model, settings)
    return settings


def _refuse_kinds(model: Table) -> None:
    """Raise ImportingError for kinds of networks whose answers were not compared with MMDetection's."""
    heads = model.table("roi_head")
    for table in (heads, model):
        if "Cascade" in str(kind := table.get("type")):
            raise ImportingError(
                f"{table.name}.type: {kind!r} is not supported: answers of cascades have not been compared with "
                "MMDetection's; one box head (StandardRoIHead) is supported"
            )
    single = [name for name in ("model.neck", "model.roi_head.shared_head") if _is_single(model, heads, name)]
    if single:
        raise ImportingError(
            f"{single[0]}: a C4 or DC5 is not supported: answers of networks with one map have not been compared with "
            "MMDetection's; an FPN is supported"
        )


def _is_single(model: Table, heads: Table, name: str) -> bool:
    return not model.get("neck") if name == "model.neck" else bool(heads.get("shared_head"))


def read_norm(table: Table, part: str, settings: Settings) -> None:
    """Note whether a part has GroupNorm. Raises ImportingError for another norm.

    Args:
        table: of the part.
        part: "fpn", "box" or "mask".
        settings: where it is noted.
    """
    if (norm := table.get("norm_cfg")) is None:
        return
    known = {"type": "GN", "num_groups": 32, "eps": NORM_EPS}
    plain = norm if isinstance(norm, dict) else {}
    given = {key: value for key, value in plain.items() if key != "requires_grad"}
    if known | given != known or "type" not in given:
        raise ImportingError(
            f"{table.name}.norm_cfg: {norm!r:.60} is not supported; none or GN of 32 groups is"
        )
    settings.group_norm.add(part)


def _read_input(document: Mapping[str, Any], model: Table, settings: Settings) -> None:
    """How images are normalised and resized: 3.x says it in the preprocessor, 2.x in the test pipeline."""
    pipeline = document.get("test_pipeline")
    if pipeline is None:
        loader = document.get("test_dataloader", document.get("data", {}))
        data = loader.get("dataset", loader.get("test", {})) if isinstance(loader, dict) else {}
        pipeline = data.get("pipeline") if isinstance(data, dict) else None
    if not isinstance(pipeline, list):
        raise ImportingError("its configuration has no test_pipeline")
    steps = _flat(pipeline)
    resize = next((step for step in steps if step.get("type") == "Resize"), None)
    scale = next((step[key] for step in steps for key in ("scale", "img_scale") if key in step), None)
    if resize is None or not (isinstance(scale, list) and len(scale) == 2):
        raise ImportingError("test_pipeline: one Resize to a scale of two numbers is needed")
    if not resize.get("keep_ratio", False):
        raise ImportingError("test_pipeline: Resize without keep_ratio is not supported")
    if resize.get("backend", "cv2") != "cv2" or resize.get("interpolation", "bilinear") != "bilinear":
        raise ImportingError("test_pipeline: Resize by another backend or interpolation is not supported")
    settings.scale = (int(min(scale)), int(max(scale)))
    norm = model.get("data_preprocessor", document.get("preprocess_cfg"))
    if isinstance(norm, dict):
        table = Table(norm, "model.data_preprocessor")
        settings.bgr = not table.get("bgr_to_rgb", False)
        table.only("rgb_to_bgr", False)
        divisor = table.get("pad_size_divisor", 1)
        table.only("pad_value", 0)
    else:
        step = next((step for step in steps if step.get("type") == "Normalize"), None)
        if step is None:
            raise ImportingError("its configuration says nowhere how images are normalised")
        table = Table(step, "test_pipeline.Normalize")
        settings.bgr = not table.get("to_rgb", True)
        divisor = next((step.get("size_divisor", 1) for step in steps if step.get("type") == "Pad"), 1)
    if divisor != 32:
        raise ImportingError(f"images padded to multiples of {divisor} are not supported; 32 is")
    settings.mean, settings.std = table.get("mean"), table.get("std")
    if not all(isinstance(v, list) and len(v) == 3 for v in (settings.mean, settings.std)):
        raise ImportingError(f"{table.name}: mean and std are three numbers each")


def _flat(pipeline: Sequence[Any]) -> list[dict[str, Any]]:
    """The steps of a pipeline, and those inside of a step that varies them (MultiScaleFlipAug)."""
    steps: list[dict[str, Any]] = []
    for step in pipeline:
        if isinstance(step, dict):
            if step.get("type") not in _STEPS or step.get("to_float32"):
                raise ImportingError(
                    f"test_pipeline: {step!r:.80} is not supported; {', '.join(_STEPS)} are, on bytes"
                )
            if step.get("flip") is True and step.get("type") == "MultiScaleFlipAug":
                raise ImportingError("test_pipeline: answers averaged with flipped images are not supported")
            steps += [step, *_flat(step.get("transforms", []) or [])]
    return steps


def _read_heads(model: Table, settings: Settings) -> None:
    rpn = model.table("rpn_head")
    rpn.only("type", "RPNHead")
    rpn.table("loss_cls").only("use_sigmoid", True)
    anchors = rpn.table("anchor_generator")
    anchors.only("type", "AnchorGenerator")
    for key, allowed in (
        ("strides", (STRIDES,)),
        ("base_sizes", (None,)),
        ("scale_major", (True,)),
        ("octave_base_scale", (None,)),
        ("scales_per_octave", (None,)),
        ("centers", (None,)),
        ("use_box_type", (False,)),
    ):
        anchors.only(key, *allowed)
    scales, ratios = anchors.get("scales"), anchors.get("ratios")
    if not isinstance(scales, list) or not isinstance(ratios, list):
        raise ImportingError(f"{anchors.name}: scales and ratios are lists of numbers")
    offset = float(anchors.get("center_offset", 0.0))
    anchors.done()
    settings.rpn_stds = _deltas(rpn)
    test = model.table("test_cfg")
    proposals, found = test.table("rpn"), test.table("rcnn")
    heads = model.table("roi_head")
    heads.only("type", "StandardRoIHead")
    box, mask = (_extractor(heads, f"{kind}_roi_extractor") for kind in ("bbox", "mask"))
    settings.box_stds = _deltas(heads.table("bbox_head"))
    nms, rpn_nms = found.table("nms"), proposals.table("nms")
    for table in (nms, rpn_nms):
        table.only("type", "nms")
        table.only("class_agnostic", False)
    proposals.only("nms_across_levels", False)
    proposals.only("nms_post", proposals.get("max_per_img", proposals.get("max_num", 1000)), 1000, 2000)
    if float(found.get("mask_thr_binary", 0.5)) != 0.5:
        raise ImportingError(
            f"{found.name}.mask_thr_binary: {found.get('mask_thr_binary')!r} is not supported; 0.5 is"
        )
    iou, rpn_iou = nms.get("iou_threshold", nms.get("iou_thr", 0.5)), rpn_nms.get("iou_threshold")
    for table in (nms, rpn_nms):
        table.done("split_thr")
    settings.conventions = {
        "resize": "mmdetection",
        "anchor_levels": tuple(tuple(float(stride * scale) for scale in scales) for stride in STRIDES),
        "anchor_offset": offset,
        "anchor_rounding": False,
        "anchor_strides": "level",
        "candidates": int(proposals.get("nms_pre", 1000)),
        "rpn_nms": float(proposals.get("nms_thr", 0.7) if rpn_iou is None else rpn_iou),
        "rpn_min_size": above(float(proposals.get("min_bbox_size", 0))),
        "rpn_sigmoid": True,
        "clamp_both": True,
        "level_rule": "mmdetection",
        "box_bins": box[0],
        "box_samples": box[1],
        "box_aligned": box[2],
        "mask_bins": mask[0],
        "mask_samples": mask[1],
        "mask_aligned": mask[2],
        "score_threshold": float(found.get("score_thr", 0.05)),
        "nms": float(iou),
        "detections": int(found.get("max_per_img", 100)),
        "box_min_size": 0.0,
        "paste": "detectron2",
    }


def _deltas(head: Table) -> Sequence[float]:
    """The deviations that a head's deltas are multiplied with."""
    coder = head.table("bbox_coder")
    coder.only("type", "DeltaXYWHBBoxCoder")
    coder.only("target_means", [0.0, 0.0, 0.0, 0.0])
    coder.only("clip_border", True)
    coder.only("add_ctr_clamp", False)
    stds = coder.get("target_stds", [1.0, 1.0, 1.0, 1.0])
    if not isinstance(stds, list) or len(stds) != 4:
        raise ImportingError(f"{coder.name}.target_stds are four numbers")
    coder.done("ctr_clamp")
    return [float(value) for value in stds]


def _extractor(heads: Table, key: str) -> tuple[int, int, bool]:
    """Bins, samples and whether it is aligned."""
    extractor = heads.table(key)
    if not extractor.values:
        return 14 if key.startswith("mask") else 7, 0, True
    extractor.only("type", "SingleRoIExtractor")
    extractor.only("featmap_strides", STRIDES[:4])
    extractor.only("finest_scale", 56)
    layer = extractor.table("roi_layer")
    layer.only("type", "RoIAlign")
    layer.only("pool_mode", "avg")
    size = layer.get("output_size", layer.get("out_size", 7))
    samples = layer.get("sampling_ratio", layer.get("sample_num", 0))
    return int(size), int(samples), bool(layer.get("aligned", True))
