"""A device that is not the CPU, for machines that have no other: its tensors hold CPU tensors and refuse to meet them.

What a GPU refuses, this refuses: an operation on tensors of both devices (numbers without an axis may come from the CPU, and so may
indices of a tensor elsewhere), a generator of the CPU, numpy. Nothing is faster here, kernels are the CPU's; what is tested is where
things are. Importing this changes the process: spawn one for it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Module:
    """What torch asks of a device's module."""

    is_initialized = is_available = staticmethod(lambda: True)
    _lazy_init = _init = manual_seed_all = seed_all = synchronize = staticmethod(lambda *args: None)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())  # the CPU draws its numbers
    set_rng_state = staticmethod(lambda state, device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


_setup_privateuseone_for_python_backend("elsewhere", backend_module=_Module())
DEVICE = torch.device("elsewhere:0")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor)


class Elsewhere(torch.Tensor):
    """A tensor on the other device; its numbers are in `held`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        kinds = {"dtype": held.dtype, "device": DEVICE}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), held.storage_offset(), **kinds)
        made.held = held.detach()
        return made

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def storage(self) -> Any:
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = Elsewhere(self.held.clone())
        copied = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = copied
        return copied

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("numpy: a tensor elsewhere; bring it to the CPU first")

    def __repr__(self, **kwargs: Any) -> str:
        return f"Elsewhere({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        _check(func, args, kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # plain products of matrices
        wanted = kwargs.get("device")
        home = wanted is not None and torch.device(wanted).type == "cpu"
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if home or func is aten._local_scalar_dense.default:
            return found
        written = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        returned = func._schema.returns
        if written and len(returned) == 1 and returned[0].alias_info is not None:
            place, name = written[0], func._schema.arguments[written[0]].name
            return args[place] if place < len(args) else kwargs[name]
        return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, found)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Elsewhere) else x


def _check(func: Any, args: Any, kwargs: Any) -> None:
    if func in COPIES:
        return
    indexed = func in INDEXED and isinstance(args[0], Elsewhere)
    given = tree_leaves((args[0], args[2:], kwargs) if indexed else (args, kwargs))
    if any(isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) and x.ndim for x in given):
        found = [(type(x).__name__, tuple(x.shape)) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        raise RuntimeError(f"{func}: tensors of two devices, {found}")
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in given):
        raise RuntimeError(f"{func}: a generator of the CPU for tensors elsewhere")


# ------------------------------------------------------------------------------ what is made there, out of nothing


def _empty(size: Any, *, dtype: Any = None, **kwargs: Any) -> Any:
    return Elsewhere(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **kwargs: Any) -> Any:
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    _held(target).copy_(_held(source))
    return target


def _grown(name: str) -> Any:
    """Those that torch begins empty and lets grow, as a wrapper cannot."""
    return lambda *args, dtype=None, **kwargs: Elsewhere(getattr(torch, name)(*args, dtype=dtype))


_library = torch.library.Library("aten", "IMPL")
for _name, _made in {"empty.memory_format": _empty, "empty_strided": _empty_strided, "_copy_from": _copy_from}.items():
    _library.impl(_name, _made, dispatch_key="PrivateUse1")
for _name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm"):
    _library.impl(_name, _grown(_name.partition(".")[0]), dispatch_key="PrivateUse1")


# --------------------------------------------------------------------------------------------- who is told of it

_device = Accelerator.device
torch.__future__.set_swap_module_params_on_conversion(True)  # or tied weights part when they move, as they do not on a GPU
_save = torch.save
torch.save = lambda content, *args, **kwargs: _save(_at_home(content), *args, **kwargs)  # read as on a machine without the device


def _at_home(content: Any) -> Any:
    return tree_map(lambda x: x.cpu() if isinstance(x, Elsewhere) else x, content)


@contextmanager
def accelerated(on: bool = True) -> Any:
    """Inside, accelerate picks the other device."""
    Accelerator.device = property(lambda self: DEVICE) if on else _device  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Accelerator.device = _device  # type: ignore[method-assign]
