"""Training with the paper's multi-task loss L = L_cls + L_box + L_mask (Mask R-CNN, section 3) and the RPN's two terms.

The result of a run is one safetensors file that the service can serve; a checkpoint beside it resumes exactly.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from model import zoo
from model.data.loading import Batch, batches
from model.network import build, has_masks
from model.recipe import Recipe, TrainingError
from model.roi_align import PyramidRoIAlign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from model.data import Dataset

__all__ = ["TERMS", "Recipe", "TrainingError", "read_log", "train"]

# torchvision's names of the loss terms → the paper's.
TERMS = {
    "loss_classifier": "L_cls",
    "loss_box_reg": "L_box",
    "loss_mask": "L_mask",
    "loss_objectness": "L_rpn_cls",
    "loss_rpn_box_reg": "L_rpn_box",
}


@dataclass(slots=True)
class _State:
    """Everything that a step changes."""

    step: int
    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]  # exponential moving average of the network's state dict


def train(
    dataset: Dataset,
    model: zoo.Model,
    recipe: Recipe,
    run: Path,
    *,
    device: str = "cpu",
    initial: nn.Module | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> Path:
    """Train `model`'s architecture on a dataset; return the path of the weights file, `run`/model.safetensors.

    A run folder that holds a checkpoint of the same recipe is resumed: the result is what it would have been
    without the interruption, bit for bit on the CPU. initial: a network to start from instead of random weights.
    on_step gets each step's number and losses. Raises TrainingError, also when the loss is no longer finite.
    """
    recipe.check()
    if not len(dataset):
        raise TrainingError("the dataset has no images")
    if unknown := {c.id: c.name for c in dataset.categories if c not in model.categories}:
        raise TrainingError(f"the model does not know the dataset's categories {unknown}")
    run.mkdir(parents=True, exist_ok=True)
    _keep_settings(run, model, recipe)
    state = _begin(model, recipe, device, initial)
    _resume(state, run, device)
    labels = {c.id: label for c, label in zip(model.categories, model.labels, strict=True)}
    loader = batches(
        dataset,
        labels,
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        first=state.step,
        seed=recipe.seed,
        flip=recipe.flip,
        workers=recipe.workers,
    )
    half = _computes_in_half(recipe.precision, device)
    with (run / "log.jsonl").open("a") as log:
        for batch in loader:
            started = time.perf_counter()
            losses = _step(state, batch, recipe, device, half=half)
            record = {"step": batch.step, "lr": recipe.rate(batch.step), **losses}
            record["seconds"] = time.perf_counter() - started
            log.write(
                json.dumps({k: v if k == "step" else float(f"{v:.8g}") for k, v in record.items()}) + "\n"
            )
            if on_step is not None:
                on_step(batch.step, losses)
            if state.step % recipe.checkpoint_every == 0 or state.step == recipe.steps:
                log.flush()
                # The checkpoint last: a run that has one has what was made of it, whenever it is interrupted.
                save_average(state.network, state.average if recipe.ema else None, model, recipe, run)
                _checkpoint(state, run)
    return run / "model.safetensors"


def _keep_settings(run: Path, model: zoo.Model, recipe: Recipe) -> None:
    """Write what the run was started with, and refuse to resume a run of something else."""
    settings = {
        "architecture": model.architecture.to_dict(),
        "categories": [asdict(category) for category in model.categories],
        "data": model.training.get("data"),
        "initial": model.training.get("initial"),
        "recipe": asdict(recipe),
    }
    settings = json.loads(json.dumps(settings))
    path = run / "settings.json"
    if (run / "checkpoint.pt").exists() and path.exists():
        before = json.loads(path.read_text())
        done = int(torch.load(run / "checkpoint.pt", mmap=True, weights_only=True)["step"])
        changed = []
        if not recipe.begins_like(Recipe(**{k: _tuples(v) for k, v in before["recipe"].items()}), done):
            changed = [
                f"{key} {before['recipe'].get(key)} → {value}"
                for key, value in settings["recipe"].items()
                if before["recipe"].get(key, value) != value
            ]
        whole = ("architecture", "categories", "data", "initial")
        changed += [f"the {key}" for key in whole if before.get(key, settings[key]) != settings[key]]
        if changed:
            raise TrainingError(
                f"{run} holds a run with other settings ({', '.join(changed)}); name another folder to start anew"
            )
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(settings, indent=1))
    part.replace(path)


def _tuples(value: Any) -> Any:
    """A value as it was before JSON made lists of its tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _begin(model: zoo.Model, recipe: Recipe, device: str, initial: nn.Module | None) -> _State:
    torch.manual_seed(recipe.seed)
    network = build(model.architecture, rpn_training=recipe.proposals)
    if initial is not None:
        network.load_state_dict(initial.state_dict())
    roi_heads: Any = network.roi_heads
    roi_heads.fg_bg_sampler.batch_size_per_image = recipe.rois
    roi_heads.fg_bg_sampler.positive_fraction = recipe.positives
    # The same RoIAlign, 5 to 7 times faster forward and backward on two cores.
    roi_heads.box_roi_pool = PyramidRoIAlign(7)
    if has_masks(network):
        roi_heads.mask_roi_pool = PyramidRoIAlign(14)
    network.to(device).to(memory_format=torch.channels_last).train()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]  # biases and norms
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, fused=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    return _State(0, network, optimizer, average)


