"""What the literature says about policy algorithms, tried small: each claim with its direction written down before the run.

1 entropy      GRPO's entropy falls faster than DAPO's with clip-higher                            (runs of benchmarks/rl.py)
2 dynamic      dynamic sampling saves updates with zero signal                                     (runs of benchmarks/rl.py)
3 moe          GSPO is steadier than GRPO on a mixture of experts: its clipped tokens' reward curve varies less between seeds
4 dead zone    where PPO's gradient is zero SAPO's is not
5 nsr, psr     only-negative training keeps pass@16; only-positive raises pass@1 and loses pass@16 (runs of benchmarks/rl.py)
6 memorises    SFT memorises, RL generalises: on general_points RL gains out of distribution, SFT loses
7 critic       PPO costs more time and memory than GRPO: the critic                              (runs of benchmarks/rl.py)
8 offline      DPO on samples of the start stops lower than GRPO with as many samples of its own
9 zero reward  LUFFY and HPT learn where on-policy reward is all zero, GRPO does not

    python benchmarks/rl_claims.py     after benchmarks/rl.py; resumable run by run; writes benchmarks/results/rl_claims.json
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import rl
import torch
from common import about, cpu_hours, mean_sd, once, save

from advalign import config as configuration
from advalign import data as loading
from advalign.engine import rng
from advalign.functional import policy as formulas
from advalign.metrics.run_log import read
from advalign.models import load
from advalign.rollout.hf import HF
from advalign.types import Sampling

OUT = rl.OUT / "claims"
SEEDS = (0, 1)
MOE = "scratch:tiny-moe?initializer_range=0.05"
POINTS = {"task": {"kind": "general_points", "cards": 3, "target": 10, "test_fraction": 0.2}}


def sft(folder: Path, seed: int, steps: int, data: Any, **learner: Any) -> Path:
    """A policy after `steps` of SFT."""
    if not (folder / "policy" / "config.json").exists():
        config = {
            "learners": {"policy": rl.policy(learning_rate=1.0e-3, minibatches=1, epochs=1, **learner)},
            "sources": {"demos": {"kind": "demos", "data": data | {"number": 2000}, "batch_size": 64, "seed": seed}},
            "objectives": {"imitate": {"kind": "sft", "source": "demos"}},
            "args": {"max_steps": steps, "seed": seed, "output_dir": str(folder)},
        }
        configuration.trainer(config).train(overwrite=True, progress=False)
    return folder / "policy"


# ------------------------------------------------------------------------------------ 3: mixture of experts


def moe(name: str, seed: int) -> dict[str, Any]:
    """GRPO or GSPO on a Qwen3-style mixture of experts from scratch."""
    start = sft(OUT / f"moe-base-{seed}", seed, rl.SFT_STEPS, rl.TASK, model=MOE)
    folder = OUT / f"moe-{name}-{seed}"
    config = rl.described(name, seed, folder, str(start))
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=False)
    log = read(folder)
    return {
        "accuracy": trainer.evaluate()["test/pass@1"],
        "reward": [round(row["sums/reward"], 4) for row in log],
        "ratio_variance": rl._mean(log, "policy/ratio_variance"),
        "clip_fraction": rl._mean(log, "policy/clip_fraction"),
    }


def steadiness(reward: list[float]) -> float:
    """Standard deviation of the change of the reward from draw to draw."""
    x = torch.tensor(reward, dtype=torch.float64)
    return float((x[1:] - x[:-1]).std())


# ---------------------------------------------------------------------------------------------- 4: dead zone


def dead_zone(seed: int) -> dict[str, Any]:
    """Gradient per token of PPO and SAPO on one draw of the start, after the policy has drifted by 60 draws of GRPO."""
    then, now = load(str(rl.OUT / f"base-{seed}" / "policy")), load(str(rl.OUT / f"grpo-{seed}" / "policy"))
    examples = loading.examples(rl.TASK | {"number": 64}, seed=seed)
    groups = HF().generate(then, examples, 8, Sampling(max_new_tokens=rl.LENGTH), rng.generator(seed, "dead zone"))
    tokens = then.encoder.rollouts(groups)
    with torch.no_grad():
        old, new = (net(tokens, {"logprobs"}).logprobs[tokens.target].double() for net in (then, now))
    rewards = torch.tensor([g.example.verify(r.text) for g in groups for r in g.rollouts], dtype=torch.float64)
    centred = (rewards.view(64, 8) - rewards.view(64, 8).mean(1, keepdim=True)).flatten()
    advantages = centred[:, None].expand(tokens.ids.shape)[tokens.target]
    gradients = {}
    for name in ("ppo", "sapo"):
        leaf = new.clone().requires_grad_()
        ratio = (leaf - old).exp()
        if name == "ppo":
            loss = formulas.clipped_surrogate(ratio, advantages, low=0.2, high=0.2)
        else:
            loss = formulas.soft_gate(ratio, advantages, tau_positive=1.0, tau_negative=1.05)
        loss.sum().backward()
        gradients[name] = leaf.grad
    clipped = formulas.clip_is_active((new - old).exp(), advantages, low=0.2, high=0.2) == 1
    return {
        "clipped_tokens": float(clipped.double().mean()),
        "ppo_gradient_there": float(gradients["ppo"][clipped].norm()),
        "sapo_gradient_there": float(gradients["sapo"][clipped].norm()),
        "sapo_gradient": float(gradients["sapo"].norm()),
    }


# --------------------------------------------------------------------------------------------- 6: memorises


def points(name: str, seed: int) -> dict[str, Any]:
    """From one SFT checkpoint on hands of three cards: more SFT, or GRPO."""
    tokenizer = {"kind": "characters", "data": POINTS}
    start = sft(OUT / f"points-base-{seed}", seed, 200, POINTS, tokenizer=tokenizer, max_length=80)
    folder = OUT / f"points-{name}-{seed}"
    sampled = {"data": POINTS, "samples": 8, "number": 60, "sampling": {"max_new_tokens": 16}}
    config: dict[str, Any] = {
        "learners": {"policy": {"model": str(start), "max_length": 80, "learning_rate": 1.0e-4}},
        "evaluations": {split: sampled | {"split": split} for split in ("train", "test", "ood")},
        "args": {"max_steps": {"start": 0, "sft": 480, "rl": 60}[name], "seed": seed, "output_dir": str(folder)},
    }
    if name == "rl":
        fields = {"batch_size": 16, "group_size": 8, "sampling": {"max_new_tokens": 16}, "advantage": rl.GROUP}
        config["sources"] = {"hands": {"kind": "prompts", "data": POINTS, "rewards": [{"kind": "exact_answer"}]} | fields}
        config["objectives"] = {"policy": {"kind": "dapo", "source": "hands"}}
        config["learners"]["policy"] |= {"minibatches": 4, "epochs": 2}
    else:
        config["sources"] = {"demos": {"kind": "demos", "data": POINTS | {"number": 2000}, "batch_size": 64, "seed": seed}}
        config["objectives"] = {"imitate": {"kind": "sft", "source": "demos"}}
    trainer = configuration.trainer(config)
    if name != "start":
        trainer.train(overwrite=True, progress=False)
    found = trainer.evaluate()
    return {split: found[f"{split}/pass@1"] for split in ("train", "test", "ood")} | {
        f"{split}_pass@8": found[f"{split}/pass@8"] for split in ("train", "test", "ood")
    }


# ----------------------------------------------------------------------------------------------- 8: offline


def offline(seed: int) -> dict[str, Any]:
    """DPO on right-against-wrong pairs among as many samples of the start as an online run draws; as many updates."""
    start = rl.OUT / f"base-{seed}" / "policy"
    network = load(str(start))
    examples = loading.examples(rl.TASK | {"number": 4000}, seed=seed)[: rl.DRAWS * 16]
    groups = HF().generate(network, examples, 8, Sampling(max_new_tokens=rl.LENGTH), rng.generator(seed, "offline"))
    pairs = []
    for group in groups:
        right = sorted({r.text for r in group.rollouts if group.example.verify(r.text) >= 1})
        wrong = sorted({r.text for r in group.rollouts if group.example.verify(r.text) < 1})
        pairs += [{"prompt": group.example.prompt, "chosen": a, "rejected": b} for a, b in zip(right * len(wrong), wrong, strict=False)]
    file = OUT / f"pairs-{seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(p) + "\n" for p in pairs))
    folder = OUT / f"offline-{seed}"
    config = {
        "learners": {"policy": {"model": str(start), "max_length": 24, "learning_rate": 1.0e-4}},
        "sources": {"pairs": {"kind": "pairs", "data": str(file), "batch_size": 32}},
        "frozen": {"reference": {"learner": "policy"}},
        "objectives": {"prefer": {"kind": "dpo", "source": "pairs"}},
        "evaluations": rl.evaluations(),
        "args": {"max_steps": rl.DRAWS * 8, "seed": seed, "output_dir": str(folder)},
    }
    trainer = configuration.trainer(config)
    trainer.train(overwrite=True, progress=False)
    found = trainer.evaluate()
    return {"accuracy": found["test/pass@1"], "pass@16": found["test/pass@16"], "pairs": len(pairs), "samples": len(examples) * 8}


# ------------------------------------------------------------------------------------------- 9: zero reward


def zero_reward(name: str, seed: int) -> dict[str, Any]:
    """From a start that answers (almost) nothing: 40 SFT steps."""
    start = sft(OUT / f"weak-base-{seed}", seed, 40, rl.TASK)
    folder = OUT / f"zero-{name}-{seed}"
    config = rl.described(name, seed, folder, str(start))
    config["args"]["max_steps"] = 2 * rl.DRAWS
    config["evaluations"] = {"test": config["evaluations"]["test"]}
    trainer = configuration.trainer(deepcopy(config))
    before = trainer.evaluate()["test/pass@1"]
    trainer.train(overwrite=True, progress=False)
    log = read(folder)
    first = [row["sums/reward"] for row in log[:5]]
    return {"before": before, "accuracy": trainer.evaluate()["test/pass@1"], "first_reward": sum(first) / len(first)}


JOBS: dict[str, Any] = {
    **{f"moe-{name}": lambda seed, name=name: moe(name, seed) for name in ("grpo", "gspo")},
    "dead_zone": dead_zone,
    **{f"points-{name}": lambda seed, name=name: points(name, seed) for name in ("start", "sft", "rl")},
    "offline": offline,
    **{f"zero-{name}": lambda seed, name=name: zero_reward(name, seed) for name in ("grpo", "luffy", "hpt")},
}


def one(job: tuple[str, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    name, seed = job
    return once(OUT / f"{name}-{seed}.json", lambda: JOBS[name](seed))


def values(runs: dict[tuple[str, int], dict[str, Any]], name: str, key: str) -> dict[str, Any]:
    return mean_sd([runs[name, s][key] for s in SEEDS])


def claims(runs: dict[tuple[str, int], dict[str, Any]]) -> dict[str, Any]:
    """{claim: expected, found, holds}: `holds` is computed from the means."""
    arms = json.loads(Path("benchmarks/results/rl.json").read_text())["arms"]
    base = json.loads(Path("benchmarks/results/rl.json").read_text())["base"]

    def fall(name: str) -> float:
        curve = arms[name]["curves"]["sums/sampled_entropy"]
        return sum(curve[:5]) / 5 - sum(curve[-5:]) / 5

    steady = {n: mean_sd([steadiness(runs[f"moe-{n}", s]["reward"]) for s in SEEDS]) for n in ("grpo", "gspo")}
    point = {n: {k: values(runs, f"points-{n}", k) for k in ("train", "test", "ood", "ood_pass@8")} for n in ("start", "sft", "rl")}
    zero = {n: values(runs, f"zero-{n}", "accuracy") for n in ("grpo", "luffy", "hpt")}
    seconds = {n: arms[n]["cpu_seconds_per_draw"] for n in ("grpo", "ppo")}
    dead = {k: values(runs, "dead_zone", k) for k in runs["dead_zone", 0] if not k.endswith("seconds")}
    dpo = values(runs, "offline", "accuracy")
    return {
        "entropy": {
            "expected": "the sampled entropy of GRPO falls further than that of DAPO with clip-higher (nats per token)",
            "found": {n: fall(n) for n in ("grpo", "dapo_no_refill")},
            "holds": fall("grpo") > fall("dapo_no_refill"),
        },
        "dynamic": {
            "expected": "with dynamic sampling a larger share of the groups that are trained on carries signal",
            "found": {
                "without": 1 - arms["dapo_no_refill"]["zero_signal"],
                "with": arms["dapo"]["informative"],
                "batches_per_draw": arms["dapo"]["batches_per_draw"],
            },
            "holds": arms["dapo"]["informative"] > 1 - arms["dapo_no_refill"]["zero_signal"],
        },
        "moe": {
            "expected": "on a mixture of experts the reward of GSPO changes less from draw to draw than that of GRPO (standard deviation)",
            "found": {
                n: {"steadiness": steady[n]} | {k: values(runs, f"moe-{n}", k) for k in ("accuracy", "ratio_variance", "clip_fraction")}
                for n in steady
            },
            "holds": steady["gspo"]["mean"] < steady["grpo"]["mean"],
        },
        "dead_zone": {
            "expected": "on tokens that PPO clips its gradient is 0 and SAPO's is not",
            "found": dead,
            "holds": dead["ppo_gradient_there"]["mean"] == 0 and min(dead["sapo_gradient_there"]["values"]) > 0,
        },
        "nsr": {
            "expected": "only-negative training keeps pass@16 of the start",
            "found": {"base": base["pass@16"], "nsr": arms["nsr"]["pass@16"]},
            "holds": arms["nsr"]["pass@16"]["mean"] >= base["pass@16"]["mean"] - 0.01,
        },
        "psr": {
            "expected": "only-positive training raises pass@1 and loses pass@16",
            "found": {k: {"base": base[k], "psr": arms["psr"][v]} for k, v in (("pass@1", "accuracy"), ("pass@16", "pass@16"))},
            "holds": arms["psr"]["accuracy"]["mean"] > base["pass@1"]["mean"] and arms["psr"]["pass@16"]["mean"] < base["pass@16"]["mean"],
        },
        "memorises": {
            "expected": "out of distribution RL gains on the common start and more SFT does not",
            "found": point,
            "holds": point["rl"]["ood"]["mean"] > point["start"]["ood"]["mean"] >= point["sft"]["ood"]["mean"],
        },
        "critic": {
            "expected": "a draw of PPO costs more CPU time than one of GRPO (memory: see ppo_memory)",
            "found": {"cpu_seconds_per_draw": seconds, "ratio": seconds["ppo"] / seconds["grpo"]},
            "holds": seconds["ppo"] > seconds["grpo"],
        },
        "offline": {
            "expected": "DPO on samples of the start ends below GRPO with as many samples of its own",
            "found": {"dpo": dpo, "grpo": arms["grpo"]["accuracy"]},
            "holds": dpo["mean"] < arms["grpo"]["accuracy"]["mean"],
        },
        "zero_reward": {
            "expected": "LUFFY and HPT learn from a start whose reward is (almost) zero, GRPO does not: by 0.1 at least",
            "found": zero | {"before": values(runs, "zero-grpo", "before"), "first_reward": values(runs, "zero-grpo", "first_reward")},
            "holds": min(zero["luffy"]["mean"], zero["hpt"]["mean"]) > zero["grpo"]["mean"] + 0.1,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    jobs = [(name, seed) for name in JOBS for seed in SEEDS]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        # One seed of a claim after the other: arms share a start that the first of them makes.
        runs = dict(zip(jobs, pool.map(one, jobs, chunksize=1), strict=True))
    spent = cpu_hours(list(runs.values()))
    save("benchmarks/results/rl_claims.json", about("make bench-rl") | {"seeds": list(SEEDS), "cpu_hours": spent, "claims": claims(runs)})


if __name__ == "__main__":
    main()
