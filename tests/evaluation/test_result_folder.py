"""The folder of results under faults: kills, full disks, second writers, lines that are gone, repeated or changed."""

import json
import os
import random
import resource
import shutil
import signal
from dataclasses import dataclass
from typing import ClassVar

import pytest
from helpers.attackers import Say

from advalign import attacks, judges
from advalign.errors import AdvalignError, ConfigError, StorageError
from advalign.evaluation import Suite
from advalign.evaluation.reports import compare
from advalign.interfaces import Attack
from advalign.targets import AnsweringClassifier, AnsweringGenerator
from advalign.types import Example, Proposal

NAMES = tuple(map(str, range(12)))


@dataclass(frozen=True, kw_only=True)
class Marks(Attack):
    """Adds a mark drawn from the example's stream, a few examples at a time; ends its process where `dies` says so."""

    at_once: int = 3

    access: ClassVar[str] = "text"
    dies: ClassVar[str] = ""

    @property
    def examples_at_once(self):
        return self.at_once

    def propose(self, target, examples, budget, rng):
        stream = rng.getrandbits(32)
        if Marks.dies in {e.id for e in examples}:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Proposal(text=f"{e.prompt} {random.Random(f'{stream}{e.id}').random()} é\u2028") for e in examples]


SUITE = Suite(
    data=[Example(prompt=f"say {i}", id=i) for i in NAMES],
    attacks={"marks": Marks(), "say": Say(texts=("{}!", "{}?"))},
    judge=judges.Rule(must_not=("7", "0.3")),
)
MODEL = AnsweringGenerator(lambda prompts: prompts, name="echo")


def whole(folder):
    SUITE.run(MODEL, folder)
    return (folder / "results.jsonl").read_bytes()


