"""Blocks compiled by torch.compile, for forwards without hooks.

A hook that is registered after compilation does not run: forwards that edit or capture hidden states, replace a block's forward or
differentiate twice therefore run uncompiled blocks, and so does sampling by default (`rollout: {kind: hf, compile: true}` changes
that). One compilation serves all blocks of a stack, and all lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from advalign.errors import ConfigError
from advalign.models.perturb import blocks

VARIANTS = 64  # of a block that may be compiled: training or not, gradients or not, packed or not, each adapter, several sizes


class Compiled:
    """The compiled calls of one network's blocks, compiled on first use. A copy of the network compiles its own."""

    def __init__(self) -> None:
        self.calls: list[Callable[..., Any]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled()

    @contextmanager
    def on(self, backbone: nn.Module) -> Iterator[None]:
        """Inside, blocks run compiled. Raises ConfigError where compilation fails, as without a C++ compiler."""
        stack = blocks(backbone)
        if self.calls is None:
            settings: Any = torch._dynamo.config
            settings.recompile_limit = max(VARIANTS, settings.recompile_limit)
            self.calls = [torch.compile(block._call_impl, dynamic=True) for block in stack]
        for block, call in zip(stack, self.calls, strict=True):
            block._compiled_call_impl = call
        try:
            yield
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise ConfigError(f"model.options.compile: torch.compile failed: {reason} Set it to false.") from error
        finally:
            for block in stack:
                block._compiled_call_impl = None


__all__ = ["Compiled"]
