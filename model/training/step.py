"""One step of training: the losses of a batch, their gradient, the optimiser, and the averaged weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from model.kernels.roi_align import PyramidRoIAlign
from model.network.build import build, has_masks
from model.training.parallel import Group, SharedTransform
from model.training.recipe import TrainingError
from model.training.sampling import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from model.data.loading import Batch
    from model.training.recipe import Recipe
    from model.zoo import model_file

# torchvision's names of the loss terms → the paper's.
TERMS = {
    "loss_classifier": "L_cls",
    "loss_box_reg": "L_box",
    "loss_mask": "L_mask",
    "loss_objectness": "L_rpn_cls",
    "loss_rpn_box_reg": "L_rpn_box",
}


@dataclass(slots=True)
class State:
    """Everything that a step changes."""

    step: int
    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]  # exponential moving average of the network's state dict
    best: float = -1.0  # the best validation's figure
    since: int = 0  # validations since then
    ended: bool = False  # early, because nothing got better


def begin(
    model: model_file.Model, recipe: Recipe, device: str, initial: nn.Module | None, group: Group
) -> State:
    """The network as it starts, on its device, made ready for training, with its optimiser."""
    torch.manual_seed(recipe.seed)
    network: Any = build(model.architecture, rpn_training=recipe.proposals)
    if initial is not None:
        network.load_state_dict(initial.state_dict())
    network.rpn.fg_bg_sampler = Sampler(256, 0.5)  # the paper's and torchvision's
    network.roi_heads.fg_bg_sampler = Sampler(recipe.rois, recipe.positives)
    # What torchvision computes of these, proposals, their targets and the ground truth beside them, has their type, and
    # bfloat16 knows a corner at 300 pixels to 2 only.
    network.rpn.head.register_forward_hook(_in_full)
    network.roi_heads.box_predictor.register_forward_hook(_in_full)
    if model.architecture.pyramid and model.architecture.pooling == "align":
        # The same RoIAlign, 5 to 7 times faster forward and backward on two cores.
        network.roi_heads.box_roi_pool = PyramidRoIAlign(7)
        if has_masks(network):
            network.roi_heads.mask_roi_pool = PyramidRoIAlign(14)
    if group.world > 1:
        network.transform = SharedTransform(network.transform, group)
        if torch.device(device).type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    network.to(device, _number_format(recipe)).to(memory_format=torch.channels_last).train()
    freeze(network, recipe.frozen_stages)
    trained = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    free = [p for p in trained if p.ndim <= 1]  # biases and norms
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    return State(0, network, optimizer, average)


def freeze(network: nn.Module, stages: int) -> None:
    """Keep the backbone's first stages as they are, statistics of norms included; the stem goes with the first."""
    body: Any = network
    body = body.backbone.body
    done = 0
    for name, module in body.named_children():
        if done == stages:
            break
        module.requires_grad_(requires_grad=False).eval()
        # A C4's stages before its last are named as ResNet's are, whether they are returned or not.
        done += name in body.return_layers or name in ("layer1", "layer2", "layer3")


def step(
    state: State, batch: Batch, recipe: Recipe, device: str, group: Group, *, half: bool
) -> dict[str, float]:
    """One step of the optimiser; the losses by the paper's names, and their sum as "L"."""
    network: Any = state.network
    _seed(network, recipe, batch)
    if not recipe.jitter:
        generator = torch.Generator().manual_seed(_number(recipe, batch.step))
        sizes = recipe.sizes(batch.step)
        size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
        network.transform.min_size, network.transform.max_size = (size,), recipe.max_size
    else:  # the canvas as it is
        network.transform.min_size, network.transform.max_size = (recipe.jitter_side,), recipe.jitter_side
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = recipe.rate(batch.step)
    terms, total, losses = _losses(network, batch, recipe, device, group, half=half)
    if not total.isfinite():
        values = ", ".join(f"{k} {v:.3g}" for k, v in losses.items())
        raise TrainingError(
            f"the loss of step {batch.step} is not finite ({values}); images {batch.image_ids}"
            + _culprits(state, batch, recipe, device, half=half)
        )
    state.optimizer.zero_grad(set_to_none=True)
    if terms is not None:
        terms.backward()  # type: ignore[no-untyped-call]
    group.sum_gradients(network.parameters())
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
    if not norm.isfinite():  # it would spoil every weight, and the next checkpoint with them
        raise TrainingError(
            f"the gradient of step {batch.step} is not finite; images {batch.image_ids}"
            + _culprits(state, batch, recipe, device, half=half)
        )
    state.optimizer.step()
    state.step = batch.step + 1
    _update_average(state, recipe.ema)
    return {**losses, "L": float(total)}


