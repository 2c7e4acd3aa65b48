"""What to quantize, and how: one Scheme for a tensor, one QConfig for a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from quantlib.errors import ConfigError
from quantlib.quantization.affine import quant_range
from quantlib.quantization.observers import Observer, make_observer

KINDS = ("conv", "linear", "add", "concat", "relu")
"""The operator types that QConfig.by_type knows."""


@dataclass(frozen=True)
class Scheme:
    """How one tensor becomes integers: the grid, and the observer that chooses its range.

    bits 2 to 8; symmetric (zero point fixed in the middle) or affine; one range per tensor or per channel;
    `narrow_range` drops the lowest integer; `signed` None means: signed exactly when symmetric;
    `observer` is a key of OBSERVERS and `options` are that observer's own (percentile=99.9, ...).
    Raises ConfigError at once for bits outside 2..8 or an unknown observer. Introduced in notebook 07.

    >>> Scheme(bits=4).observer_instance()
    MinMaxObserver(bits=4, 0..15, affine, per tensor)
    """

    bits: int = 8
    symmetric: bool = False
    per_channel: bool = False
    narrow_range: bool = False
    signed: bool | None = None
    observer: str = "minmax"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        quant_range(self.bits, self.is_signed, self.narrow_range)
        for name in ("bits", "signed", "symmetric", "narrow_range", "axis"):
            if name in self.options:
                raise ConfigError(
                    f"{name!r} is no option of the observer; set it on the Scheme (axis: per_channel)."
                )
        self.observer_instance(axis=0)

    @property
    def is_signed(self) -> bool:
        """Whether the integers are signed."""
        return self.symmetric if self.signed is None else self.signed

    def observer_instance(self, axis: int = 0) -> Observer:
        """A fresh observer of this scheme; `axis` is the channel axis, used when `per_channel`."""
        return make_observer(
            self.observer,
            bits=self.bits,
            signed=self.is_signed,
            symmetric=self.symmetric,
            narrow_range=self.narrow_range,
            axis=axis if self.per_channel else None,
            **self.options,
        )


WEIGHT = Scheme(bits=8, symmetric=True, per_channel=True, narrow_range=True)
"""Weights: int8, -127..127, one scale per output channel."""

ACTIVATION = Scheme(bits=8, observer="mse")
"""Activations: uint8, affine, one range per tensor, the one of least squared error."""


@dataclass(frozen=True)
class QConfig:
    """Which schemes a network gets, with overrides by operator type and by layer name.

    `weight` and `activation` None leave that side in float32. An activation scheme belongs to the tensor
    that an operator puts out, after its ReLU; the tensor that enters the network is called "input".
    The most special wins: `by_name` ("layer1.0.conv1"), then `by_type` ("conv"), then the QConfig itself;
    an override of None leaves that layer in float32, and its output too unless an integer layer reads it.
    Pooling and flattening keep the grid of their input. The network's output stays float32 unless
    `quantize_output`.
    Raises ConfigError for an unknown type here, for an unknown name in `prepare`. Introduced in notebook 07.
    """

    weight: Scheme | None = WEIGHT
    activation: Scheme | None = ACTIVATION
    by_type: Mapping[str, QConfig | None] = field(default_factory=dict)
    by_name: Mapping[str, QConfig | None] = field(default_factory=dict)
    quantize_output: bool = False

    def __post_init__(self) -> None:
        for label, scheme in (("weight", self.weight), ("activation", self.activation)):
            if scheme is not None and not isinstance(scheme, Scheme):
                raise ConfigError(f"QConfig's {label} must be a Scheme or None, not {scheme!r}.")
        for kind in self.by_type:
            check_name(kind, KINDS, "operator type")
        for name, override in (*self.by_type.items(), *self.by_name.items()):
            if override is not None and not isinstance(override, QConfig):
                raise ConfigError(f"The override for {name!r} must be a QConfig or None, not {override!r}.")

    def for_layer(self, name: str, kind: str) -> QConfig:
        """The QConfig of one operator, overrides resolved."""
        override = self.by_type.get(kind, self)
        override = self.by_name.get(name, override)
        return FLOAT if override is None else override

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ConfigError for a layer name in `by_name` that the network does not have."""
        known = list(names)
        for name in self.by_name:
            check_name(name, known, "layer")


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Raise ConfigError, with the closest known name, unless `name` is known."""
    names = list(known)
    if name in names:
        return
    close = get_close_matches(str(name), names, n=1, cutoff=0.4)
    listed = ", ".join([*names[:8], *(["..."] if names[8:] else [])])
    some = f"choose one of {listed}." if names else "there are none."
    hint = f"did you mean {close[0]!r}?" if close else some
    raise ConfigError(f"There is no {what} named {name!r}; {hint}")


FLOAT = QConfig(weight=None, activation=None)
"""Leaves everything in float32."""
