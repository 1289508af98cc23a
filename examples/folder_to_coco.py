"""Send a folder of images through a running service and write COCO results, for `COCO.loadRes`.

python examples/folder_to_coco.py examples/nuclei/images results.json [http://localhost:8000]
"""

import json
import sys
from pathlib import Path

from maskserve import Client, Result
from maskserve.export import coco_results, image_ids

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
url = sys.argv[3] if len(sys.argv) > 3 else "http://localhost:8000"
images = sorted(path for path in folder.iterdir() if path.suffix in {".jpg", ".png"})

results = []
with Client(url) as client:
    # Eight at a time, in order. An image that has no result comes as the error that says why.
    for image, outcome in zip(images, client.segment_many(images), strict=True):
        if isinstance(outcome, Result):
            results.append((image.name, outcome))
        else:
            print(f"{image}: {outcome}", file=sys.stderr)

ids = image_ids([name for name, _ in results])
out.write_text(json.dumps(coco_results(results, ids)))
print(f"{len(results)} of {len(images)} images are in {out}")
