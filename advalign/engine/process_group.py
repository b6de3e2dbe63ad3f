"""The processes of a run: which share each of them does, and what they tell each other.

Every process holds all items of a draw (texts, sampled ids, numbers), and so takes the same decisions as one process would; what
costs time (sampling, scoring, forwards and backwards) is shared. Messages are bytes of JSON or safetensors: nothing is pickled.
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

from advalign import errors
from advalign.errors import AdvalignError

T = TypeVar("T")

BUCKET = 2**25  # numbers that are reduced at once


class ProcessGroup:
    """`number` processes; this one is `index`, and the first is `main`. With one process nothing is sent."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.number, self.index, self.device = accelerator.num_processes, accelerator.process_index, accelerator.device
        self.main = self.index == 0

    # --------------------------------------------------------------------------------------------------- shares

    def share(self, number: int, index: int | None = None) -> range:
        """The places among `number`, in one piece, that a process (this one) does."""
        i = self.index if index is None else index
        return range(number * i // self.number, number * (i + 1) // self.number)

    def map_across_ranks(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[Any]]) -> list[Any]:
        """`work(items)`, one plain value per item, each process doing every so manyth. What fails on one of them fails on all."""
        if self.number == 1:
            return list(work(items))
        mine, found, problem = items[self.index :: self.number], list[Any](), None
        try:
            found = list(work(mine)) if mine else []
        except Exception as error:
            problem = error
        failed = None if problem is None else [type(problem).__name__, str(problem)]
        answers = self.plain({"failed": failed, "found": found})
        if problem is not None:
            raise problem
        for index, answer in enumerate(answers):
            if answer["failed"] is not None:
                kind, text = answer["failed"]
                raise getattr(errors, kind, AdvalignError)(f"process {index}: {text}")
        whole: list[Any] = [None] * len(items)
        for index, answer in enumerate(answers):
            whole[index :: self.number] = answer["found"]
        return whole

    # ------------------------------------------------------------------------------------------------- messages

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes, on the device and in the precision of `x`."""
        if self.number == 1:
            return x
        total = x.detach().to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.to(x.device)

    def gather(self, message: bytes) -> list[bytes]:
        """The message of every process, in order."""
        if self.number == 1:
            return [message]
        sizes = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(self.number)]
        distributed.all_gather(sizes, torch.tensor([len(message)], device=self.device))
        longest = max(int(size) for size in sizes)
        here = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        if message:
            here[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(self.device)
        parts = [torch.zeros_like(here) for _ in range(self.number)]
        distributed.all_gather(parts, here)
        return [part[: int(size)].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def plain(self, value: Any) -> list[Any]:
        """A nested plain value of every process."""
        if self.number == 1:
            return [value]
        return [json.loads(part) for part in self.gather(json.dumps(value).encode())]

    def tensors(self, named: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Tensors by name, of every process, on the CPU."""
        if self.number == 1:
            return [dict(named)]
        sent = {f"_{name}": x.detach().cpu().contiguous() for name, x in named.items()}
        return [{name[1:]: x for name, x in load(part).items()} for part in self.gather(save(sent))]

    def same(self, value: Any) -> Any:
        """The plain value of the main process."""
        return value if self.number == 1 else self.plain(value if self.main else None)[0]

    def agree(self, where: str, content: Tensor) -> None:
        """Raises where processes hold different numbers: going on would train something that no one process would."""
        if self.number > 1:
            digest = hashlib.blake2b(content.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
            if len(set(self.gather(digest))) > 1:
                raise AdvalignError(
                    f"{where}: the processes of this run have drawn different rows; every random choice must come from the context's "
                    "streams."
                )

    def wait(self) -> None:
        """Until every process is here."""
        if self.number > 1:
            distributed.barrier()

    # -------------------------------------------------------------------------------------------------- weights

    def copy_weights(self, network: torch.nn.Module) -> None:
        """Every process starts from the weights of the main one."""
        if self.number > 1:
            for x in (*network.parameters(), *network.buffers()):
                distributed.broadcast(x.data, 0)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Gradients summed over processes, in buckets, once per update: processes may have different numbers of micro-batches, and a
        micro-batch rows of some views only, so a reduction in every backward would wait for one that never comes."""
        if self.number == 1:
            return
        used = self.sum(torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)).tolist()
        for p, ranks in zip(parameters, used, strict=True):
            if ranks and p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([g.flatten() for g in bucket])
            distributed.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Consecutive ones of one precision, at most BUCKET numbers together unless a single one is larger."""
    found: list[list[Tensor]] = []
    filled = 0
    for gradient in gradients:
        if found and found[-1][0].dtype == gradient.dtype and filled + gradient.numel() <= BUCKET:
            found[-1].append(gradient)
            filled += gradient.numel()
        else:
            found.append([gradient])
            filled = gradient.numel()
    return found