def _step(state: _State, batch: Batch, recipe: Recipe, device: str, *, half: bool) -> dict[str, float]:
    """One step of the optimiser; the losses by the paper's names, and their sum as "L"."""
    # The samplers of RPN and RoI heads draw from the global generator: seeded by the step, so that a resumed run
    # draws the same.
    generator = torch.manual_seed((recipe.seed + 1) * 1_000_003 + batch.step)
    sizes = recipe.sizes(batch.step)
    size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    transform: Any = state.network.transform
    transform.min_size, transform.max_size = (size,), recipe.max_size
    rate = recipe.rate(batch.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    images = [image.to(device, torch.float32) / 255 for image in batch.images]
    targets = [{k: v.to(device) for k, v in target.items()} for target in batch.targets]
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
        terms: dict[str, Tensor] = state.network(images, targets)
    total = torch.stack([terms[name].float() for name in TERMS if name in terms]).sum()
    if not total.isfinite():
        values = ", ".join(f"{TERMS[k]} {v.item():.3g}" for k, v in terms.items())
        raise TrainingError(
            f"the loss of step {batch.step} is not finite ({values}); images {batch.image_ids}"
        )
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip)
    if not norm.isfinite():  # it would spoil every weight, and the next checkpoint with them
        raise TrainingError(f"the gradient of step {batch.step} is not finite; images {batch.image_ids}")
    state.optimizer.step()
    state.step = batch.step + 1
    _update_average(state, recipe.ema)
    return {**{TERMS[k]: float(v.detach()) for k, v in terms.items()}, "L": float(total.detach())}


@torch.no_grad()
def _update_average(state: _State, decay: float) -> None:
    # Early on the average follows faster, or it would carry the random start for thousands of steps.
    decay = min(decay, (1 + state.step) / (10 + state.step))
    for name, value in state.network.state_dict().items():
        if value.is_floating_point():
            state.average[name].lerp_(value, 1 - decay)
        else:
            state.average[name].copy_(value)


def _computes_in_half(precision: str, device: str) -> bool:
    """Whether to run matrix products in bfloat16; "auto" does where the processor has instructions for it."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 (torch has no public name for it)


def _checkpoint(state: _State, run: Path) -> None:
    document = {
        "step": state.step,
        "network": state.network.state_dict(),
        "average": state.average,
        "optimizer": state.optimizer.state_dict(),
    }
    part = run / "checkpoint.pt.part"
    torch.save(document, part)
    part.replace(run / "checkpoint.pt")


def _resume(state: _State, run: Path, device: str) -> None:
    path = run / "checkpoint.pt"
    if not path.exists():
        return
    document = torch.load(path, map_location=device, weights_only=True)
    state.network.load_state_dict(document["network"])
    state.optimizer.load_state_dict(document["optimizer"])
    state.average = document["average"]
    state.step = int(document["step"])
    _forget_after(run / "log.jsonl", state.step)


def _forget_after(log: Path, step: int) -> None:
    """Drop the log's lines of steps that were run after the checkpoint: they will be run again."""
    lines = [line for line in read_log(log) if line["step"] < step]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_log(path: Path) -> list[dict[str, float]]:
    """The records of a run's log.jsonl; a last line that was cut off is passed over."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def save_average(
    network: nn.Module, average: dict[str, Tensor] | None, model: zoo.Model, recipe: Recipe, run: Path
) -> None:
    """Write the averaged weights (or the network's own) as `run`/model.safetensors."""
    saved = build(model.architecture)
    saved.load_state_dict(average if average is not None else network.state_dict())
    training = {**model.training, "recipe": json.loads(json.dumps(asdict(recipe)))}
    zoo.save(run / "model.safetensors", saved, replace(model, training=training), half=True)
