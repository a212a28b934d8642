"""Count the products of a running module, without its weights or any arithmetic where it lives on `meta`.

torch's own counter gives the total; beside it every product is recorded with its shape and with what it serves, so
that the total can be read part by part. Our fused operators, in which a counter of dispatched operators sees
nothing, are replaced by their dense forms; an operator that could hide a product is refused, not passed over.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from inspect import unwrap
from types import CodeType, FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from tempme_export.bench.counting.products import Kind, Product, Products
from tempme_export.bench.methods.encoders import class_attention, keep_attentive
from tempme_export.encoder.ops import DENSE_FORMS
from tempme_export.errors import InputError, ParityError
from tempme_export.kernels import dense, reference

Code = ModuleType | Callable[..., Any]

MERGING: tuple[Code, ...] = (reference, dense, class_attention, keep_attentive)
"""Code whose products choose, merge and fuse tokens: what the formula does not charge, and the paper to no method."""

_aten = torch.ops.aten
_NAMESPACES = ("aten", "prim", "prims")
_UNCOUNTED = (
    _aten.mv,
    _aten.addmv,
    _aten.dot,
    _aten.vdot,
    _aten.addr,
    _aten.addbmm,
    _aten._int_mm,
)  # torch counts none


def _mm(a: Tensor, b: Tensor, **_: Any) -> tuple[Kind, int, int, int, int]:
    return "weights", 1, a.shape[0], a.shape[1], b.shape[1]


def _bmm(a: Tensor, b: Tensor, **_: Any) -> tuple[Kind, int, int, int, int]:
    return "attention", a.shape[0], a.shape[1], a.shape[2], b.shape[2]


def _convolution(out: Tensor, weight: Tensor) -> tuple[Kind, int, int, int, int]:
    return "convolution", 1, out.numel() // out.shape[1], weight[0].numel(), weight.shape[0]


_READERS: Mapping[Any, Callable[[Tensor, tuple[Any, ...]], tuple[Kind, int, int, int, int]]] = {
    _aten.mm: lambda _, args: _mm(*args[:2]),
    _aten.addmm: lambda _, args: _mm(*args[1:3]),
    _aten.bmm: lambda _, args: _bmm(*args[:2]),
    _aten.baddbmm: lambda _, args: _bmm(*args[1:3]),
    _aten.convolution: lambda out, args: _convolution(out, args[1]),
}


class _Recorder(TorchDispatchMode):
    """Records every product below it.

    Indices that are computed from nothing but sizes (an `arange` and what follows from it) are computed for real on
    the CPU, since which tokens a mask selects cannot be read off a shape; they become shapes again where they meet
    a tensor of the model.
    """

    def __init__(self, merging: Iterable[Code]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        merging = tuple(merging)
        self.items: list[Product] = []
        self._files = {code.__file__ for code in merging if isinstance(code, ModuleType)}
        functions: list[Any] = [unwrap(code) for code in merging if not isinstance(code, ModuleType)]
        self._functions: set[CodeType] = {function.__code__ for function in functions}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DENSE_FORMS:
            form: Any = DENSE_FORMS[func]
            with self:
                return form(*args, **kwargs)
        if func.namespace not in _NAMESPACES:
            raise InputError(f"{func} hides its products from any counter. Count the original path, or its dense form.")
        with self:
            whole = func.decompose(*args, **kwargs)
        if whole is not NotImplemented:
            return whole
        packet = func._overloadpacket
        if packet not in _READERS and (packet in flop_registry or packet in _UNCOUNTED):
            raise InputError(f"{func} is a product that cannot be read part by part. Write it as matrix products.")
        args, kwargs = _with_real_indices(packet, args, kwargs)
        out = func(*args, **kwargs)
        if packet in _READERS:
            kind, batch, rows, inner, columns = _READERS[packet](out, args)
            kind = "merging" if self._merges() else kind
            self.items.append(Product(kind, batch, rows, inner, columns))
        return out

    def _merges(self) -> bool:
        """True where the product that is being dispatched was asked for by code that merges."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code in self._functions or frame.f_code.co_filename in self._files:
                return True
            frame = frame.f_back
        return False


def _is_meta(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_meta


def _with_real_indices(packet: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    device = kwargs.get("device")
    if packet is _aten.arange and device is not None and torch.device(device).type == "meta":
        return args, {**kwargs, "device": "cpu"}
    if tree_any(_is_meta, (args, kwargs)):
        return tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return args, kwargs


def count_eager(
    module: nn.Module,
    *inputs: Tensor,
    merging: Iterable[Code] = MERGING,
    torchs: Callable[..., FlopCounterMode] = FlopCounterMode,
) -> Products:
    """Run `module` on `inputs` and count its products.

    inputs   [B, ...] each, of B videos; on the module's device. On `meta` nothing is computed, whatever the size
    merging  modules and functions whose products are kept apart, with everything they call
    torchs   torch's counter, whose total has the last word

    Raises InputError for an operator whose products cannot be read, and ParityError where the products found do not
    add up to the total of torch's counter (two operations for each multiply-accumulate).
    """
    recorder, counter = _Recorder(merging), torchs(display=False)
    with torch.no_grad(), counter, recorder:
        module(*inputs)
    found, total = 2 * sum(one.macs for one in recorder.items), counter.get_total_flops()
    if found != total:
        raise ParityError(
            f"the products of {type(module).__name__} add up to {found} operations, torch's counter says {total}. "
            "This torch counts an operator that is not recorded; install the versions of constraints.txt."
        )
    return Products(tuple(recorder.items), len(inputs[0]))
