"""Ask a running service for the instances in an image, and save the picture of them.

python examples/client.py examples/nuclei/images/sparse.png [http://localhost:8000]
"""

import sys
from pathlib import Path

from maskserve import Client

image = Path(sys.argv[1])
url = sys.argv[2] if len(sys.argv) > 2 else "http://localhost:8000"

with Client(url) as client:
    result = client.segment(image, score_threshold=0.7)
    for instance in result.instances:
        # The mask is a NumPy array [H, W] of bool.
        print(f"{instance.category:10} {instance.score:.3f} {int(instance.mask.sum())} pixels")
    Path("drawn.png").write_bytes(client.draw(image, score_threshold=0.7))
