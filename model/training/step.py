"""One step of training: the losses of a batch, their gradient, the optimiser, and the averaged weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import MultiScaleRoIAlign

from model.kernels.processor import is_fast_in_bfloat16
from model.kernels.roi_align import PyramidRoIAlign, Sampling
from model.network.build import build, has_keypoints, has_masks
from model.training.anchor_matching import AnchorMatcher
from model.training.parallel import Group, share_padding
from model.training.recipe import TrainingError
from model.training.resizing import choose_limits, keep_resized_masks
from model.training.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from model.data.loading import Batch
    from model.training.recipe import Recipe
    from model.zoo import model_file

# torchvision's names of the loss terms → the paper's.
TERMS = {
    "loss_classifier": "L_cls",
    "loss_box_reg": "L_box",
    "loss_mask": "L_mask",
    "loss_keypoint": "L_kp",
    "loss_objectness": "L_rpn_cls",
    "loss_rpn_box_reg": "L_rpn_box",
}


@dataclass(slots=True)
class TrainingState:
    """Everything that a step changes."""

    # Steps that are done, which is the number of the next one.
    step: int
    network: nn.Module
    optimizer: torch.optim.Optimizer
    # Exponential moving average of the network's weights and buffers; None if the recipe has no averaging.
    average: AveragedModel | None
    # The best score of a validation, and how many validations followed it.
    best: float = -1.0
    validations_since_best: int = 0
    # Whether the run stopped early, because the score did not improve.
    stopped: bool = False


def start(
    model: model_file.Model, recipe: Recipe, device: str, initial: nn.Module | None, group: Group
) -> TrainingState:
    """Build the network on its device, ready for training, and its optimiser.

    Args:
        model: whose architecture to build.
        recipe: the settings of the run.
        device: where to train, such as "cpu" or "cuda:0".
        initial: a network of that architecture whose weights to start from; None starts from random weights.
        group: the processes that train together.
    """
    torch.manual_seed(recipe.seed)
    network: Any = build(model.architecture, rpn_training=recipe.proposals)
    if initial is not None:
        network.load_state_dict(initial.state_dict())
    # 256 anchors per image, half of them positive: the paper's and torchvision's numbers.
    network.rpn.fg_bg_sampler = Sampler(256, 0.5)
    network.roi_heads.fg_bg_sampler = Sampler(recipe.rois, recipe.positives)
    if torch.device(device).type == "cpu":
        AnchorMatcher.install(network.rpn)
    # torchvision computes proposals, their targets and the ground truth in the type of these outputs, and bfloat16
    # resolves a coordinate of 300 pixels to 2 pixels only.
    network.rpn.head.register_forward_hook(_to_float32)
    network.roi_heads.box_predictor.register_forward_hook(_to_float32)
    if has_keypoints(network):
        network.roi_heads.keypoint_predictor.register_forward_hook(_to_contiguous)
    if model.architecture.pyramid and isinstance(network.roi_heads.box_roi_pool, MultiScaleRoIAlign):
        # The same RoIAlign, 5 to 7 times faster forward and backward on two cores.
        network.roi_heads.box_roi_pool = PyramidRoIAlign(Sampling(7))
        if has_masks(network):
            network.roi_heads.mask_roi_pool = PyramidRoIAlign(Sampling(14))
        if has_keypoints(network):
            network.roi_heads.keypoint_roi_pool = PyramidRoIAlign(Sampling(14))
    if group.world > 1:
        share_padding(network.transform, group)
        if torch.device(device).type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    keep_resized_masks(network.transform)
    network.to(device, _dtype(recipe)).to(memory_format=torch.channels_last).train()
    freeze(network, recipe.frozen_stages)
    trained = [p for p in network.parameters() if p.requires_grad]
    # Weight decay is not applied to biases and norms.
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    average = None
    if recipe.ema:
        average = AveragedModel(network, multi_avg_fn=_ema_with_warmup(recipe.ema), use_buffers=True)
    return TrainingState(0, network, optimizer, average)


def freeze(network: nn.Module, stages: int) -> None:
    """Keep the first stages of the backbone as they are, including the statistics of their norms.

    The stem belongs to the first stage.
    """
    body: Any = network
    body = body.backbone.body
    done = 0
    for name, module in body.named_children():
        if done == stages:
            break
        module.requires_grad_(requires_grad=False).eval()
        # In a C4, stages before the last are named like a ResNet's but are not in `return_layers`.
        done += name in body.return_layers or name in ("layer1", "layer2", "layer3")


def step(
    state: TrainingState, batch: Batch, recipe: Recipe, device: str, group: Group, *, autocast: bool
) -> dict[str, float]:
    """Run one step of the optimiser; return the losses by the paper's names, and their sum as "L".

    Args:
        state: the run, which is changed in place.
        batch: this process's images and targets.
        recipe: the settings of the run.
        device: where the network is.
        group: the processes that train together.
        autocast: whether to compute in bfloat16 where torch's autocast does.

    Raises TrainingError if the loss or the gradient is not finite; the weights are then unchanged.
    """
    network: Any = state.network
    _seed(network, recipe, batch)
    shorter, longer = choose_limits(recipe, batch.step)
    network.transform.min_size, network.transform.max_size = (shorter,), longer
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = recipe.rate(batch.step)
    part, total, losses = _losses(network, batch, recipe, device, group, autocast=autocast)
    if not total.isfinite():
        values = ", ".join(f"{k} {v:.3g}" for k, v in losses.items())
        raise TrainingError(
            f"the loss of step {batch.step} is not finite ({values}); images {batch.image_ids}"
            + _name_nonfinite(state, batch, recipe, device, group, autocast=autocast)
        )
    state.optimizer.zero_grad(set_to_none=True)
    if part is not None:
        part.backward()  # type: ignore[no-untyped-call]
    group.sum_gradients(network.parameters())
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    # Such a gradient would ruin every weight, and the next checkpoint with them.
    if not norm.isfinite():
        raise TrainingError(
            f"the gradient of step {batch.step} is not finite; images {batch.image_ids}"
            + _name_nonfinite(state, batch, recipe, device, group, autocast=autocast)
        )
    state.optimizer.step()
    state.step = batch.step + 1
    if state.average is not None:
        state.average.update_parameters(network)
    return {**losses, "L": float(total)}


def uses_bfloat16(precision: str, device: str) -> bool:
    """Whether to run matrix products in bfloat16; "auto" does where it is faster."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return is_fast_in_bfloat16()


