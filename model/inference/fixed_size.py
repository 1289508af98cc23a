"""The way from maps to detections in tensors of a fixed size, for GPUs: the host waits once for a whole batch.

proposals.py and heads.py do the same with as many boxes as there are, and ask the device how many at every turn. What
this way cannot decide, it says; then they do it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from model.inference.features import FeatureMaps
    from model.inference.limits import DetectionLimits
    from model.inference.proposals import ProposalGenerator
    from model.inference.roi_heads import BoxHead, Detections


def detect_without_sync(
    propose: ProposalGenerator,
    head: BoxHead,
    maps: FeatureMaps,
    padded: tuple[int, int],
    wanted: DetectionLimits,
) -> tuple[list[Detections], list[Detections]] | None:
    """Each image's detections on the device, and the same on the host; None where this way cannot be sure of them."""
    proposals, real, sure = propose.fixed(maps, padded, wanted.limits)
    features = head.features(maps, list(proposals))
    boxes, scores, labels, counts, sure_too = head.fixed(features, proposals, real, wanted)
    batch, most = scores.shape
    columns = (boxes.flatten(1), scores, labels.float(), counts[:, None].float())
    answer = torch.cat(
        [torch.cat(columns, 1).flatten(), (sure & sure_too).float()[None]]
    ).cpu()  # the host waits
    if not answer[-1]:
        return None
    there = torch.split(answer[:-1].view(batch, -1), [4 * most, most, most, 1], 1)
    on_host = there[0].view(batch, most, 4), there[1], there[2].long()
    found = there[3].long().flatten().tolist()
    on_device, host = (
        [(b[n, :count], s[n, :count], k[n, :count]) for n, count in enumerate(found)]
        for b, s, k in ((boxes, scores, labels), on_host)
    )
    return on_device, host