def in_child(work):
    """The exit status, or the signal as a negative number, of a process that does some work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except AdvalignError as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("timings.jsonl", "report.html", ".lock")}


# ----------------------------------------------------------------------------------------------------- lines


def test_lines_that_are_gone_are_judged_again(tmp_path):
    """Any lines, of results or of their times: the rates are over all that was asked for, and the bytes are those of one run."""
    expected = whole(tmp_path / "whole")
    summary = (tmp_path / "whole" / "summary.json").read_text()
    rng = random.Random(0)
    for name in [*["results.jsonl", "timings.jsonl"] * 4, "both"]:
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        for file in ("results.jsonl", "timings.jsonl") if name == "both" else (name,):
            lines = (folder / file).read_bytes().split(b"\n")[:-1]
            kept = sorted(rng.sample(range(len(lines)), rng.randrange(len(lines))))
            (folder / file).write_bytes(b"".join(lines[i] + b"\n" for i in kept))
        result = SUITE.run(MODEL, folder)
        assert (folder / "results.jsonl").read_bytes() == expected
        assert len((folder / "timings.jsonl").read_bytes().splitlines()) == len(result.results) == 24
        untimed = lambda text: {**json.loads(text), "cost": None, "attacks": None}  # noqa: E731
        assert untimed((folder / "summary.json").read_text()) == untimed(summary)
        shutil.rmtree(folder)


def changed(line):
    values = json.loads(line)
    return json.dumps(values | {"status": "failed" if values["status"] == "succeeded" else "succeeded"}).encode()


TAMPERED = {
    "repeated": (lambda lines: [*lines, lines[3]], r"line 25: a second result of attack 'marks' on example '3', after line 4"),
    "status": (lambda lines: [*lines[:5], changed(lines[5]), *lines[6:]], r"line 6: changed since it was written"),
    "text": (lambda lines: [lines[0].replace(b"say", b"SAY"), *lines[1:]], r"line 1: changed since it was written"),
    "no status": (lambda lines: [lines[0].replace(b'"status"', b'"stat"'), *lines[1:]], r"line 1: a result lacks status"),
    "status unknown": (lambda lines: [lines[0].replace(b'"failed"', b'"robust"'), *lines[1:]], r"line 1: no status 'robust'\. Known: "),
    "more": (lambda lines: [lines[0].replace(b'{"', b'{"x": 1, "', 1), *lines[1:]], r"line 1: a result has x"),
    "another attack": (
        lambda lines: [lines[0].replace(b'"marks"', b'"other"'), *lines[1:]],
        r"attack 'other' on example '0', which",
    ),
    "a list": (lambda lines: [b"[1]", *lines], r"line 1: no JSON object"),
    "no JSON": (lambda lines: [*lines[:4], b"{", *lines[4:]], r"line 5: no JSON object"),
    "no text": (lambda lines: [b"\xff\xfe", *lines], r"it is not UTF-8 text"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_lines_that_are_not_as_they_were_written_are_refused_and_named(tmp_path, name):
    expected = whole(tmp_path / "out")
    change, message = TAMPERED[name]
    written = b"".join(line + b"\n" for line in change(expected.split(b"\n")[:-1]))
    (tmp_path / "out" / "results.jsonl").write_bytes(written)
    with pytest.raises(ConfigError, match=rf"results\.jsonl.*{message}") as caught:
        SUITE.run(MODEL, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == written
    SUITE.run(MODEL, tmp_path / "out", resume=False)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == expected


def test_a_comparison_reads_whole_folders_only(tmp_path):
    expected = whole(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    compare.folders(tmp_path / "first", tmp_path / "second")
    (tmp_path / "second" / "results.jsonl").write_bytes(b"".join(line + b"\n" for line in expected.split(b"\n")[:10]))
    with pytest.raises(ConfigError, match=r"^compare: .*second holds 10 of 24 results; run its evaluation again"):
        compare.folders(tmp_path / "first", tmp_path / "second")
    (tmp_path / "second" / "results.jsonl").write_bytes(expected + expected.split(b"\n")[0] + b"\n")
    with pytest.raises(ConfigError, match=r"line 25: a second result"):
        compare.folders(tmp_path / "first", tmp_path / "second")


# ------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("example", ["0", "4", "11"])
def test_a_killed_evaluation_goes_on_to_the_same_bytes_and_leaves_no_lock(tmp_path, example, monkeypatch):
    expected = whole(tmp_path / "whole")
    monkeypatch.setattr(Marks, "dies", example)
    assert in_child(lambda: SUITE.run(MODEL, tmp_path / "out")) == -signal.SIGKILL
    monkeypatch.setattr(Marks, "dies", "")
    done = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert expected.startswith(done)
    assert len(done.splitlines()) == int(example) // 3 * 3
    SUITE.run(MODEL, tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == expected


@pytest.mark.parametrize("size", [400, 2000, 4000])
def test_a_disk_without_room_is_one_sentence_and_what_was_judged_stays(tmp_path, capfd, size):
    """Files may have `size` bytes: a write fails in the middle of a line."""
    expected = whole(tmp_path / "whole")

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        SUITE.run(MODEL, tmp_path / "out")

    assert in_child(limited) == 3
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("StorageError: output_dir: ")
    assert "could not be written (File too large)" in line
    if (tmp_path / "out" / "results.jsonl").exists():
        assert expected.startswith((tmp_path / "out" / "results.jsonl").read_bytes())
    SUITE.run(MODEL, tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == expected


def test_a_second_evaluation_in_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    expected = whole(tmp_path / "whole")
    refused = []

    def answer(prompts):
        if not refused:
            with pytest.raises(
                ConfigError, match=r"^output_dir: .* is being written to by process \d+ on .*; wait until it ends"
            ) as caught:
                SUITE.run(MODEL, tmp_path / "out", overwrite=True)
            refused.append(caught.value)
        return prompts

    SUITE.run(AnsweringGenerator(answer, name="echo"), tmp_path / "out")
    assert len(refused) == 1
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == expected


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/evaluation", "nul\0"])
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_asked(tmp_path, place):
    (tmp_path / "file").write_text("mine")

    def answer(prompts):
        raise AssertionError("the model was asked")

    with pytest.raises((ConfigError, StorageError)) as caught:
        SUITE.run(AnsweringGenerator(answer, name="echo"), place if place.startswith("/") else tmp_path / place)
    assert str(caught.value).startswith("output_dir: ")
    assert (tmp_path / "file").read_text() == "mine"


# ------------------------------------------------------------------------------------------- what is in the folder


@pytest.mark.parametrize("name", ["results.jsonl", "report.html", "summary.json"])
def test_files_of_which_nothing_says_whose_they_are_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"holds {name} and no suite\.json that says of what"):
        SUITE.run(MODEL, tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    SUITE.run(MODEL, tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() != "mine"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b"null", b'{"fingerprint": null}'])
def test_a_description_that_is_broken_is_refused_in_a_sentence(tmp_path, content):
    expected = whole(tmp_path / "out")
    (tmp_path / "out" / "suite.json").write_bytes(content)
    with pytest.raises(ConfigError, match="--overwrite") as caught:
        SUITE.run(MODEL, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == expected


def test_overwriting_clears_what_a_suite_writes_and_nothing_else(tmp_path):
    whole(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    other = Suite(data=SUITE.data, attacks={"say": Say(texts=("{}!",))}, judge=SUITE.judge)
    other.run(MODEL, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == 12


def test_half_of_a_surrogate_pair_is_written_and_read(tmp_path):
    """What a model says may have no UTF-8."""
    model = AnsweringGenerator(lambda prompts: [f"\ud800 {p}\u2028" for p in prompts], name="half")
    SUITE.run(model, tmp_path)
    expected = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(expected[: len(expected) // 2])
    SUITE.run(model, tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == expected


def test_certificates_that_are_not_as_they_were_written_are_refused(tmp_path):
    from helpers import victims

    from advalign.evaluation.suites.certified import Masking

    suite = Suite(data=victims.sentences(3), attacks={}, certified={"m": Masking(rate=0.5, replace="unknown", n=20, n0=5, words=(1,))})
    suite.run(victims.classifier(), tmp_path)
    lines = (tmp_path / "certified.jsonl").read_text().splitlines()
    for wrong in ([lines[1], lines[0], lines[2]], ["{}", *lines], ["[", *lines]):
        (tmp_path / "certified.jsonl").write_text("\n".join(wrong) + "\n")
        with pytest.raises(ConfigError, match=r"certified\.jsonl, line 1: "):
            suite.run(victims.classifier(), tmp_path)
    (tmp_path / "certified.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    suite.run(victims.classifier(), tmp_path)
    assert (tmp_path / "certified.jsonl").read_text().splitlines() == lines


def test_attacks_that_share_a_call_are_done_again_together(tmp_path):
    assert attacks.UniversalSuffix.batch_size == 25
    model = AnsweringClassifier(lambda texts: [[1.0, 0.0]] * len(texts), name="fn")
    suite = Suite(data=[Example(prompt=f"say {i}", id=i, label=0) for i in NAMES], attacks={"marks": Marks(at_once=5)})
    suite.run(model, tmp_path)
    expected = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(b"".join(line + b"\n" for line in expected.split(b"\n")[:7]))
    suite.run(model, tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == expected
