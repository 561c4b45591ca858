"""Fingerprints of plain values, and of all weights of a model: equal in every process, others where anything differs.

Weights are summed up, not sampled: every number takes part. The words of a tensor (32 bits each) are multiplied by
fixed odd numbers and added up modulo 2^64, on the tensor's own device: one changed word always shows, and any other
change is missed by a chance of about 2^-32. On one CPU thread that takes 0.24 to 0.35 s per GB (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import sha256

import numpy as np
import torch
from torch import nn

from nnsight_mmflow.runs.class_names import full_name
from nnsight_mmflow.runs.own_code import class_parts, used_globals

PLAIN = (type(None), bool, int, float, str, bytes)
CHUNK = 2**16  # words that share one list of factors
AT_ONCE = {"cpu": 4, "cuda": 256}  # chunks in one operation: what fits the cache, or fills the device
SHOWN = 16  # hexadecimal digits of a fingerprint


def fingerprint(value: object) -> str:
    """A short text that is the same for equal values: plain ones, tensors, arrays, pictures, dataclasses, functions.

    Lists and tuples count alike, mappings and sets whatever their order. A function counts by its code and by what it
    closes over; one of the user's own also by the globals that it reads, and what is of a user's class by its code.
    """
    return sha256("\n".join(_parts(value, ())).encode()).hexdigest()[:SHOWN]


def _parts(value: object, within: tuple[int, ...]) -> Iterator[str]:
    """The value as a row of texts."""
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    if id(value) in within:
        yield "itself"
        return
    within = (*within, id(value))
    kind = full_name(type(value))
    if isinstance(value, torch.Tensor):
        yield f"tensor {tensor_digest(value)}"
    elif isinstance(value, np.ndarray | np.generic):
        yield f"array {value.dtype} {value.shape} {sha256(value.tobytes()).hexdigest()}"
    elif kind.startswith("PIL.") and hasattr(value, "tobytes"):
        mode, size = getattr(value, "mode", ""), getattr(value, "size", "")
        yield f"picture {mode} {size} {sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}"
        yield from sorted("\n".join([*_parts(key, within), *_parts(held, within)]) for key, held in value.items())
    elif isinstance(value, set | frozenset):
        yield f"set {len(value)}"
        yield from sorted("\n".join(_parts(item, within)) for item in value)
    elif isinstance(value, list | tuple | range):
        if all(type(item) in PLAIN for item in value):  # positions, most of all: one text for all of them
            yield f"plain row {list(value)!r}"
            return
        yield f"row {len(value)}"
        for item in value:
            yield from _parts(item, within)
    elif isinstance(value, type | torch.dtype | torch.device) or kind == "builtins.module":
        yield f"{kind} {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
        if isinstance(value, type):
            yield from _parts(class_parts(value), within)
    elif hasattr(value, "__code__"):
        yield f"function {getattr(value, '__qualname__', '')}"
        yield from _code(value.__code__, within)
        closed = [_closed(cell) for cell in getattr(value, "__closure__", None) or ()]
        yield from _parts(
            [closed, getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)], within
        )
        yield from _parts(used_globals(value), within)
    elif isinstance(value, partial):
        yield from _parts(["partial", value.func, value.args, value.keywords], within)
    elif hasattr(value, "__func__"):
        yield from _parts(["method", value.__func__, getattr(value, "__self__", None)], within)
    elif hasattr(value, "_module") and hasattr(value, "path"):  # an envoy: where it stands in the model
        yield f"envoy {value.path}"
    elif hasattr(value, "adapter") or hasattr(value, "config") and isinstance(value, nn.Module):
        yield kind  # a graph, or its model: weights are told by themselves
    elif isinstance(value, nn.Module):  # of the user's own, such as an autoencoder
        yield f"{kind} {value.training} {weights_digest(value)}"
        for name, part in value.named_modules():
            told = {held: one for held, one in vars(part).items() if not held.startswith("_")}
            yield from _parts([name, type(part), told], within)
    elif is_dataclass(value):  # what is cached beside the fields does not count
        yield kind
        yield from _parts(class_parts(type(value)), within)
        yield from _parts(
            {field.name: getattr(value, field.name) for field in fields(value) if field.metadata.get("identity", True)},
            within,
        )
    elif hasattr(value, "__dict__"):
        yield kind
        yield from _parts(class_parts(type(value)), within)
        yield from _parts(vars(value), within)
    else:
        yield f"{kind} {value!r}"


def _closed(cell: object) -> object:
    try:
        return cell.cell_contents  # type: ignore[attr-defined]
    except ValueError:  # a name that has no value yet
        return "empty"


def _code(code: object, within: tuple[int, ...]) -> Iterator[str]:
    """What a function's code does, wherever it stands."""
    yield f"code {code.co_code!r} {code.co_names} {code.co_varnames}"  # type: ignore[attr-defined]
    for constant in code.co_consts:  # type: ignore[attr-defined]
        yield from _code(constant, within) if hasattr(constant, "co_code") else _parts(constant, within)