def _to_float32(_module: nn.Module, _inputs: object, output: Any) -> Any:
    """A forward hook: convert a module's bfloat16 outputs to float32, in nested tuples and lists too."""
    if isinstance(output, torch.Tensor):
        return output.float() if output.dtype == torch.bfloat16 else output
    return type(output)(_to_float32(_module, _inputs, part) for part in output)


def _to_contiguous(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """A forward hook: heatmaps in the layout that torchvision's loss can view as rows, and in float32."""
    heatmaps: Tensor = _to_float32(_module, _inputs, output)
    return heatmaps.contiguous()


def _dtype(recipe: Recipe) -> torch.dtype:
    """The type of the weights, and of everything that autocast leaves as it is."""
    return torch.float64 if recipe.precision == "float64" else torch.float32


def _seed(network: Any, recipe: Recipe, batch: Batch) -> None:
    """Make random draws depend only on the seed, the step and an image's place in the batch."""
    seeds = [recipe.step_seed(batch.step) * 65_536 + 2 * place for place in batch.places]
    network.rpn.fg_bg_sampler.set_seeds(seeds)
    network.roi_heads.fg_bg_sampler.set_seeds([seed + 1 for seed in seeds])
    # For any other module that draws random numbers.
    torch.manual_seed(recipe.step_seed(batch.step))


def _losses(
    network: Any, batch: Batch, recipe: Recipe, device: str, group: Group, *, autocast: bool
) -> tuple[Tensor | None, Tensor, dict[str, float]]:
    """The loss of this process (None without images), the loss of all, and its terms by the paper's names."""
    on = torch.device(device)
    terms: dict[str, Tensor] = {}
    counts = torch.zeros(3, device=on)
    if batch.images:
        dtype = _dtype(recipe)
        images = [image.to(on, dtype) / 255 for image in batch.images]
        targets = [{k: v.to(on) for k, v in target.items()} for target in batch.targets]
        targets = [{**target, "boxes": target["boxes"].to(dtype)} for target in targets]
        with torch.autocast(on.type, torch.bfloat16, enabled=autocast):
            terms = network(images, targets)
        anchors, rois = network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler
        counts = torch.tensor([anchors.sampled, rois.sampled, rois.positives], device=on, dtype=torch.float32)
    else:
        # A short batch left no image for this process. The others wait for these numbers (`share_padding`).
        group.max([3, 0, 0], on)
    left_out = {"loss_mask": not has_masks(network), "loss_keypoint": not has_keypoints(network)}
    names = [name for name in TERMS if not left_out.get(name, False)]
    parts = [terms[name].float() if name in terms else torch.zeros((), device=on) for name in names]
    parts = [
        part * recipe.box_weight if name == "loss_box_reg" else part
        for name, part in zip(names, parts, strict=True)
    ]
    if group.world > 1:
        # Each term is a mean over its samples. To make it the mean over the samples of all processes, weight a
        # process's mean by its share of the samples.
        share = counts / group.sum(counts.clone()).clamp(min=1)
        # torchvision does not say how many keypoints it counted, so L_kp is weighted by all positive RoIs, with
        # keypoints or without.
        column = {"loss_objectness": 0, "loss_rpn_box_reg": 0, "loss_mask": 2, "loss_keypoint": 2}
        parts = [part * share[column.get(name, 1)] for part, name in zip(parts, names, strict=True)]
    whole = group.sum(torch.stack(parts).detach().clone())
    losses = {TERMS[name]: float(value) for name, value in zip(names, whole, strict=True)}
    return (torch.stack(parts).sum() if terms else None), whole.sum(), losses


def _name_nonfinite(
    state: TrainingState, batch: Batch, recipe: Recipe, device: str, group: Group, *, autocast: bool
) -> str:
    """The images of a batch, and which of them cause the failure even alone, as the end of an error message."""
    guilty = []
    # With several processes an image cannot be tried alone: `share_padding` would wait for the other processes.
    if group.world == 1:
        for n, name in enumerate(batch.names):
            alone = replace(
                batch, images=[batch.images[n]], targets=[batch.targets[n]], places=[batch.places[n]]
            )
            _seed(state.network, recipe, alone)
            state.optimizer.zero_grad(set_to_none=True)
            part, total, _ = _losses(state.network, alone, recipe, device, Group(), autocast=autocast)
            if part is not None and total.isfinite():
                part.backward()  # type: ignore[no-untyped-call]
            gradients = [p.grad for p in state.network.parameters() if p.grad is not None]
            if not total.isfinite() or not all(bool(g.isfinite().all()) for g in gradients):
                guilty.append(name)
    names = ", ".join(batch.names)
    if not guilty:
        return f" ({names})"
    if len(guilty) == len(batch.names):
        return f" ({names}; each of them alone too)"
    return f" ({names}); alone, the cause is {', '.join(guilty)}"


def _ema_with_warmup(decay: float) -> Callable[[Any, Any, Any], None]:
    """The exponential moving average, with a decay that rises from 0.1 to `decay`.

    With a constant decay, the average would contain the random initial weights for thousands of steps.
    """

    def update(average: Any, current: Any, updates: Any) -> None:
        count = int(updates)
        get_ema_multi_avg_fn(min(decay, (1 + count) / (10 + count)))(average, current, updates)  # type: ignore[no-untyped-call]

    return update
