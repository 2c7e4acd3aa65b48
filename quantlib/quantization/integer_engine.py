"""The integer network on a fast runtime: the shell that engines share, and the one of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.quantization.integer_graph import LAST, Integer
from quantlib.quantization.integer_onnx import IMAGES, check_exportable, to_onnx
from quantlib.quantization.onnx_writer import onnx_package
from quantlib.subject.benchmark import has_vnni

SUB_BATCH = 64
"""Images that go through together: with fewer the threads wait more often, with more the memory grows."""


class RuntimeEngine(nn.Module):
    """An Integer, run from its ONNX graph: (n, c, h, w) float32 in, float32 logits out. On the CPU.

    A session is made on first use, and again for another image size or number of threads
    (torch.get_num_threads()); `sub_batch` images go through together. Raises ConfigError where a package is
    missing, or where `to_onnx` does.
    """

    form: ClassVar[str]

    def __init__(self, reference: Integer, sub_batch: int = SUB_BATCH) -> None:
        super().__init__()
        check_exportable(reference)
        onnx_package("onnx")
        self.reference, self.sub_batch = reference, sub_batch
        self._sessions: dict[bool, tuple[Any, Any]] = {}

    @property
    def rounding(self) -> str:
        """How accumulators become 8 bits: always "float"."""
        return self.reference.rounding

    @property
    def weight_bytes(self) -> int:
        """Bytes of int8 weights, int32 biases and float32 scales."""
        return self.reference.weight_bytes

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of any size."""
        return self._run(x, [])[LAST]

    def integers(self, x: Tensor) -> dict[str, Tensor]:
        """The integers that every operator puts out, by name, "input" first: as `Integer.integers`."""
        names = [step.name for step in self.reference.steps if step.name != LAST]
        found = self._run(x, names)
        return {name: found[name] for name in names}

    def start(self, model: bytes) -> Any:
        """A session of the runtime for a serialized graph."""
        raise NotImplementedError

    def call(self, session: Any, x: Any) -> Sequence[Any]:
        """The graph's results for a batch, all as numpy arrays."""
        raise NotImplementedError

    def _run(self, x: Tensor, keep: Sequence[str]) -> dict[str, Tensor]:
        """The logits, and the integers of the steps named in `keep`."""
        session = self._session(tuple(x.shape[1:]), keep)
        parts = [self.call(session, _array(part)) for part in x.split(self.sub_batch)]
        columns = zip(*parts, strict=True)
        return dict(zip([LAST, *keep], (torch.from_numpy(np.concatenate(c)) for c in columns), strict=True))

    def _session(self, shape: tuple[int, ...], keep: Sequence[str]) -> Any:
        """The session for images of this shape: one that gives logits, another that shows every integer."""
        key = shape, torch.get_num_threads()
        slot = bool(keep)
        known, session = self._sessions.get(slot, (None, None))
        if known != key:  # kept in a variable: another thread may put its own image size into the slot
            session = self.start(to_onnx(self.reference, shape, keep, self.form).SerializeToString())
            self._sessions[slot] = key, session
        return session

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make their sessions anew."""
        return {**self.__dict__, "_sessions": {}}


def _array(x: Tensor) -> Any:
    return x.detach().float().contiguous().numpy()


class Engine(RuntimeEngine):
    """An Integer, run by ONNX Runtime, bit-equal to `reference`; see RuntimeEngine.

    Introduced in notebook 08.
    """

    form = "qlinear"

    def __init__(self, reference: Integer, sub_batch: int = SUB_BATCH) -> None:
        onnx_package("onnxruntime")
        super().__init__(reference, sub_batch)

    def start(self, model: bytes) -> Any:
        """A session of ONNX Runtime."""
        options = session_options()
        if (
            not has_vnni()
        ):  # u8 x s8 products may then saturate in 16 bits; this setting takes u8 x u8 instead
            options.add_session_config_entry("session.x64quantprecision", "1")
        return onnxruntime_session(model, options)

    def call(self, session: Any, x: Any) -> Sequence[Any]:
        """Every result of the session."""
        results: Sequence[Any] = session.run(None, {IMAGES: x})
        return results


def session_options() -> Any:
    """ONNX Runtime's options for a fair neighbour: torch's number of threads, idle between two runs.

    Introduced in notebook 08.
    """
    options = onnx_package("onnxruntime").SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would spin on for a while after each run, on the cores that torch works on meanwhile.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def onnxruntime_session(model: bytes, options: Any = None) -> Any:
    """A session of ONNX Runtime on the CPU, with session_options() unless others are given.

    Introduced in notebook 08.
    """
    options = session_options() if options is None else options
    start = onnx_package("onnxruntime").InferenceSession
    return start(model, options, providers=["CPUExecutionProvider"])
