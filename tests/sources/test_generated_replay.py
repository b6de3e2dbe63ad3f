"""Which of a policy's earlier texts a discriminator sees again: those of the last `replay_steps` steps, all of them and no older ones."""

import pytest
from helpers.context import FakeContext

from advalign.sources import Contrast, Demos
from advalign.types import Example, Rollout, RolloutGroup

REAL = [{"prompt": f"ask {i}", "response": f"real {i}"} for i in range(4)]


def written(text):
    """One response to one prompt."""
    rollout = Rollout(response_ids=[1], sampler_logprobs=[-1.0], text=text, finished=True)
    return [RolloutGroup(example=Example(prompt="ask 0", id="0"), prompt_ids=[1], rollouts=[rollout])]


def run():
    """A context in which the real side is a list."""
    demos = Demos(data=REAL, batch_size=4)
    context = FakeContext(source_configs={"chat": demos})
    context.sources["chat"] = demos.start(context, "chat")
    return context


def start(context, replay_steps):
    """More rows per draw than were ever written, so that everything that is kept is drawn."""
    return Contrast(real="chat", sampled="write", batch_size=40, replay=1.0, replay_steps=replay_steps).start(context, "contrast")


def texts_at(context, runtime, step):
    context.items = {"write": written(f"step {step}")}
    return sorted(row.text for row in runtime.draw(step, 0) if row.text.startswith("step"))


@pytest.mark.parametrize("replay_steps", [1, 2, 3])
def test_a_text_is_replayed_for_exactly_replay_steps_steps(replay_steps):
    context = run()
    runtime = start(context, replay_steps)
    for step in range(8):
        assert texts_at(context, runtime, step) == [f"step {s}" for s in range(max(step - replay_steps, 0), step + 1)]


def test_a_resumed_run_replays_the_same_texts():
    context = run()
    first, resumed = start(context, 3), start(context, 3)
    for step in range(5):
        texts_at(context, first, step)
    resumed.load_state_dict(first.state_dict())
    assert texts_at(context, resumed, 5) == texts_at(context, first, 5) == ["step 2", "step 3", "step 4", "step 5"]
