"""A device that is not the CPU, for machines without an accelerator: its tensors hold CPU tensors and refuse operations with others.

It refuses what a GPU refuses: an operation on tensors of both devices (numbers without an axis may come from the CPU, and so may
indices of a tensor on the device), a generator of the CPU, numpy. Nothing is faster, kernels are the CPU's; placement is what is tested.
Importing this changes the process: spawn one for it.
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


_setup_privateuseone_for_python_backend("second", backend_module=_Module())
DEVICE = torch.device("second:0")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor)


class SecondDeviceTensor(torch.Tensor):
    """A tensor on the second device."""

    on_cpu: torch.Tensor
    """Its numbers."""

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> SecondDeviceTensor:
        options = {"dtype": on_cpu.dtype, "device": DEVICE}
        wrapper = torch.Tensor._make_wrapper_subclass(cls, on_cpu.shape, on_cpu.stride(), on_cpu.storage_offset(), **options)
        wrapper.on_cpu = on_cpu.detach()
        return wrapper

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.on_cpu.data_ptr()

    def storage(self) -> Any:
        return self.on_cpu.storage()

    def untyped_storage(self) -> Any:
        return self.on_cpu.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = SecondDeviceTensor(self.on_cpu.clone())
        copied = torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        memo[id(self)] = copied
        return copied

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("numpy: a tensor on the second device; move it to the CPU first")

    def __repr__(self, **kwargs: Any) -> str:
        return f"SecondDeviceTensor({self.on_cpu})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        _check(func, args, kwargs)
        if func is aten._fused_sdp_choice.default:
            return 0  # attention as matmuls
        device = kwargs.get("device")
        to_cpu = device is not None and torch.device(device).type == "cpu"
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        results = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        if to_cpu or func is aten._local_scalar_dense.default:
            return results
        written = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        returned = func._schema.returns
        if written and len(returned) == 1 and returned[0].alias_info is not None:
            place, name = written[0], func._schema.arguments[written[0]].name
            return args[place] if place < len(args) else kwargs[name]
        return tree_map(lambda x: SecondDeviceTensor(x) if isinstance(x, torch.Tensor) else x, results)


def _unwrap(x: Any) -> Any:
    return x.on_cpu if isinstance(x, SecondDeviceTensor) else x


def _check(func: Any, args: Any, kwargs: Any) -> None:
    if func in COPIES:
        return
    indexed = func in INDEXED and isinstance(args[0], SecondDeviceTensor)
    leaves = tree_leaves((args[0], args[2:], kwargs) if indexed else (args, kwargs))
    if any(isinstance(x, torch.Tensor) and not isinstance(x, SecondDeviceTensor) and x.ndim for x in leaves):
        tensors = [(type(x).__name__, tuple(x.shape)) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        raise RuntimeError(f"{func}: tensors of two devices, {tensors}")
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in leaves):
        raise RuntimeError(f"{func}: a generator of the CPU for tensors of the second device")


# --------------------------------------------------------------------------------------- functions that create tensors


def _empty(size: Any, *, dtype: Any = None, **kwargs: Any) -> Any:
    return SecondDeviceTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **kwargs: Any) -> Any:
    return SecondDeviceTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    _unwrap(target).copy_(_unwrap(source))
    return target


def _create(name: str) -> Any:
    """Of functions whose result torch resizes, which a wrapper does not support."""
    return lambda *args, dtype=None, **kwargs: SecondDeviceTensor(getattr(torch, name)(*args, dtype=dtype))


_library = torch.library.Library("aten", "IMPL")
for _name, _function in {"empty.memory_format": _empty, "empty_strided": _empty_strided, "_copy_from": _copy_from}.items():
    _library.impl(_name, _function, dispatch_key="PrivateUse1")
for _name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm"):
    _library.impl(_name, _create(_name.partition(".")[0]), dispatch_key="PrivateUse1")


# ------------------------------------------------------------------------------------------- torch and accelerate

_device = Accelerator.device
torch.__future__.set_swap_module_params_on_conversion(True)  # otherwise moving a module would untie its tied weights
_save = torch.save
torch.save = lambda content, *args, **kwargs: _save(_to_cpu(content), *args, **kwargs)  # read as on a machine without the device


def _to_cpu(content: Any) -> Any:
    return tree_map(lambda x: x.cpu() if isinstance(x, SecondDeviceTensor) else x, content)


@contextmanager
def accelerated(on: bool = True) -> Any:
    """Inside, accelerate picks the second device."""
    Accelerator.device = property(lambda self: DEVICE) if on else _device  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Accelerator.device = _device  # type: ignore[method-assign]
