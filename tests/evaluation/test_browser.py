"""The report in a real browser: it loads nothing, logs nothing, sorts, and fits a telephone."""

import html
import json
import re
import shutil
import subprocess

import pytest
from helpers import victims
from helpers.attackers import Say

from advalign.evaluation import Suite
from advalign.evaluation.suites.benign import Benign
from advalign.types import Example

BROWSER = next((measured for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (measured := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

# Runs in the page: what went wrong, what was fetched, what a click on the second header does, how wide the page is.
HEAD = "<script>window.wrong = []; window.addEventListener('error', e => wrong.push(String(e.message || e.target.src)), true);</script>"
PROBE = """<script>
window.addEventListener("load", () => setTimeout(() => {
  const table = document.querySelector("table"), head = table.querySelectorAll("th");
  const number = [...head].findIndex(th => th.textContent.includes("accuracy under attack"));
  const column = () => [...table.tBodies[0].rows].map(r => r.cells[number].textContent);
  const before = column(); head[number].click(); const up = column(); head[number].click();
  const measured = {before, up, down: column(), wrong, fetched: performance.getEntriesByType("resource").length,
    page: document.documentElement.scrollWidth, window: window.innerWidth, figures: document.querySelectorAll("figure svg").length};
  const target = parent === window ? window : parent;
  const out = target.document.createElement("pre"); out.id = "measured"; out.textContent = JSON.stringify(measured);
  target.document.body.append(out);
}, 50));
</script>"""


def browse(path):
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000", "--enable-logging=stderr",
        f"--user-data-dir={path.parent / 'profile'}",
    ]  # fmt: skip
    done = subprocess.run([BROWSER, *flags, "--dump-dom", f"file://{path}"], capture_output=True, text=True, timeout=120, check=True)
    (measured,) = re.findall(r'<pre id="measured">(.*?)</pre>', done.stdout, flags=re.S)
    return json.loads(html.unescape(measured)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    said = {"none": ("{}",), "some": ("a bad plot", "{}"), "all": ("bad", "good")}
    attacks = {name: Say(texts=texts, spent=i + 1) for i, (name, texts) in enumerate(said.items())}
    result = Suite(data=victims.sentences(20), attacks=attacks, examples=20, seen=("some",)).run(victims.classifier())
    return result.report().html()


def test_it_runs_nothing_from_outside_and_sorts_by_number(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.replace("<head>", f"<head>{HEAD}").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    measured, console = browse(path)
    assert (measured["wrong"], measured["fetched"], console) == ([], 0, [])
    assert measured["figures"] >= 1
    # Nobody harmed; one class broken; both.
    assert measured["before"] == ["1.000", "0.500", "0"]
    assert measured["up"] == ["0", "0.500", "1.000"]
    assert measured["down"] == ["1.000", "0.500", "0"]


def test_it_fits_the_width_of_a_telephone(page, tmp_path):
    inside = page.replace("<head>", f"<head>{HEAD}").replace("</body>", f"{PROBE}</body>")
    path = tmp_path / "phone.html"
    path.write_text(f'<body><iframe width="390" height="800" srcdoc="{html.escape(inside)}"></iframe></body>', encoding="utf-8")
    measured, _ = browse(path)
    assert measured["window"] == 390
    assert measured["page"] <= 390


def test_twins_are_on_the_page():
    """Over-refusal and what was refused stand on the page of a generator."""
    from advalign import judges
    from advalign.targets import AnsweringGenerator

    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(4)]
    benign = Benign(data=[Example(prompt="how are you", id="b0"), Example(prompt="what is two", id="b1")])
    suite = Suite(data=data, attacks={"a": Say(texts=("{}!",))}, judge=judges.RefusalJudge(), benign=benign)
    report = suite.run(AnsweringGenerator(lambda ps: ["I cannot do that" if "two" in p else f"hello {p}" for p in ps], name="fn")).report()
    assert "Refused without reason" in report.html()
    assert "| what is two | I cannot do that |" in report.markdown()
