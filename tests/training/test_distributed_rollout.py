"""Prompts divided among processes: two threads that exchange values as processes do."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.networks import network
from helpers.rollout import TextEngine

from advalign.engine.process_group import ProcessGroup
from advalign.training.distributed_rollout import DistributedRolloutEngine
from advalign.types import Example, Rollout, RolloutGroup, Sampling


class ThreadGroup(ProcessGroup):
    """One of two ranks; `board` is where both write what they send, as JSON."""

    def __init__(self, rank, board, barrier):
        super().__init__(2, rank)
        self.board, self.meeting = board, barrier

    def all_gather(self, value):
        self.board[self.rank] = json.dumps(value)
        self.meeting.wait(timeout=60)
        return [json.loads(part) for part in self.board]


class Noting(TextEngine):
    """Answers with the prompt, and notes which prompts it was given and whether it could skip."""

    def __init__(self, can_skip):
        super().__init__(lambda example, i: f"{example.prompt} {i}")
        self.can_skip, self.prompts, self.skipped, self.seeds = can_skip, [], [], []

    def generate(self, network, examples, n, sampling, generator):
        self.prompts.append([e.prompt for e in examples])
        self.seeds.append(generator.initial_seed())
        return super().generate(network, examples, n, sampling, generator)

    def extend(self, network, groups, n, sampling, generator):
        self.prompts.append([g.example.prompt for g in groups])
        longer = [Rollout(response_ids=[9], sampler_logprobs=[0.0], text="more", finished=True)] * n
        return [RolloutGroup(example=g.example, prompt_ids=g.prompt_ids, rollouts=[*g.rollouts, *longer]) for g in groups]

    def skip(self, generator, number, sampling):
        self.skipped.append(number)
        return self.can_skip


def on_two_ranks(call, can_skip=True):
    """([what `call(engine)` returned], [the engine below]) of both ranks."""
    board, barrier = [None, None], threading.Barrier(2)
    engines = [Noting(can_skip) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(call, DistributedRolloutEngine(engines[rank], ThreadGroup(rank, board, barrier))) for rank in range(2)]
        return [job.result() for job in jobs], engines


def examples():
    return [Example(prompt=prompt, verify=len) for prompt in ("a", "b", "c")]


def generate(engine):
    return engine.generate(network(), examples(), 2, Sampling(), torch.Generator().manual_seed(5))


@pytest.mark.parametrize("can_skip", [True, False])
def test_every_rank_is_given_what_one_process_samples(can_skip):
    results, engines = on_two_ranks(generate, can_skip)
    # Of three prompts the first rank answers 3 // 2 = 1, the second the other two, past the 1 * 2 responses before them.
    assert [engine.prompts for engine in engines] == [[["a"]], [["b", "c"]]]
    assert [engine.skipped for engine in engines] == [[], [2]]
    assert engines[0].seeds == [5]
    assert (engines[1].seeds == [5]) is can_skip  # without skipping, a stream per part
    for groups in results:
        assert [[r.text for r in g.rollouts] for g in groups] == [["a 0", "a 1"], ["b 0", "b 1"], ["c 0", "c 1"]]
        assert all(g.example.verify is len for g in groups)  # the example itself, with what JSON cannot hold


def test_groups_are_extended_by_the_rank_that_has_their_part():
    def extend(engine):
        before = Noting(True).generate(network(), examples(), 1, Sampling(), torch.Generator())
        return engine.extend(network(), before, 1, Sampling(), torch.Generator().manual_seed(5))

    results, engines = on_two_ranks(extend)
    assert [engine.prompts for engine in engines] == [[["a"]], [["b", "c"]]]
    for groups in results:
        assert [[r.text for r in g.rollouts] for g in groups] == [["a 0", "more"], ["b 0", "more"], ["c 0", "more"]]
        assert all(g.example.verify is len for g in groups)
