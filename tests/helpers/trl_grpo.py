"""TRL's GRPO without a trainer around it: TRL's own code annotates a draw of made rollouts and computes the loss on it.

What its methods ask of `self` is a namespace of the defaults of its configuration. Its stand-in models answer with log-probabilities
that were made beforehand. TRL keeps prompts apart (left padded) and completions in columns of their own; `Draw.completions` takes our
columns there, so that the gradient with respect to our "B T" log-probabilities goes through its loss.
"""

from collections import defaultdict
from dataclasses import MISSING, dataclass, fields, replace
from types import MethodType, SimpleNamespace

import torch
from torch import Tensor

from advalign.functional.advantages import expand
from advalign.types import RolloutRows, Tokens

PAD, END = 0, 1


class Model:
    """All that TRL's GRPO reads of a model once its forward is replaced."""

    training = True
    is_gradient_checkpointing = False


OLD, REFERENCE, NOW = Model(), Model(), Model()


@dataclass(frozen=True)
class Draw:
    """Ragged rollouts of several groups, as our rows (advantages are still zero), and the log-probabilities of now."""

    rows: RolloutRows
    new: Tensor
    starts: Tensor
    size: int

    def completions(self, x: Tensor) -> Tensor:
        """ "B T" -> "B C": the columns of completions, each row from its own start."""
        longest = int((self.rows.tokens.lengths - self.starts).max())
        place = self.starts[:, None] + torch.arange(longest)
        return torch.nn.functional.pad(x, (0, longest)).gather(1, place)

    def one(self, x: Tensor, row: int) -> list:
        return x[row, int(self.starts[row]) : int(self.rows.tokens.lengths[row])].tolist()


