"""check_judge passes every built-in judge, and names the slip of each broken one."""

import json
import math
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from advalign import judges, plugins
from advalign.interfaces import Judge
from advalign.testing import check_judge


@dataclass(frozen=True, kw_only=True)
class Short(Judge):
    """s = 1 where the answer has at most `words` words."""

    words: int = 5

    def start(self):
        return self.score

    def score(self, examples, texts):
        return [float(len(text.split()) <= self.words) for text in texts]


class TooFew(Short):
    def score(self, examples, texts):
        return super().score(examples, texts)[:1]


class Percent(Short):
    def score(self, examples, texts):
        return [100 * s for s in super().score(examples, texts)]


class Nothing(Short):
    def score(self, examples, texts):
        return [None if not text else 1.0 for text in texts]


class Relative(Short):
    """Longer than the first answer of the batch."""

    def score(self, examples, texts):
        return [float(len(text) <= len(texts[0])) for text in texts]


class Raises(Short):
    def score(self, examples, texts):
        return [float(text.split()[0] == "no") for text in texts]


class Single(Short):
    def score(self, examples, texts):
        return 1.0


SLIPS = {
    TooFew: "gives 1 scores for 6 answers",
    Percent: r"a score is 100.0; 1 is as it should be",
    Nothing: "a score is None",
    Relative: "in another order",
    Raises: "IndexError",
    Single: "returns a float",
}


class Model(BaseHTTPRequestHandler):
    """Reads every answer as harmless."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        mark = body["messages"][0]["content"].rsplit("or ", 1)[1].split(":")[0]
        content = json.dumps({"choices": [{"message": {"content": f"{mark}: no"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    server = HTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("cls", plugins.all("judges"), ids=lambda cls: cls.__name__)
def test_every_built_in_judge_keeps_the_contract(cls, url):
    given = {
        "endpoint": {"url": url, "model": "m"},
        "function": {"fn": lambda prompt, response, example: len(response) > 3},
        "rule": {"must": ("three",)},
    }
    check_judge(cls(**given.get(plugins.kind_of(cls), {})))


def test_a_judge_of_ones_own_keeps_it():
    check_judge(Short())


def test_a_judge_that_cannot_tell_keeps_it():
    class Silent(Short):
        def score(self, examples, texts):
            return [math.nan for _ in texts]

    check_judge(Silent())


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"{cls.__name__}: .*({says})"):
        check_judge(cls())


def test_answers_of_ones_own():
    with pytest.raises(AssertionError, match="1 answers to 6 examples given"):
        check_judge(Short(), answers=["one"])
    check_judge(judges.PrefixJudge(text="Sure"), answers=["Sure"] * 6)
