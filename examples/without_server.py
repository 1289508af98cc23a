"""Find the instances in an image without a server, in this process.

python examples/without_server.py examples/nuclei/images/sparse.png [MODEL]
"""

import sys
from pathlib import Path

from maskserve.engine import Engine, Options, decode, paste

# A name from `maskserve weights list`, or the path of a model file.
engine = Engine.load(sys.argv[2] if len(sys.argv) > 2 else "nuclei")
names = {category.id: category.name for category in engine.model.categories}

image = decode(Path(sys.argv[1]).read_bytes())  # [H, W, 3] uint8, upright
[found] = engine.segment([image], [Options(score_threshold=0.7)])
# COCO RLE, straight from the 28 × 28 maps of the mask head.
masks = paste(found.probabilities, found.boxes, found.size)
for label, score, mask in zip(found.labels.tolist(), found.scores.tolist(), masks, strict=True):
    print(f"{names[label]:10} {score:.3f} {mask.area} pixels")
