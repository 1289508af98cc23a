"""PyTriton: NVIDIA's Triton Inference Server and its Python backend, from a wheel."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
from network import Segmenter
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

folder, port = Path(sys.argv[1]), int(sys.argv[3])
segmenter = Segmenter(folder)


def segment(requests: list) -> list[dict[str, np.ndarray]]:
    """Each request is a JPEG file's bytes."""
    answers = [json.dumps(segmenter(request["jpeg"].tobytes())).encode() for request in requests]
    return [{"answer": np.array([answer], dtype=object)} for answer in answers]


# Triton's stub would load the system's library of this Python version, which may be older than the modules beside it.
os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
config = TritonConfig(
    http_address="127.0.0.1",
    http_port=port,
    allow_grpc=False,
    allow_metrics=False,
    log_file=folder / "triton.log",
)
# It makes the folder of its workspace, which must not be there from an earlier round.
with Triton(config=config, workspace=str(folder / f"triton-{port}")) as triton:
    triton.bind(
        model_name="segment",
        infer_func=segment,
        inputs=[Tensor(name="jpeg", dtype=np.uint8, shape=(-1,))],
        outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
        config=ModelConfig(batching=False),
    )
    triton.serve()