def tensor_digest(tensor: torch.Tensor) -> str:
    """A fingerprint of type, shape and every bit of a tensor, made on its device."""
    mixed = sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.is_meta:
        return f"elsewhere {mixed.hexdigest()[:SHOWN]}"
    plain = tensor.detach()
    if hasattr(plain, "to_local"):  # split over processes: each knows its own part
        plain = plain.to_local()
    flat = plain.contiguous().reshape(-1)
    if not flat.numel():
        return mixed.hexdigest()[:SHOWN]
    if flat.data_ptr() % 4 or flat.storage_offset() * flat.element_size() % 4:
        flat = flat.clone()
    words, rest = _words(flat)
    device = words.device
    factors = _factors(str(device))
    sums, whole = [], len(words) // CHUNK
    with torch.no_grad():
        rows = words[: whole * CHUNK].view(whole, CHUNK)
        step = min(whole, AT_ONCE.get(device.type, 4))
        products = torch.empty(
            step, CHUNK, dtype=torch.int64, device=device
        )  # once: a new one costs more than the sums
        for start in range(0, whole, step or 1):
            part = rows[start : start + step]
            sums.append(torch.mul(part, factors, out=products[: len(part)]).sum(1))
        if whole * CHUNK < len(words):
            part = words[whole * CHUNK :]
            sums.append((part * factors[: len(part)]).sum().reshape(1))
    if sums:
        mixed.update(torch.cat(sums).cpu().numpy().tobytes())
    mixed.update(rest)
    return mixed.hexdigest()[:SHOWN]


def _words(flat: torch.Tensor) -> tuple[torch.Tensor, bytes]:
    """The bits of a flat tensor as 32-bit words, and the bytes that are left over."""
    bits = flat.view(torch.uint8)
    whole = len(bits) // 4 * 4
    return bits[:whole].view(torch.int32), bits[whole:].cpu().numpy().tobytes()


@cache
def _factors(device: str) -> torch.Tensor:
    """Fixed odd numbers of 62 bits, one for each word of a chunk."""
    drawn = torch.randint(-(2**62), 2**62, (CHUNK,), generator=torch.Generator().manual_seed(0))
    return (drawn | 1).to(device)


def weights_digest(model: nn.Module) -> str:
    """A fingerprint of all parameters and buffers of a model, with what quantisation keeps beside them."""
    mixed = sha256()
    for name, tensor in _tensors(model):
        mixed.update(f"{name} {tensor_digest(tensor)}\n".encode())
    return mixed.hexdigest()[:SHOWN]


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield name, (_offloaded(model, name, tensor) if tensor.is_meta else tensor)
        owner, _, last = name.rpartition(".")
        scales = getattr(tensor, "SCB", None)
        if scales is None and last == "weight":  # in 8 bits the first forward moves them into the module's state
            scales = getattr(getattr(model.get_submodule(owner), "state", None), "SCB", None)
        held = {key: value for key, value in vars(tensor).items() if key not in ("CB", "SCB")}
        yield from _beside(f"{name}:", {**held, **({} if scales is None else {"SCB": scales})}, 0)


def _beside(name: str, held: Mapping[str, object], depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a packed weight carries: scales, code books (bitsandbytes' quant_state)."""
    for key, value in sorted(held.items()):
        if isinstance(value, torch.Tensor):
            yield f"{name}{key}", value
        elif hasattr(value, "__dict__") and depth < 3 and not isinstance(value, type | torch.nn.Module):
            yield from _beside(f"{name}{key}.", vars(value), depth + 1)


def _offloaded(model: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight that accelerate keeps in memory or on disk until its layer runs."""
    owner, _, last = name.rpartition(".")
    hook = getattr(model.get_submodule(owner), "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        kept = getattr(each, "weights_map", None)
        if kept is not None and last in kept:
            return kept[last]
    return tensor