def _in_full(_module: nn.Module, _inputs: object, result: Any) -> Any:
    """A module's tensors, in whatever tuples and lists, as float32 where they are bfloat16."""
    if isinstance(result, torch.Tensor):
        return result.float() if result.dtype == torch.bfloat16 else result
    return type(result)(_in_full(_module, _inputs, part) for part in result)


def _number_format(recipe: Recipe) -> torch.dtype:
    """Of the weights, and of everything that autocast leaves as it is."""
    return torch.float64 if recipe.precision == "float64" else torch.float32


def _number(recipe: Recipe, step: int) -> int:
    return (recipe.seed + 1) * 1_000_003 + step


def _seed(network: Any, recipe: Recipe, batch: Batch) -> None:
    """Make the samplers' draws a function of the seed, the step and an image's place in the batch."""
    seeds = [_number(recipe, batch.step) * 65_536 + 2 * place for place in batch.places]
    network.rpn.fg_bg_sampler.begin(seeds)
    network.roi_heads.fg_bg_sampler.begin([seed + 1 for seed in seeds])
    torch.manual_seed(_number(recipe, batch.step))  # for whatever else draws


def _losses(
    network: Any, batch: Batch, recipe: Recipe, device: str, group: Group, *, half: bool
) -> tuple[Tensor | None, Tensor, dict[str, float]]:
    """The part of the loss to go backward from here, the whole loss, and its terms by the paper's names."""
    on = torch.device(device)
    terms: dict[str, Tensor] = {}
    counts = torch.zeros(3, device=on)
    if batch.images:
        form = _number_format(recipe)
        images = [image.to(on, form) / 255 for image in batch.images]
        targets = [{k: v.to(on) for k, v in target.items()} for target in batch.targets]
        targets = [{**target, "boxes": target["boxes"].to(form)} for target in targets]
        with torch.autocast(on.type, torch.bfloat16, enabled=half):
            terms = network(images, targets)
        anchors, rois = network.rpn.fg_bg_sampler, network.roi_heads.fg_bg_sampler
        counts = torch.tensor([anchors.sampled, rois.sampled, rois.positives], device=on, dtype=torch.float32)
    else:  # a short batch had no image for this process; the others wait for it here
        group.largest([3, 0, 0], on)
    names = [name for name in TERMS if name != "loss_mask" or has_masks(network)]
    parts = [terms[name].float() if name in terms else torch.zeros((), device=on) for name in names]
    parts = [
        part * recipe.box_weight if name == "loss_box_reg" else part
        for name, part in zip(names, parts, strict=True)
    ]
    if group.world > 1:
        # Each term is a mean over its samples: over those of all processes, a part weighs as much as its samples.
        share = counts / group.summed(counts.clone()).clamp(min=1)
        of = {"loss_objectness": 0, "loss_rpn_box_reg": 0, "loss_mask": 2}
        parts = [part * share[of.get(name, 1)] for part, name in zip(parts, names, strict=True)]
    whole = group.summed(torch.stack(parts).detach().clone())
    losses = {TERMS[name]: float(value) for name, value in zip(names, whole, strict=True)}
    return (torch.stack(parts).sum() if terms else None), whole.sum(), losses


def _culprits(state: State, batch: Batch, recipe: Recipe, device: str, *, half: bool) -> str:
    """Which images give no finite loss or gradient by themselves, as the end of a sentence."""
    found = []
    if not isinstance(
        state.network.transform, SharedTransform
    ):  # the other processes do not take part in this
        for n, name in enumerate(batch.names):
            alone = replace(
                batch, images=[batch.images[n]], targets=[batch.targets[n]], places=[batch.places[n]]
            )
            _seed(state.network, recipe, alone)
            state.optimizer.zero_grad(set_to_none=True)
            terms, total, _ = _losses(state.network, alone, recipe, device, Group(), half=half)
            if terms is not None and total.isfinite():
                terms.backward()  # type: ignore[no-untyped-call]
            gradients = [p.grad for p in state.network.parameters() if p.grad is not None]
            if not total.isfinite() or not all(bool(g.isfinite().all()) for g in gradients):
                found.append(name)
    if found and len(found) == len(batch.names):
        return f" ({', '.join(batch.names)}; each of them by itself)"
    return f" ({', '.join(batch.names)})" + (f"; by itself it is {', '.join(found)}" if found else "")


@torch.no_grad()
def _update_average(state: State, decay: float) -> None:
    # Early on the average follows faster, or it would carry the random start for thousands of steps.
    decay = min(decay, (1 + state.step) / (10 + state.step))
    for name, value in state.network.state_dict().items():
        if value.is_floating_point():
            state.average[name].lerp_(value, 1 - decay)
        else:
            state.average[name].copy_(value)


def computes_in_half(precision: str, device: str) -> bool:
    """Whether to run matrix products in bfloat16; "auto" does where the processor has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 (torch has no public name for it)
