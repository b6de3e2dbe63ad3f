"""The client of a vLLM server, against a server of a hundred lines that answers the same requests from the weights it was told to load."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.runs import DATA, policy, write

from advalign import Correction, Evaluation, Sampling, Trainer, TrainingArguments
from advalign.errors import BudgetError, ConfigError, RolloutError
from advalign.models import load
from advalign.objectives.grpo import GRPO
from advalign.rewards.function import Function
from advalign.rollout.hf import HF
from advalign.rollout.vllm import VLLM
from advalign.tasks.constraints import Constraints
from advalign.types import Example, RolloutGroup
from advalign.types import Sampling as Options

PROMPTS = ["length 3 with red without blue :", "length 7 :", "red"]
SHORT = Options(max_new_tokens=6, temperature=0.7, top_p=0.9)


def network():
    net = load("scratch:tiny-gpt2?n_embd=32", tokenizer={"kind": "words"}, texts=Constraints().vocabulary(), max_length=32)
    for p in net.parameters():
        p.data.mul_(3.0)
    return net


class Handler(BaseHTTPRequestHandler):
    """What the client uses of vLLM's HTTP interface."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        assert self.path == "/v1/models"
        self._answer({"data": [{"id": "base", "max_model_len": 32}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        if self.path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            if not self.server.deaf:
                self.server.network = load(body["kwargs"]["weights_path"], head="policy", max_length=32)
            self._answer({"results": [None]})
        elif self.path == "/reset_prefix_cache":
            self._answer({"success": not self.server.busy})
        elif self.path == "/v1/completions":
            self._answer({"choices": self._choices(body)})
        else:
            self._answer({"detail": "Not Found"}, 404)

    def _choices(self, body):
        assert (body["ignore_eos"], body["stop_token_ids"], body["return_token_ids"], body["logprobs"]) == (
            True,
            self.server.stop_ids,
            True,
            0,
        )
        group = RolloutGroup(example=Example(prompt=""), prompt_ids=body["prompt"], rollouts=[])
        options = Options(max_new_tokens=body["max_tokens"], temperature=body["temperature"], top_p=body["top_p"])
        HF().extend(self.server.network, [group], body["n"], options, torch.Generator().manual_seed(body["seed"]))
        choices = [
            {"index": i, "token_ids": r.response_ids, "logprobs": {"token_logprobs": r.sampler_logprobs}}
            for i, r in enumerate(group.rollouts)
        ]
        return choices[::-1]  # in no particular order

    def _answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.seen, http_server.network, http_server.deaf, http_server.busy = [], network(), False, False
    http_server.stop_ids = [2]
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    http_server.url = f"http://127.0.0.1:{http_server.server_address[1]}"
    yield http_server
    http_server.shutdown()
    http_server.server_close()


def generate(engine, net, sampling=SHORT, n=3, seed=0, prompts=PROMPTS):
    return engine.generate(net, [Example(prompt=p) for p in prompts], n, sampling, torch.Generator().manual_seed(seed))


def ids(groups):
    return [[r.response_ids for r in g.rollouts] for g in groups]


def test_ids_go_out_and_ids_come_back(server, tmp_path):
    net, engine = network(), VLLM(url=f"{server.url}/v1/", folder=str(tmp_path))
    engine.sync(net, 0)
    groups = generate(engine, net)
    assert ids(groups) == ids(generate(engine, net)) != ids(generate(engine, net, seed=1))
    requests = [body for path, body in server.seen if path == "/v1/completions"][:3]
    assert sorted(body["prompt"] for body in requests) == sorted(net.encoder.prompts(PROMPTS))
    assert len({body["seed"] for body in requests}) == 3
    assert {(body["temperature"], body["top_p"], body["n"], body["max_tokens"]) for body in requests} == {(0.7, 0.9, 3, 6)}
    for group in groups:
        for r in group.rollouts:
            assert r.finished == (r.response_ids[-1] == net.encoder.eos_id)
            assert r.text == net.encoder.decode(r.response_ids)
    assert engine.logs["logprob_gap_max"] < 1e-5


def test_every_end_of_the_model_and_the_stop_strings_go_out_and_a_response_is_cut_where_it_ends(server, tmp_path):
    """This server knows no strings, so it samples on: the response is cut here, ids, log-probabilities and text alike."""
    net, engine = network(), VLLM(url=server.url, folder=str(tmp_path))
    free, stop = generate(engine, net), Options(max_new_tokens=6, temperature=0.7, top_p=0.9, stop=("e", "<unk>"))
    server.seen.clear()
    server.stop_ids = [1, 2]  # a special token as a stop string is an end token
    stopped = generate(engine, net, stop)
    requests = [body for path, body in server.seen if path == "/v1/completions"]
    assert all((body["stop"], body["include_stop_str_in_output"]) == (["e"], True) for body in requests)
    cut = 0
    for one, two in zip([r for g in free for r in g.rollouts], [r for g in stopped for r in g.rollouts], strict=True):
        ends = [t for t in range(1, len(one.response_ids) + 1) if "e" in net.encoder.decode(one.response_ids[:t])]
        end = ends[0] if ends else len(one.response_ids)
        assert two.response_ids == one.response_ids[:end]
        assert two.sampler_logprobs == one.sampler_logprobs[:end]
        assert two.finished == (bool(ends) or one.finished)
        cut += end < len(one.response_ids)
    assert cut > 2


def test_weights_go_over_once_per_version_and_one_folder_stays(server, tmp_path):
    net, engine = network(), VLLM(url=server.url, folder=str(tmp_path / "weights"))
    for version in (0, 0, 1, 1, 2):
        engine.sync(net, version)
        generate(engine, net)
        for p in net.parameters() if version != 2 else ():
            p.data.add_(0.1)  # moved, but not yet of another version
        if version == 1:
            break
    loaded = [Path(body["kwargs"]["weights_path"]).name for path, body in server.seen if path == "/collective_rpc"]
    paths = [path for path, _ in server.seen if path != "/v1/completions"]
    assert loaded == ["weights-1", "weights-2"]
    assert paths == ["/collective_rpc", "/reset_prefix_cache"] * 2
    assert [p.name for p in (tmp_path / "weights").iterdir()] == ["weights-2"]


def test_greedy_is_asked_once_and_the_context_bounds_a_response(server, tmp_path):
    net, engine = network(), VLLM(url=server.url, folder=str(tmp_path))
    (group,) = generate(engine, net, Options(max_new_tokens=64, temperature=0.0), prompts=PROMPTS[:1])
    (body,) = [body for path, body in server.seen if path == "/v1/completions"]
    assert (body["n"], body["max_tokens"]) == (1, 32 - len(group.prompt_ids))
    assert len(group.rollouts) == 3
    assert len({id(r.response_ids) for r in group.rollouts}) == 3
    with pytest.raises(BudgetError, match=r"^rollout: a prompt of 33 tokens leaves no room in the model's context of 32 tokens\.$"):
        generate(engine, net, prompts=["red " * 33])


def test_a_server_that_keeps_its_old_weights_is_caught(server, tmp_path):
    net, engine = network(), VLLM(url=server.url, folder=str(tmp_path))
    engine.sync(net, 0)
    generate(engine, net)
    server.deaf = True
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    engine.sync(net, 1)
    with pytest.raises(
        RolloutError, match=r"^rollout: vLLM's log-probabilities are .* weights of version 1\), and tolerance is 0\.002: weights"
    ):
        generate(engine, net)
    patient = VLLM(url=server.url, folder=str(tmp_path / "b"), on_gap="warn")
    patient.sync(net, 1)
    with pytest.warns(UserWarning, match="weights were not synced"):
        generate(patient, net)
    large = VLLM(url=server.url, folder=str(tmp_path / "c"), tolerance=100.0)
    large.sync(net, 1)
    generate(large, net)
    assert large.logs["logprob_gap_mean"] > 0.002


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_samples_from_the_server(server, tmp_path, ahead):
    """Its rollouts are checked against the trainer at every step, evaluations among them."""
    source = write(
        data=DATA,
        rewards=[Function(fn=lambda completions, **_: [float(len(c)) for c in completions])],
        sampling=Sampling(max_new_tokens=6),
        ahead=ahead,
    )
    trainer = Trainer(
        learners={"policy": policy(dtype="float32", learning_rate=1e-2)},
        sources={"write": source},
        objectives={"policy": GRPO(source="write", correction=Correction())},
        evaluations={"held": Evaluation(data=DATA, split="test", number=3, sampling=Sampling(max_new_tokens=6))},
        rollout=VLLM(url=server.url, folder=str(tmp_path)),
        args=TrainingArguments(max_steps=4, eval_steps=2),
    )
    history = trainer.train(progress=False)
    assert all(line["rollout/logprob_gap_max"] < 1e-4 for line in history)
    assert len({line["rollout/logprob_gap_mean"] for line in history}) > 1
    assert "held/accuracy" in history[-1]
    assert [line.get("write/staleness") for line in history] == ([0, 1, 1, 1] if ahead else [None] * 4)


def test_what_goes_wrong_is_one_sentence(server, tmp_path):
    net = network()
    engine = VLLM(url=server.url, folder=str(tmp_path))
    engine.sync(net, 0)
    server.busy = True
    with pytest.raises(
        RolloutError, match=r"^rollout: the vLLM server at http\S+ did not forget its cached prompts; some request is still running\.$"
    ):
        engine.sync(net, 1)
    with pytest.raises(
        RolloutError,
        match=r'^rollout\.url: http\S+/v1/nothing answered 404 \(\{"detail": "Not Found"\}\); docs/rollouts\.md shows',
    ):
        engine.state.backend._request("/v1/nothing", {})
    with pytest.raises(
        RolloutError, match=r"^rollout\.url: no vLLM server answers at http://127\.0\.0\.1:9/v1/models \(.*\); docs/rollouts\.md shows"
    ):
        VLLM(url="http://127.0.0.1:9", folder=str(tmp_path)).sync(net, 0)
    with pytest.raises(ConfigError, match=r"^rollout: vLLM samples from policies, and this network's head is 'score'\.$"):
        VLLM(url=server.url, folder=str(tmp_path)).sync(
            load("scratch:encoder-tiny", head="score", tokenizer={"kind": "words"}, texts=["a"]), 0
        )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"on_gap": "ignore"}, r"on_gap: no reaction 'ignore'\. Known: error, warn\."),
        ({"tolerance": 0.0}, r"tolerance: 0 given; a number above 0"),
        ({"folder": "x"}, r"^rollout\.folder: 'x' given, but without url nothing reads it; leave it out\.$"),
        ({"url": "http://x"}, r"^rollout\.folder: none given; weights go to a server over a folder that both it and this process see\.$"),
        (
            {"url": "http://x", "folder": "x", "options": {"dtype": "half"}},
            r"^rollout\.options: dtype given, but a server has its own command line",
        ),
    ],
)
def test_refused_before_anything_starts(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        VLLM(**fields)


def test_what_the_engine_sets_itself_is_refused():
    with pytest.raises(
        ConfigError, match=r"^rollout\.options\.logprobs_mode: 'raw_logprobs' given, but the engine sets it itself; leave it out\.$"
    ):
        VLLM(options={"logprobs_mode": "raw_logprobs"}).sync(network(), 0)
    with pytest.raises(ConfigError, match=r"^rollout\.options\.trust_remote_code: 'True' given, but the engine sets it itself"):
        VLLM(options={"trust_remote_code": True}).sync(network(), 0)
