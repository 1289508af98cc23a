"""What `from model import …` gives, and when it imports what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import model
from model import Engine, Instances, Options, decode, paste

EXAMPLES = Path(__file__).parents[2] / "examples" / "shapes" / "images"


def test_a_photo_is_segmented_by_four_names() -> None:
    image = decode(min(EXAMPLES.glob("*.jpg")).read_bytes())
    engine = Engine.load("shapes", device="cpu")
    (found,) = engine.segment([image], [Options(score_threshold=0.7)])
    assert isinstance(found, Instances)
    assert found.probabilities is not None
    masks = paste(found.probabilities, found.boxes, found.size)
    assert len(masks) == len(found) > 0
    assert found.size == image.shape[:2]
    assert image.dtype == np.uint8


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, model; print(*{'torch', 'numpy', 'PIL'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_its_names_are_listed_and_others_are_refused() -> None:
    assert dir(model) == model.__all__
    with pytest.raises(AttributeError, match="module 'model' has no attribute 'Engines'"):
        _ = model.Engines  # type: ignore[attr-defined]
