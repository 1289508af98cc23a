"""What the images of a training step are resized to, and their masks with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from torch import Tensor

    from model.network.architecture import Architecture
    from model.training.recipe import Recipe


def choose_limits(recipe: Recipe, step: int) -> tuple[int, int]:
    """The shorter side to resize a step's images to, and the limit of the longer one, in pixels."""
    if recipe.jitter:
        # The canvas keeps its size.
        return recipe.jitter_side, recipe.jitter_side
    generator = torch.Generator().manual_seed(recipe.step_seed(step))
    sizes = recipe.sizes(step)
    return sizes[int(torch.randint(len(sizes), (), generator=generator))], recipe.max_size


@dataclass(frozen=True, slots=True)
class InputSize:
    """What the images of a step are resized to: a function of the recipe, the step's number and the model's rule.

    Workers resize masks by it, so that those of large photos are small before they are bitmaps.
    """

    recipe: Recipe
    architecture: Architecture

    def __call__(self, step: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image after the network's transform has resized it."""
        shorter, longer = choose_limits(self.recipe, step)
        return replace(self.architecture, min_size=shorter, max_size=longer).input_size(height, width)


def keep_resized_masks(transform: Any) -> None:
    """Make torchvision's transform leave masks alone that have the size of the resized image already."""
    resize = transform.resize

    def resize_image_and_boxes(
        image: Tensor, target: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        masks = target.pop("masks", None) if target is not None else None
        image, target = resize(image, target)
        if target is not None and masks is not None:
            if masks.shape[-2:] != image.shape[-2:]:
                masks = interpolate(masks[:, None].float(), size=image.shape[-2:])[:, 0].byte()
            target["masks"] = masks
        return image, target

    transform.resize = resize_image_and_boxes
