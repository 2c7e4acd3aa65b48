"""Structured pruning: whole filters go, and the network really gets thinner."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantlib.compression.channels import FIXED, Channels, find_channels
from quantlib.errors import ConfigError, NonFiniteError
from quantlib.quantization.graph import BATCH_NORMS


def filter_scores(model: nn.Module, channels: Channels) -> dict[int, float]:
    """How much each channel matters: its filter's L1 norm, batch norm folded in, beside its layer's mean.

        score = mean over makers of s_c / mean(s);  s = |gamma| / sqrt(var + eps) * |W|_1

    Source: Li et al. 2017, there without the batch norm. Introduced in notebook 11.
    """
    found: dict[int, list[float]] = defaultdict(list)
    for name, numbers in channels.makes.items():
        layer: Any = model.get_submodule(name)
        norms = layer.weight.detach().flatten(1).abs().sum(1).double()
        norm: Any = model.get_submodule(channels.norms[name]) if name in channels.norms else None
        if norm is not None and norm.weight is not None and norm.running_var is not None:
            norms = norms * norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
        if not bool(norms.isfinite().all()):
            raise NonFiniteError(f"A filter of {name!r} is NaN or infinite; nothing can be ranked beside it.")
        norms = norms / norms.mean().clamp(min=1e-30)
        for number, score in zip(numbers.tolist(), norms.tolist(), strict=True):
            found[number].append(score)
    return {number: sum(scores) / len(scores) for number, scores in found.items()}


def choose_filters(
    model: nn.Module, channels: Channels, share: float, scope: str = "layer", multiple: int = 1
) -> set[int]:
    """The channels of least score: `share` of every bundle ("layer"), or of all bundles together ("global").

    Every bundle keeps one channel at least, and a number that `multiple` divides where it can: kernels like
    round numbers. Raises ConfigError for a share outside [0, 1), an unknown scope or no multiple.
    Introduced in notebook 11.
    """
    if not 0 <= share < 1 or scope not in ("layer", "global") or multiple < 1:
        raise ConfigError(
            f"share is {share:g}, scope {scope!r}, multiple {multiple}; give 0 <= share < 1, 'layer' or "
            "'global', and a multiple of at least 1."
        )
    scores, bundles = filter_scores(model, channels), channels.bundles().values()
    pooled = sorted(scores[number] for numbers in bundles for number in numbers.tolist())
    limit = pooled[int(share * len(pooled))] if pooled else 0.0
    gone: set[int] = set()
    for numbers in bundles:
        order = sorted(numbers.tolist(), key=lambda number: scores[number])
        drop = int(share * len(order)) if scope == "layer" else sum(scores[n] < limit for n in order)
        keep = -(-max(len(order) - drop, 1) // multiple) * multiple
        gone |= set(order[: max(len(order) - keep, 0)])
    return gone


@torch.no_grad()
def remove_channels(model: nn.Module, channels: Channels, gone: Iterable[int]) -> nn.Module:
    """A copy of the model without the channels `gone`: smaller weights, the same classes and names.

    It computes what the model would if those channels were zero everywhere. Introduced in notebook 11.
    """
    result, dropped = copy.deepcopy(model), np.array(sorted(set(gone) - {FIXED}), dtype=int)
    for name, read in channels.reads.items():
        module: Any = result.get_submodule(name)
        stays = torch.from_numpy(~np.isin(read, dropped))
        if isinstance(module, BATCH_NORMS):
            _cut(module, stays, ("weight", "bias", "running_mean", "running_var"))
            module.num_features = int(stays.sum())
            continue
        made = torch.from_numpy(~np.isin(channels.makes[name], dropped))
        _cut(module, made, ("weight", "bias"))
        if isinstance(module, nn.Conv2d):
            share = stays if module.groups == 1 else torch.ones(module.weight.shape[1], dtype=torch.bool)
            module.groups = 1 if module.groups == 1 else int(stays.sum()) // module.weight.shape[1]
            module.in_channels, module.out_channels = int(stays.sum()), int(made.sum())
        else:
            share = stays
            module.in_features, module.out_features = int(stays.sum()), int(made.sum())
        _put(module, "weight", module.weight[:, share])
    return result


def _cut(module: nn.Module, stays: Tensor, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(module, name) is not None:
            _put(module, name, getattr(module, name)[stays])


def _put(module: Any, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by a part of it, in the memory format that it had."""
    old = getattr(module, name)
    last = old.dim() == 4 and not old.is_contiguous()
    value = value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    setattr(module, name, nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value)


def thin(model: nn.Module, share: float, scope: str = "layer", multiple: int = 1) -> nn.Module:
    """A copy of the model with `share` of its filters removed, those of least norm first.

    Fine-tune it afterwards: it is a network of the same class and names, only narrower. See `find_channels`
    for what can be thinned and `choose_filters` for the choice. Introduced in notebook 11.
    """
    channels = find_channels(model)
    return remove_channels(model, channels, choose_filters(model, channels, share, scope, multiple))
