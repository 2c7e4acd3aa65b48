"""PyTorch's own ways to run the network: eager, compiled, bfloat16, torch.ao, torchao's PT2E."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantlib.subject.data import Images, batches

Network = Callable[[Tensor], Any]
"""Images (n, c, h, w) float32 in, logits out."""


@contextmanager
def _quietly(backend: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = backend
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


def torch_ao_calibrated(
    model: nn.Module, images: Images, backend: str = "x86", dtype: torch.dtype = torch.float32
) -> Any:
    """torch.ao's network with its default observers of `backend`, after it has seen the images.

    dtype bfloat16 runs it under autocast. Introduced in notebook 07.
    """
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with _quietly(backend), torch.no_grad(), autocast:
        example = next(batches(images.take(1)))[0]
        watched = prepare_fx(model, get_default_qconfig_mapping(backend), (example,))
        for x, _ in batches(images):
            watched(x)
    return watched


def torch_ao(model: nn.Module, images: Images, backend: str = "x86") -> nn.Module:
    """torch.ao's int8 network on the kernels of `backend` ("x86", "fbgemm", "onednn", "qnnpack").

    Introduced in notebook 07.
    """
    from torch.ao.quantization.quantize_fx import convert_fx

    watched = torch_ao_calibrated(model, images, backend)
    with _quietly(backend):
        converted: nn.Module = convert_fx(watched)
    return converted


def bfloat16(model: nn.Module) -> Network:
    """The eager network in bfloat16, channels last. Introduced in notebook 18."""
    half = copy.deepcopy(model).to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: half(x.bfloat16()).float()


class Compiled:
    """A network through torch.compile, its weights frozen into the code; one compilation a batch size.

    Introduced in notebook 18.
    """

    def __init__(self, model: nn.Module) -> None:
        self.compiled = torch.compile(model, dynamic=False)

    def __call__(self, x: Tensor) -> Any:
        """Logits of a batch; the first call with a batch size compiles, for a minute."""
        import torch._inductor.config as inductor

        with inductor.patch(freezing=True), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.compiled(x)


def pt2e(model: nn.Module, images: Images) -> Compiled:
    """torchao's PT2E quantization by its X86InductorQuantizer, compiled. Introduced in notebook 18."""
    from torchao.quantization import pt2e as way
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    with _quietly(torch.backends.quantized.engine), torch.no_grad():
        example = next(batches(images.take(2)))[0]
        free = ({0: torch.export.Dim.AUTO},)
        exported = torch.export.export(model, (example,), dynamic_shapes=free, strict=True).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        watched = prepare_pt2e(exported, quantizer)
        for x, _ in batches(images):
            watched(x)
        converted = convert_pt2e(watched)
        way.move_exported_model_to_eval(converted)
    return Compiled(converted)
