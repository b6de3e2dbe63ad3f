"""Servers that are slow, endless, broken or hostile: bounded time and size, one sentence, and the key in no text."""

import contextlib
import gzip
import json
import math
import socket
import threading
import time
import traceback

import pytest
from helpers.attackers import Say

from advalign.errors import ConfigError, RolloutError
from advalign.evaluation import Suite
from advalign.evaluation.suites.checker import judge_answers
from advalign.http_client import Client, ServerError, check_url
from advalign.judges import Endpoint
from advalign.rollout import VLLM
from advalign.targets import AnsweringGenerator
from advalign.types import Example

KEY = "sk-secret-4711-abcdefghijkl"
E = Example(prompt="p", id="e")
OK = b"HTTP/1.1 200 OK\r\n"


def reply(body, headers=b"", status=b"HTTP/1.1 200 OK"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status + b"\r\nContent-Length: %d\r\n" % len(body) + headers + b"\r\n" + body


def drip(connection, first, rest):
    """Sends a byte every 20 ms, for a minute at most."""
    connection.sendall(first)
    for _ in range(3_000):
        connection.sendall(rest)
        time.sleep(0.02)


def endless(connection, head, part, limit=1 << 28):
    connection.sendall(head)
    for _ in range(limit // len(part)):
        connection.sendall(part)


class Server:
    """Answers every connection with `act(connection, request)` on a thread of its own; counts them."""

    def __init__(self, act):
        self.act, self.requests = act, []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(1 << 16)
            self.requests.append(request)
            self.act(connection, request)

    def close(self):
        self._socket.close()


@pytest.fixture
def serve():
    servers = []

    def start(act):
        servers.append(Server(act if callable(act) else lambda connection, request: connection.sendall(act)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def judged(server, *, seconds=0.5, retries=1, texts=("an answer",)):
    judge = Endpoint(url=f"{server.url}/v1", model="m", key="JUDGE_KEY", seconds=seconds, retries=retries)
    return judge_answers(judge.start(), [E] * len(texts), list(texts), name="endpoint")


def echo(connection, request):
    """A server that says the key again, as some do."""
    connection.sendall(reply(b"bad key: " + KEY.encode(), status=b"HTTP/1.1 401 Unauthorized"))


DEEP = b"[" * 100_000
ACTS = {
    "drips a body": (lambda c, r: drip(c, OK + b"Content-Length: 1000000\r\n\r\n{", b" "), "gave no whole reply in 0.5 seconds"),
    "drips a header": (lambda c, r: drip(c, OK + b"X: ", b"x"), "gave no whole reply in 0.5 seconds"),
    "drips chunks": (lambda c, r: drip(c, OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"), "gave no whole reply in 0.5 seconds"),
    "says nothing": (lambda c, r: time.sleep(5), "gave no whole reply in 0.5 seconds"),
    "hangs up": (lambda c, r: None, "does not answer (RemoteDisconnected"),
    "is endless": (lambda c, r: endless(c, OK + b"\r\n", b" " * (1 << 16)), "answered with more than 4,194,304 bytes"),
    "sends endless headers": (lambda c, r: endless(c, OK, b"X: y\r\n" * 1000), "does not answer (HTTPException"),
    "packs": (reply(gzip.compress(b" " * 10**7), b"Content-Encoding: gzip\r\n"), "answered with a packed reply"),
    "is cut short": (OK + b"Content-Length: 100\r\n\r\n{}", "does not answer (IncompleteRead"),
    "is not JSON": (reply(b"{not json"), "answered with a text that is not JSON"),
    "is a page": (reply(b"<html>no</html>"), "answered in another form than a chat completion's"),
    "is nested": (reply(DEEP), "answered with a text that is not JSON"),
    "has numbers of 5,000 digits": (reply(b"[" + b"9" * 5000 + b"]"), "answered with a text that is not JSON"),
    "is not UTF-8": (reply(b'{"choices": "\xff"}'), "answered with bytes that are not UTF-8"),
    "is of another shape": (reply({"choices": []}), "answered in another form than a chat completion's"),
    "has no content": (reply({"choices": [{"message": {"content": None}}]}), "answered in another form than a chat completion's"),
    "has lists": (reply([1]), "answered in another form than a chat completion's"),
    "says the key": (echo, "answered 401 (bad key: ***)"),
    "is down": (reply(b"", status=b"HTTP/1.1 503 Down"), "answered 503"),
    "speaks terminal": (reply(b"\x1b[31m\x00\xff", status=b"HTTP/1.1 500 x"), r"answered 500 (\x1b[31m\x00"),
    "is no server of this kind": (b"SSH-2.0-x\r\n", "does not answer (BadStatusLine"),
    "redirects to a file": (
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        "answered 302 (a redirect to file:///etc/passwd; redirects are not followed, give the last address)",
    ),
}


@pytest.mark.parametrize("name", ACTS)
def test_a_judge_s_server_is_bounded_and_named_and_its_answer_undetermined(serve, name):
    act, sentence = ACTS[name]
    start = time.monotonic()
    ((score, note),) = judged(serve(act))
    assert time.monotonic() - start < 10
    assert math.isnan(score)
    assert sentence in note
    assert KEY not in note
    assert len(note) < 500


def test_the_key_goes_to_the_address_of_the_configuration_alone(serve):
    thief = serve(reply({}))
    for status in (b"301 a", b"302 b", b"303 c", b"307 d", b"308 e"):
        server = serve(
            b"HTTP/1.1 " + status + b"\r\nLocation: " + thief.url.encode() + b"/v1/chat/completions\r\nContent-Length: 0\r\n\r\n"
        )
        ((score, note),) = judged(server, retries=3)
        assert math.isnan(score)
        assert "a redirect to" in note
        assert KEY.encode() in server.requests[0]
        assert len(server.requests) == 1  # a redirect is not asked about again
    assert thief.requests == []


def test_what_may_pass_is_asked_about_again_and_what_is_refused_is_not(serve):
    replies = [reply(b"", status=b"HTTP/1.1 503 x"), reply(b"{"), reply({"choices": [{"message": {"content": "nothing"}}]})]
    server = serve(lambda connection, request: connection.sendall(replies[min(len(server.requests) - 1, 2)]))
    ((score, note),) = judged(server, retries=3, seconds=10)
    assert math.isnan(score)
    assert note == "the judge could not tell"
    assert len(server.requests) == 3
    refusing = serve(reply(b"no such model", status=b"HTTP/1.1 404 x"))
    judged(refusing, retries=3)
    assert len(refusing.requests) == 1


def test_512_answers_of_a_dead_server_are_bounded_together(serve):
    """Three failures in a row, then it is left alone for `seconds`; every answer is undetermined and says why."""
    server = serve(lambda connection, request: time.sleep(1))
    start = time.monotonic()
    results = judged(server, seconds=1.0, texts=[f"answer {i}" for i in range(512)])
    assert time.monotonic() - start < 15
    assert all(math.isnan(score) for score, _ in results)
    assert "was not asked after 3 failures in a row" in results[-1][1]


def test_an_answer_is_asked_about_once_where_its_batch_fails(serve):
    """The harness asks one by one after a failure of the batch; what was judged before is remembered."""

    def act(connection, request):
        body = request.partition(b"\r\n\r\n")[2] or connection.recv(1 << 16)
        connection.sendall(
            reply(b"x", status=b"HTTP/1.1 400 x") if b"answer 2" in body else reply({"choices": [{"message": {"content": "?"}}]})
        )

    server = serve(act)
    judged(server, texts=[f"answer {i}" for i in range(4)], seconds=10)
    assert len(server.requests) == 5


def test_the_key_is_in_no_file_text_or_frame(serve, tmp_path):
    suite = Suite(
        data=[Example(prompt="say it", id="a"), Example(prompt="say more", id="b")],
        attacks={"x": Say(texts=("{}!",))},
        judge=Endpoint(url=serve(echo).url, model="m", key="JUDGE_KEY", seconds=2, retries=1),
    )
    result = suite.run(AnsweringGenerator(lambda prompts: [f"sure: {p}" for p in prompts], name="f"), output_dir=tmp_path)
    result.save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if KEY in path.read_text(encoding="utf-8", errors="replace")]
    assert "answered 401" in (tmp_path / "results.jsonl").read_text()
    ask = suite.judge.start()
    assert KEY not in repr((suite, ask, vars(ask), ask.client))
    with pytest.raises(RuntimeError) as caught:
        ask([E], ["x"])
    lines = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    assert KEY not in "".join(lines)


@pytest.mark.parametrize("given", [KEY, "hf_abcdefGHIJ", "gsk_0123456789", "", "A B", "KEY\n", "X" * 100])
def test_a_key_in_place_of_its_name_is_refused_and_not_repeated(given):
    with pytest.raises(ConfigError, match=r"^judges\.endpoint.key: the NAME of an environment variable in capitals") as caught:
        Endpoint(url="http://x", model="m", key=given)
    assert not given or given not in str(caught.value).replace("KEY itself", "")


@pytest.mark.parametrize("held", ["a\nb", "a b", "schlüssel", "x\x00y"[:1] + "\x7f"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(monkeypatch, held):
    monkeypatch.setenv("JUDGE_KEY", held)
    with pytest.raises(ConfigError, match="the environment variable JUDGE_KEY does not hold a key") as caught:
        Endpoint(url="http://x", model="m", key="JUDGE_KEY").start()
    assert held not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://x",
        "x",
        "",
        "http://",
        "http://a b",
        "http://h:99999",
        "http://h/v1?api_key=s3cr3t",
        "http://h/#s3cr3t",
        "http://[x",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match=r"^judges\.endpoint.url: .*an address that begins with http:// or https://") as caught:
        check_url(url, "judges.endpoint.url")
    assert "?api_key=s3cr3t" not in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="an address with a name or password") as caught:
        check_url("https://me:s3cr3t@host/v1", "rollout.url")
    assert "s3cr3t" not in str(caught.value)


def test_a_vllm_server_is_bounded_too(serve, tmp_path):
    from advalign.rollout._vllm_server import ServerBackend

    for act, words in (
        (ACTS["drips a header"][0], "no vLLM server answers at .*gave no whole reply in 0.5 seconds"),
        (reply({"data": []}), "answered in another form than vLLM's .IndexError"),
        (reply({"data": [{"id": "m", "max_model_len": "many"}]}), "answered in another form than vLLM's .ValueError"),
        (b"HTTP/1.1 302 x\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", "answered 302 .a redirect to http://elsewhere/"),
    ):
        with pytest.raises(RolloutError, match=f"^rollout.url: .*{words}"):
            ServerBackend(serve(act).url, tmp_path, 0.5)
    with pytest.raises(ConfigError, match=r"^rollout\.vllm\.url: "):
        VLLM(url="file:///etc/passwd", folder=str(tmp_path))


def test_a_client_reads_text_and_json(serve):
    client = Client(url=serve(reply({"a": 1})).url, seconds=5, most_bytes=100)
    assert client.ask("/x") == {"a": 1}
    assert Client(url=serve(reply(b"fine")).url, seconds=5, most_bytes=100).ask("/x", {}) == "fine"
    with pytest.raises(ServerError, match=r"^answered with more than 100 bytes$"):
        Client(url=serve(reply(b"x" * 101)).url, seconds=5, most_bytes=100).ask("/x")
    with pytest.raises(ServerError, match=r"^does not answer \(ConnectionRefusedError"):
        Client(url="http://127.0.0.1:9", seconds=5, most_bytes=100).ask("/x")