def draw(seed: int, *, groups: int = 6, size: int = 4, drift: float = 0.8, gaps: bool = False, length: int = 7) -> Draw:
    """`drift`: standard deviation of log p - log p_old. `gaps`: observations inside some responses, which are no targets."""
    g = torch.Generator().manual_seed(seed)
    n = groups * size
    starts = torch.randint(1, 4, (groups,), generator=g).repeat_interleave(size)
    ends = starts + torch.randint(1, length + 1, (n,), generator=g)
    where = torch.arange(int(ends.max()))[None]
    mask = where < ends[:, None]
    target = mask & (where >= starts[:, None])
    if gaps:
        target &= (where == starts[:, None]) | (torch.rand(mask.shape, generator=g) > 0.3)
    finished = torch.rand(n, generator=g) > 0.3
    ids = torch.randint(2, 50, mask.shape, generator=g)
    ids = torch.where((where == ends[:, None] - 1) & finished[:, None], END, ids) * mask

    def column(scale: float) -> Tensor:
        return torch.randn(mask.shape, generator=g, dtype=torch.float64) * scale

    old = -3 * torch.rand(mask.shape, generator=g, dtype=torch.float64)
    rows = RolloutRows(
        tokens=Tokens(ids=ids, mask=mask, target=target, group=torch.arange(n) // size, key=torch.arange(n)),
        rewards=torch.randn(n, 1, generator=g, dtype=torch.float64),
        advantages=torch.zeros(mask.shape, dtype=torch.float64),
        sampler_logprobs=old + column(0.4),
        old_logprobs=old,
        ref_logprobs=old + column(0.5),
        # Of single precision: TRL compares with a threshold that it computes there.
        old_entropy=torch.rand(mask.shape, generator=g, dtype=torch.float32).double(),
        finished=finished,
    )
    return Draw(rows, old + column(drift), starts, size)


class Trainer:
    """TRL's GRPOTrainer on one draw. `inputs`: what its own code made of the draw; `rows`: ours, with TRL's advantages."""

    def __init__(self, given: Draw, **options) -> None:
        from trl import GRPOConfig, GRPOTrainer

        self.cls, self.given, self.metrics = GRPOTrainer, given, defaultdict(list)
        defaults = {f.name: f.default for f in fields(GRPOConfig) if f.default is not MISSING}
        # A second pass over the draw, so that the ratio is not 1 by definition.
        config = defaults | {"num_iterations": 2, "steps_per_generation": 1} | options
        self.self = self._self(config)
        self.inputs = self.cls._generate_and_score_completions(self.self, [{"prompt": ""}] * len(given.starts))
        old = given.rows.old_logprobs if "old_per_token_logps" in self.inputs else None
        advantages = expand(self.inputs["advantages"], given.rows.tokens.target)
        self.rows = replace(given.rows, advantages=advantages, old_logprobs=old)

    def losses(self, new: Tensor, parts: int = 1) -> list[Tensor]:
        """TRL's loss of log-probabilities "B T" of the draw, for each of `parts` micro-batches as TRL cuts them."""
        from trl.trainer.utils import split_tensor_dict

        now = {"logprobs": self.given.completions(new), "entropy": self.given.completions(self.rows.old_entropy)}
        found = []
        for inputs, part in zip(split_tensor_dict(self.inputs, parts), split_tensor_dict(now, parts), strict=True):
            self.now = part
            found.append(self.cls._compute_loss(self.self, NOW, inputs))
        return found

    def kept(self, entropy: Tensor, mask: Tensor, share: float) -> Tensor:
        return self.cls.get_high_entropy_mask(self.self, entropy, mask, 1 - share)

    def _self(self, config) -> SimpleNamespace:
        asked = {
            "args": SimpleNamespace(**config),
            "accelerator": _alone(),
            "model": OLD,
            "ref_model": REFERENCE,
            "epsilon_low": config["epsilon"],
            "epsilon_high": config["epsilon"] if config["epsilon_high"] is None else config["epsilon_high"],
            "current_gradient_accumulation_steps": config["steps_per_generation"],
            "aux_loss_enabled": False,
            "_entropy_bonus_enabled": config["entropy_coef"] != 0,
            "num_generations": self.given.size,
            "reward_funcs": [None],
            "reward_func_names": ["r"],
            "reward_weights": torch.ones(1),
            "eos_token_ids": [END],
            "pad_to_multiple_of": None,
            "log_multimodal": False,
            "environment_factories": None,
            "environments": None,
            "tools": None,
            "_is_vlm": False,
            "_tokenizer": SimpleNamespace(pad_token_id=PAD),
            "_metrics": {"train": self.metrics},
            "_logs": {"prompt": [], "completion": [], "rewards": defaultdict(list), "advantages": [], "extra": {}},
            "_pending_extra_logs": {},
            "_pending_metrics": {},
            "_calculate_rewards": lambda *_: self.given.rows.rewards,
            "_generate": self._generate,
            "_get_per_token_logps_and_entropies": self._forward,
        }
        made = SimpleNamespace(**config | asked)
        made.get_high_entropy_mask = MethodType(self.cls.get_high_entropy_mask, made)
        return made

    def _generate(self, prompts: list):
        """Ids and the sampler's log-probabilities, as lists; 1 in the tool mask is a sampled token."""
        given, tokens = self.given, self.given.rows.tokens
        count = range(len(prompts))
        ids = [given.one(tokens.ids, i) for i in count]
        prompt_ids = [tokens.ids[i, : int(given.starts[i])].tolist() for i in count]
        tool_mask = [given.one(tokens.target.long(), i) for i in count]
        sampler = [given.one(given.rows.sampler_logprobs, i) for i in count]
        return prompt_ids, ids, tool_mask, [""] * len(prompts), sampler, {}, None, None

    def _forward(self, model, *_, **__):
        """(log p, entropy, auxiliary loss) of completions."""
        if model is NOW:
            return self.now["logprobs"], self.now["entropy"], None
        x = self.given.rows.old_logprobs if model is OLD else self.given.rows.ref_logprobs
        return self.given.completions(x), None, None


def _alone() -> SimpleNamespace:
    def same(x, *_, **__):
        return x

    calls = dict.fromkeys(("gather", "gather_for_metrics", "reduce", "pad_across_processes"), same)
    return SimpleNamespace(device="cpu", num_processes=1, process_index=0, sync_gradients=True, **calls)
