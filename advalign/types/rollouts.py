"""Host-side containers: examples, the responses sampled to them, and both as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from advalign.checked import Checked
from advalign.errors import ConfigError, excerpt, unknown
from advalign.ranges import Count, Length, NonNegative, PositiveFraction
from advalign.types.attacks import NEUTRAL
from advalign.types.messages import (
    Prompt,
    attackable,
    conversation,
    from_plain,
    is_messages,
    response_text,
    to_plain,
    with_attackable,
)


@dataclass(frozen=True, kw_only=True)
class Example(Checked):
    """One prompt to respond to, or one text to classify."""

    prompt: Prompt
    """The prompt, a text or a conversation; of a classification what is classified."""
    answer: str | None = None
    """The reference answer."""
    id: str = ""
    """Unique in its data set."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of its row."""
    verify: Callable[[str], float] | None = None
    """Scores a response in [0, 1], where the example can."""
    label: int | None = None
    """Class index, or 1/0 for desirable/undesirable."""
    pair: str | None = None
    """Second sentence of a classification (NLI)."""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Its row under the data's own column names; empty for a task's examples."""
    location: Annotated[str, NEUTRAL] = field(default="", compare=False, repr=False)
    """Where it was read, for errors: a file and a row; empty: it was not."""

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> Example:
        """From a mapping of its fields, whose prompt may be messages."""
        if not isinstance(fields, Mapping):
            raise ConfigError(f"example: {excerpt(repr(fields))} given; a mapping of its fields is expected.")
        if "prompt" not in fields:
            raise ConfigError(f"example: {excerpt(repr(fields))} has no prompt.")
        if wrong := [name for name in fields if name not in cls.__dataclass_fields__]:
            raise unknown("example", "field", wrong[0], cls.__dataclass_fields__)
        prompt = fields["prompt"]
        if isinstance(prompt, list | tuple) and is_messages(prompt):
            fields = {**fields, "prompt": conversation(prompt, path=f"example '{fields.get('id', '')}': prompt")}
        return cls(**fields)

    @property
    def described(self) -> str:
        """Its id, and where it was read, for errors."""
        return f"row '{self.id}'" + (f" ({self.location})" if self.location else "")

    @property
    def text(self) -> str:
        """What an attack rewrites: the prompt, or the last turn of the user in it."""
        return attackable(self.prompt)

    @property
    def reference(self) -> str | None:
        """The text of its reference response (`meta["response"]`), else its answer; None: it has neither."""
        response = self.meta.get("response", self.answer)
        return None if response is None else response_text(response) if isinstance(response, str | tuple) else str(response)

    def with_text(self, text: str) -> Example:
        """The same example, its verifier included, with another `text`."""
        return self if text == self.text else replace(self, prompt=with_attackable(self.prompt, text))


@dataclass(kw_only=True)
class Rollout:
    """One sampled response."""

    response_ids: list[int]
    """The sampler's own ids, never re-tokenised."""
    sampler_logprobs: list[float]
    """log p of each id under the sampler."""
    text: str
    """The ids, decoded."""
    finished: bool
    """Whether it ended by itself: at an end token of the model, at the end of turn of its template, or at a string of `Sampling.stop`."""
    policy_version: int = 0
    """Version of the weights that sampled it."""
    rewards: list[float] = field(default_factory=list)
    """One number per reward."""
    reward_versions: list[int] = field(default_factory=list)
    """Versions of the learners that gave its rewards."""
    offpolicy: bool = False
    """Not sampled by the policy: a demonstration."""
    token_rewards: list[float] | None = None
    """One number per id: the rewards given token by token, weighted and summed over rewards."""


@dataclass(kw_only=True)
class RolloutGroup:
    """All rollouts of one prompt."""

    example: Example
    """What was asked."""
    prompt_ids: list[int]
    """The prompt as the sampler read it."""
    rollouts: list[Rollout]
    """The responses."""
    baseline: float | None = None
    """The reward of the greedy response, where the advantage asked for it."""


StopString = Annotated[str, Length()]
"""A text that ends a response; an empty one would end nothing."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked, section="sampling"):
    """How responses are sampled."""

    max_new_tokens: Count = 64
    """Length limit of a response, its end token included."""
    max_length: Count | None = None
    """Length limit of prompt and response together; None: the model's positions, and in training its learner's max_length."""
    temperature: NonNegative = 1.0
    """0 is greedy."""
    top_p: PositiveFraction = 1.0
    """Nucleus: the smallest set of tokens with at least this probability."""
    stop: tuple[StopString, ...] = ()
    """Strings that end a response, which is then finished. It keeps the token that completes one, and the string in its text: what is
    trained is what was sampled."""


def without_verifier(group: RolloutGroup) -> RolloutGroup:
    """The group without what plain values cannot hold, or need not: its example's verifier, `meta`, `row` and `location`.

    Sources that save groups store them like this from the start, so that a resumed run reads what an uninterrupted one reads.
    """
    return replace(group, example=replace(group.example, verify=None, meta={}, row={}, location=""))


def to_json(group: RolloutGroup) -> dict[str, Any]:
    """A group as nested plain values, without its example's verifier, `meta`, `row` and `location`: for checkpoints and other processes."""
    stored = without_verifier(group)
    prompt = stored.example.prompt
    values = asdict(replace(stored, example=replace(stored.example, prompt="")))
    return values | {"example": values["example"] | {"prompt": to_plain(prompt)}}


def from_json(values: Mapping[str, Any]) -> RolloutGroup:
    """The inverse of `to_json`."""
    rollouts = [Rollout(**rollout) for rollout in values["rollouts"]]
    example = Example(**{**values["example"], "prompt": from_plain(values["example"]["prompt"])})
    return RolloutGroup(**{**values, "example": example, "rollouts": rollouts})
