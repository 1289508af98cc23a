"""What a training can learn from a dataset, counted before its first step, and why it may be nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.data.labels import first_of_each
from model.data.segmentation import measure, surely_visible

if TYPE_CHECKING:
    from model.data.labels import Annotation, LabelledImage, Labels


@dataclass(slots=True)
class Tally:
    """Images and objects that will be learned from, and those that will not, by reason."""

    # Usable, with objects or without.
    images: int = 0
    images_with_objects: int = 0
    # That are learned from.
    objects: int = 0
    # Of them with an outline.
    masks: int = 0
    categories: int = 0
    # Category id → objects.
    per_category: dict[int, int] = field(default_factory=dict)
    crowds: int = 0
    # Objects without an outline, left out.
    only_boxes: int = 0
    # Objects without a pixel in the image, left out.
    without_area: int = 0
    # Images and annotations, by what is wrong with them.
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """One sentence: what is learned from, and what is left out."""
        text = (
            f"learning from {_count(self.images, 'image')} with {_count(self.objects, 'object')} and "
            f"{_count(self.masks, 'mask')}"
        )
        if background := self.images - self.images_with_objects:
            text += f" ({_count(background, 'image')} without objects)"
        reasons = self._reasons()
        return text + (f"; left out: {', '.join(reasons)}" if reasons else "")

    def problems(self) -> list[str]:
        """The images and annotations that cannot be used, by reason."""
        return [f"{kind} × {count}" for kind, count in self.left_out.items()]

    def _reasons(self) -> list[str]:
        reasons = self.problems()
        for count, what in (
            (self.crowds, "crowds (iscrowd is 1)"),
            (self.only_boxes, "objects with a box and no outline"),
            (self.without_area, "objects without area in the image"),
        ):
            if count:
                reasons.append(f"{what} × {count}")
        return reasons

    def refusal(self, purpose: str = "train") -> str | None:
        """Why there is nothing to train (or measure) on, and the way out; None if there is something."""
        if self.objects:
            return None
        told = (
            f"there is nothing to {purpose} on: {_count(self.images, 'image')} without any object that counts"
        )
        if self.only_boxes:
            boxes = _count(self.only_boxes, "object")
            return f"{told}; {boxes} have a box but no outline: --masks none trains on boxes alone"
        if self.crowds:
            return (
                f"{told}; {_count(self.crowds, 'annotation')} are crowds (iscrowd is 1), which are ignored: objects "
                "that can be told apart have iscrowd 0"
            )
        if self.without_area:
            return (
                f"{told}; {_count(self.without_area, 'object')} have no area in the image: an outline needs three "
                "corners or more, in pixels"
            )
        if self.left_out:
            return f"{told}; left out: {', '.join(self._reasons())}"
        return f"{told}; the label file has no annotations"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def tally(labels: Labels, *, boxes: bool = False) -> Tally:
    """Count what a label file teaches. boxes: objects without an outline are learned by their boxes."""
    usable = labels.usable()
    found = Tally(images=len(usable), categories=len(labels.categories))
    found.left_out = {kind: count for kind, count, _ in first_of_each(labels.problems)}
    for image in usable:
        learned = [
            annotation
            for annotation in image.annotations
            if _is_learned(found, annotation, image, boxes=boxes)
        ]
        for annotation in learned:
            number = annotation.category_id
            found.per_category[number] = found.per_category.get(number, 0) + 1
        found.objects += len(learned)
        found.images_with_objects += bool(learned)
    return found


def _is_learned(found: Tally, annotation: Annotation, image: LabelledImage, *, boxes: bool) -> bool:
    """Whether an object is learned from; it is counted by why or why not."""
    if annotation.crowd:
        found.crowds += 1
        return False
    visible = surely_visible(annotation.segmentation, image.found_size)
    measured = None if visible else measure(annotation.segmentation, image.found_size)
    if visible or (measured is not None and measured[0] > 0):
        found.masks += 1
        return True
    if measured is not None or annotation.box is None:
        found.without_area += 1
    elif not boxes:
        found.only_boxes += 1
    else:
        return True
    return False


def digest(labels: Labels) -> str:
    """SHA-256 of the categories, images and annotations that can be used, however the file spells them."""
    found = hashlib.sha256(json.dumps([(c.id, c.name) for c in labels.categories]).encode())
    for image in labels.usable():
        objects: list[Any] = [(a.category_id, a.crowd, a.box, a.segmentation) for a in image.annotations]
        # As it always was for labels without keypoints.
        objects += [a.points.tolist() for a in image.annotations if a.points is not None]
        found.update(json.dumps([image.name, image.size, objects]).encode())
    return found.hexdigest()
