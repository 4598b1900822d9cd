"""The formats: each writes a network to a file, and opens the file as another program would."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_fast.reid.export.facts import INPUT, KEY, OUTPUTS, to_json
from rga_fast.reid.export.fold import Deployable

Run = Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 (B, H, W, 3) -> both features (B, D)


class Format(NamedTuple):
    """A format by its functions: `write(network, size, path, facts)`, `open(path)`."""

    suffix: str
    write: Callable[[Deployable, tuple[int, int], Path, dict[str, Any]], None]
    open: Callable[[Path], Run]
    read_facts: Callable[[Path], str]


def _example(size: tuple[int, int]) -> Tensor:
    """Two images: a batch of one would be taken for a constant."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, *size, 3), generator=generator, dtype=torch.uint8)


def _exported(network: Deployable, size: tuple[int, int]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=65535)
    with _quiet():
        return torch.export.export(network, (_example(size),), dynamic_shapes=({0: batch},))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes about their own insides and absent torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_onnx(
    network: Deployable, size: tuple[int, int], path: Path, facts: dict[str, Any]
) -> None:
    onnx = need("onnx", "onnxscript", "onnxruntime")
    with _quiet():
        program = torch.onnx.export(
            network,
            (_example(size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65535)},),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=18,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {KEY: to_json(facts)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def open_onnx(path: Path, threads: int = 0) -> Run:
    """With ONNX Runtime on the CPU."""
    onnxruntime = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        before, after = session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(pixels.numpy())})
        return torch.from_numpy(before), torch.from_numpy(after)

    return run


def _onnx_facts(path: Path) -> str:
    model = need("onnx").load(path, load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}[KEY]


def _write_torchscript(
    network: Deployable, size: tuple[int, int], path: Path, facts: dict[str, Any]
) -> None:
    with _quiet(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(network, _example(size)))
        torch.jit.save(traced, path, _extra_files={KEY: to_json(facts)})


def _open_torchscript(path: Path) -> Run:
    with _quiet():
        network = torch.jit.load(path)

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            before, after = network(pixels)
        return before, after

    return run


def _torchscript_facts(path: Path) -> str:
    found = {KEY: ""}
    with _quiet():
        torch.jit.load(path, _extra_files=found)
    return found[KEY]


def _write_pt2(
    network: Deployable, size: tuple[int, int], path: Path, facts: dict[str, Any]
) -> None:
    torch.export.save(_exported(network, size), path, extra_files={KEY: to_json(facts)})


def _open_pt2(path: Path) -> Run:
    with _quiet():
        network = torch.export.load(path).module()

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return network(pixels)

    return run


def _pt2_facts(path: Path) -> str:
    found = {KEY: ""}
    with _quiet():
        torch.export.load(path, extra_files=found)
    return found[KEY]


def _write_aoti(
    network: Deployable, size: tuple[int, int], path: Path, facts: dict[str, Any]
) -> None:
    from torch._inductor import aoti_compile_and_package

    with _quiet(), torch.no_grad():
        aoti_compile_and_package(
            _exported(network, size),
            package_path=str(path),
            inductor_configs={
                "aot_inductor.metadata": {KEY: to_json(facts)},
                "cpp.dynamic_threads": True,  # the program that loads it decides
            },
        )


def _open_aoti(path: Path) -> Run:
    from torch._inductor import aoti_load_package

    package = aoti_load_package(str(path))

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        before, after = package(pixels)
        return before, after

    return run


def _aoti_facts(path: Path) -> str:
    from torch._inductor import aoti_load_package

    return aoti_load_package(str(path)).get_metadata()[KEY]


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, open_onnx, _onnx_facts),
    "torchscript": Format(".pt", _write_torchscript, _open_torchscript, _torchscript_facts),
    "pt2": Format(".pt2", _write_pt2, _open_pt2, _pt2_facts),
    "aoti": Format(".aoti.pt2", _write_aoti, _open_aoti, _aoti_facts),
}


def need(*names: str) -> Any:
    """Imports optional packages; returns the first.

    Raises:
        ImportError: that names the extra which brings them.
    """
    import importlib

    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            raise ImportError(
                f'{name} is needed: pip install "rga-fast[export]" ({error})'
            ) from error
    return modules[0]
