"""Loads the engine that the settings name, for the service and for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from app.runtime.allocator import keep_freed_memory
from app.runtime.cpus import usable_cpus
from model.errors import EngineError
from model.inference.engine import Engine
from model.zoo.errors import WeightsError
from model.zoo.model_file import ModelError

if TYPE_CHECKING:
    from app.settings import Settings

# Errors whose messages say in one line what is wrong and what to do.
LOAD_ERRORS = (EngineError, ModelError, WeightsError)


def load_engine(settings: Settings) -> Engine:
    """Load the model. Blocks for seconds, or until its weights are downloaded. Raises LOAD_ERRORS."""
    torch.set_num_threads(settings.threads or usable_cpus())
    engine = Engine.load(
        settings.model,
        device=settings.device,
        precision=settings.precision,
        weights_folder=settings.weights_dir,
    )
    # Only now, because loading frees several times the model's size, which is not needed again.
    keep_freed_memory()
    return engine
