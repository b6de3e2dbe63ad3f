"""The report in a real browser: it loads nothing, logs nothing, sorts, and fits a telephone."""

import pytest
from helpers import browser, victims
from helpers.attackers import Say

from advalign.evaluation import Suite
from advalign.evaluation.suites.benign import Benign
from advalign.types import Example

needs_browser = pytest.mark.skipif(browser.BROWSER is None, reason=browser.MISSING)
COLUMN = """(() => {
  const table = document.querySelector("table"), head = table.querySelectorAll("th");
  const number = [...head].findIndex(th => th.textContent.includes("accuracy under attack"));
  const column = () => [...table.tBodies[0].rows].map(r => r.cells[number].textContent);
  const before = column(); head[number].click(); const up = column(); head[number].click();
  return {before, up, down: column(), figures: document.querySelectorAll("figure svg").length};
})()"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    said = {"none": ("{} the",), "some": ("a bad plot", "{} the"), "all": ("bad", "good")}
    attacks = {name: Say(texts=texts, spent=i + 1) for i, (name, texts) in enumerate(said.items())}
    result = Suite(data=victims.sentences(20), attacks=attacks, examples=20, seen=("some",)).run(victims.classifier())
    return result.report().write(tmp_path_factory.mktemp("report") / "report.html")


@needs_browser
def test_it_runs_nothing_from_outside_and_sorts_by_number(path):
    with browser.Page(path) as page:
        page.wait()
        assert page.requests() == []
        assert page.reported("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
        measured = page.run(COLUMN)
    assert measured["figures"] >= 1
    # Nobody harmed; one class broken; both.
    assert measured["before"] == ["1.000", "0.500", "0"]
    assert measured["up"] == ["0", "0.500", "1.000"]
    assert measured["down"] == ["1.000", "0.500", "0"]


@needs_browser
def test_it_fits_the_width_of_a_telephone(path):
    with browser.Page(path, width=390, height=800) as page:
        assert page.run("window.innerWidth") == 390
        assert page.run("document.documentElement.scrollWidth") <= 390


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
