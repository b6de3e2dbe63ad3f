"""The processes of a run: which part of the work each of them does, and what they exchange.

Every process holds all items of a draw (texts, sampled ids, numbers) and takes the same decisions as a single process would. What costs
time (sampling, scoring, forwards and backwards) is divided. Messages are bytes of JSON or safetensors; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors.torch import load, save
from torch import Tensor, distributed

from advalign.errors import AdvalignError, BudgetError, ConfigError, NonFiniteError, RewardError, RolloutError, StorageError

T = TypeVar("T")

BUCKET = 2**25
"""Numbers that are reduced at once."""

ERRORS: Mapping[str, type[AdvalignError]] = {
    cls.__name__: cls for cls in (BudgetError, ConfigError, NonFiniteError, RewardError, RolloutError, StorageError)
}
"""Errors of one process that are raised as themselves on all processes; any other becomes an `AdvalignError`."""


class ProcessGroup:
    """The processes of a run. With one process, nothing is sent."""

    def __init__(self, world_size: int = 1, rank: int = 0, device: torch.device | None = None) -> None:
        self.world_size, self.rank = world_size, rank
        self.device = torch.device("cpu") if device is None else device
        self.is_main = rank == 0

    @classmethod
    def launched(cls, accelerator: Accelerator) -> ProcessGroup:
        """The processes that torchrun or accelerate started."""
        return cls(accelerator.num_processes, accelerator.process_index, accelerator.device)

    # ------------------------------------------------------------------------------------------- division of work

    def local_range(self, number: int) -> range:
        """The contiguous part of `number` items that this process does."""
        return range(number * self.rank // self.world_size, number * (self.rank + 1) // self.world_size)

    def map_across_ranks(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[Any]]) -> list[Any]:
        """`work(items)`, one JSON value per item; process r does items r, r + world_size, ... An error on one process is raised on all."""
        if self.world_size == 1:
            return list(work(items))
        local_items = items[self.rank :: self.world_size]
        answers = self.together(lambda: list(work(local_items)) if local_items else [])
        joined: list[Any] = [None] * len(items)
        for rank, answer in enumerate(answers):
            joined[rank :: self.world_size] = answer
        return joined

    def together(self, work: Callable[[], Any]) -> list[Any]:
        """What `work()` gives on every process, JSON values in order of rank. An error on one process is raised on all, so none waits."""
        if self.world_size == 1:
            return [work()]
        output, problem = None, None
        try:
            output = work()
        except Exception as error:
            problem = error
        failed = None if problem is None else [type(problem).__name__, str(problem)]
        answers = self.all_gather({"failed": failed, "output": output if problem is None else None})
        if problem is not None:
            raise problem
        for rank, answer in enumerate(answers):
            if answer["failed"] is not None:
                kind, text = answer["failed"]
                raise ERRORS.get(kind, AdvalignError)(f"process {rank}: {text}")
        return [answer["output"] for answer in answers]

    def on_main(self, work: Callable[[], Any]) -> Any:
        """What `work()` gives on the main process, a JSON value; its error is raised on all."""
        return self.together(lambda: work() if self.is_main else None)[0]

    # ------------------------------------------------------------------------------------------------- messages

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over processes, on the device and in the precision of `x`."""
        if self.world_size == 1:
            return x
        total = x.detach().to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(x.device)

    def all_gather_bytes(self, message: bytes) -> list[bytes]:
        """The message of every process, in order of rank."""
        if self.world_size == 1:
            return [message]
        sizes = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(self.world_size)]
        distributed.all_gather(sizes, torch.tensor([len(message)], device=self.device))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        if message:
            padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(self.device)
        parts = [torch.zeros_like(padded) for _ in range(self.world_size)]
        distributed.all_gather(parts, padded)
        return [part[: int(size)].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def all_gather(self, value: Any) -> list[Any]:
        """A JSON value of every process, in order of rank."""
        if self.world_size == 1:
            return [value]
        return [json.loads(part) for part in self.all_gather_bytes(json.dumps(value).encode())]

    def all_gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Tensors by name, of every process, on the CPU; the names may differ from process to process."""
        if self.world_size == 1:
            return [dict(tensors)]
        message = save({f"_{name}": x.detach().cpu().contiguous() for name, x in tensors.items()})
        return [{name[1:]: x for name, x in load(part).items()} for part in self.all_gather_bytes(message)]

    def broadcast(self, value: Any) -> Any:
        """The JSON value of the main process."""
        return value if self.world_size == 1 else self.all_gather(value if self.is_main else None)[0]

    def check_equal(self, path: str, content: Tensor) -> None:
        """Raises where processes hold different numbers: going on would train something that no single process would."""
        if self.world_size > 1:
            digest = hashlib.blake2b(content.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
            if len(set(self.all_gather_bytes(digest))) > 1:
                raise AdvalignError(
                    f"{path}: the processes of this run have drawn different rows; every random choice must come from the context's "
                    "streams."
                )

    def barrier(self) -> None:
        """Waits until every process is here."""
        if self.world_size > 1:
            distributed.barrier()

    # -------------------------------------------------------------------------------------------------- weights

    def broadcast_weights(self, network: torch.nn.Module) -> None:
        """Every process starts from the weights of the main process."""
        if self.world_size > 1:
            for x in (*network.parameters(), *network.buffers()):
                distributed.broadcast(x.data, 0)

    def all_reduce_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sums gradients over processes, in buckets, once per update.

        Processes may have different numbers of micro-batches, and a micro-batch has rows of some views only, so a reduction in every
        backward would wait for one that never comes.
        """
        if self.world_size == 1:
            return
        used = self.all_reduce(torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)).tolist()
        for p, num_ranks in zip(parameters, used, strict=True):
            if num_ranks and p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([g.flatten() for g in bucket])
            distributed.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


SINGLE_PROCESS = ProcessGroup()


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Consecutive gradients of one precision, at most BUCKET numbers together unless a single one is larger."""
    buckets: list[list[Tensor]] = []
    filled = 0
    for gradient in gradients:
        if buckets and buckets[-1][0].dtype == gradient.dtype and filled + gradient.numel() <= BUCKET:
            buckets[-1].append(gradient)
            filled += gradient.numel()
        else:
            buckets.append([gradient])
            filled = gradient.numel()
    return buckets
