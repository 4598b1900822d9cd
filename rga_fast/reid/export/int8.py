"""int8 quantisation of an ONNX file, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rga_fast.reid.export.facts import INPUT, KEY, to_json
from rga_fast.reid.export.formats import need

MODES = ("static", "dynamic")
CALIBRATION = 128  # images of the training set from which static quantisation takes its ranges


def quantise(source: Path, target: Path, mode: str, images: Tensor, facts: dict[str, Any]) -> None:
    """Writes the network in `source` with int8 weights and activations to `target`.

    "static" quantises the convolutions, channel by channel, with the ranges that their inputs have
    on `images`, uint8 (N, H, W, 3). "dynamic" measures ranges at every call, and quantises
    convolutions and products with constant weights.
    """
    onnx = need("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    try:
        if mode == "static":
            quantize_static(
                prepared,
                target,
                _Calibration(images),
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        else:
            quantize_dynamic(
                prepared,
                target,
                op_types_to_quantize=["Conv", "MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
    finally:
        prepared.unlink(missing_ok=True)
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {KEY: to_json(facts)})
    onnx.save(model, target)


class _Calibration:
    """Batches for ONNX Runtime's calibration."""

    def __init__(self, images: Tensor) -> None:
        self.batches: Iterator[Tensor] = iter(images.split(8))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
