"""OpenVINO: torchvision's network converted by tracing; int8 by NNCF with the photo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import protocol

if TYPE_CHECKING:
    from pathlib import Path


def prepare(folder: Path, precision: str) -> None:
    import openvino
    import torch
    from network import OnePhoto, load_network, to_tensor

    converted = folder / "openvino-float32.xml"
    image = to_tensor(protocol.load_photo(folder))
    if not converted.exists():
        with torch.inference_mode():
            model = openvino.convert_model(OnePhoto(load_network(folder)), example_input=image)
        openvino.save_model(model, converted, compress_to_fp16=False)
    if precision == "int8":
        import nncf

        model = openvino.Core().read_model(converted)
        quantized = nncf.quantize(model, nncf.Dataset([image.numpy()]), subset_size=1)
        openvino.save_model(quantized, folder / "openvino-int8.xml", compress_to_fp16=False)


def load(folder: Path, precision: str) -> protocol.Engine:
    import numpy as np
    import openvino

    numbers = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}[precision]
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": protocol.threads(),
        "INFERENCE_PRECISION_HINT": numbers,
    }
    name = "int8" if precision == "int8" else "float32"
    compiled = openvino.Core().compile_model(folder / f"openvino-{name}.xml", "CPU", settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != numbers:
        raise RuntimeError(f"this processor computes in {used} instead of {numbers}")

    def engine(photo):
        image = np.ascontiguousarray(photo.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
        found = compiled(image)
        return tuple(found[n] for n in range(4))

    return engine


protocol.main(load, prepare)
