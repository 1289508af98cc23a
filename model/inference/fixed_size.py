"""The way from maps to detections in tensors of a fixed size, for GPUs: the host waits once for a whole batch.

`ProposalGenerator.__call__` and `BoxHead.detect` do the same with as many boxes as there are, and wait for the device
to say how many. They take over where this way is not final.
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
    limits: DetectionLimits,
) -> tuple[list[Detections], list[Detections]] | None:
    """Each image's detections on the device, and the same on the host; None where they are not final.

    Args:
        propose: makes the proposals.
        head: finds instances in them.
        maps: of the batch.
        padded: (height, width) of the input.
        limits: what is asked of each image.
    """
    proposals, is_proposal, is_final = propose.propose_fixed(maps, padded, limits.image_ends)
    features = head.features(maps, list(proposals))
    boxes, scores, labels, counts, is_final_too = head.detect_fixed(features, proposals, is_proposal, limits)
    batch, count = scores.shape
    columns = (boxes.flatten(1), scores, labels.float(), counts[:, None].float())
    # The one place where the host waits.
    answer = torch.cat([torch.cat(columns, 1).flatten(), (is_final & is_final_too).float()[None]]).cpu()
    if not answer[-1]:
        return None
    there = torch.split(answer[:-1].view(batch, -1), [4 * count, count, count, 1], 1)
    on_host = there[0].view(batch, count, 4), there[1], there[2].long()
    found = there[3].long().flatten().tolist()
    on_device, host = (
        [(b[n, :count], s[n, :count], k[n, :count]) for n, count in enumerate(found)]
        for b, s, k in ((boxes, scores, labels), on_host)
    )
    return on_device, host
