"""ONNX Runtime: torchvision's network by torch's TorchScript exporter; int8 by static quantization with the photo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import protocol

if TYPE_CHECKING:
    from pathlib import Path


def prepare(folder: Path, precision: str) -> None:
    import torch
    from network import OnePhoto, load_network, to_tensor

    exported = folder / "onnx-float32.onnx"
    if not exported.exists():
        image = to_tensor(protocol.load_photo(folder))
        with torch.inference_mode():
            torch.onnx.export(
                OnePhoto(load_network(folder)), (image,), exported, dynamo=False, opset_version=17,
                input_names=["image"], output_names=["boxes", "labels", "scores", "masks"],
            )  # fmt: skip
    if precision == "int8":
        quantize(folder, exported)


def quantize(folder: Path, exported: Path) -> None:
    from network import to_tensor
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Photo(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = iter([{"image": to_tensor(protocol.load_photo(folder)).numpy()}])

        def get_next(self):
            return next(self.inputs, None)

    inferred = folder / "onnx-inferred.onnx"
    quant_pre_process(exported, inferred, skip_symbolic_shape=True)
    quantize_static(
        inferred, folder / "onnx-int8.onnx", Photo(), quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"], per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def load(folder: Path, precision: str) -> protocol.Engine:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = protocol.threads()
    # Errors only: it warns of each mask that the loop of the export appends.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        folder / f"onnx-{precision}.onnx", options, providers=["CPUExecutionProvider"]
    )

    def engine(photo):
        image = np.ascontiguousarray(photo.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
        return session.run(["boxes", "labels", "scores", "masks"], {"image": image})

    return engine


protocol.main(load, prepare)
