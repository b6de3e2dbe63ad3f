"""What keeps a gate shut: sentences about what was asked for and not established, and about what means nothing."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from advalign.errors import ConfigError
from advalign.evaluation.suites.rates import UNJUDGED
from advalign.functional.escaping import code, quoted
from advalign.types import AttackResult

DID = {
    "error": "raised on",
    "not_tried": "did not try",
    "timed_out": "ran out of time on",
}
"""{status of what an attack did not establish: what the attack did}. What a judge could not tell is counted, and named, apart."""


def check_bound(below: float | None, path: str) -> None:
    """Raises ConfigError for a bound that no accuracy could be compared with. `path`: of the option."""
    if below is not None and (isinstance(below, bool) or not isinstance(below, int | float) or not 0 <= below <= 1):
        raise ConfigError(f"{path}: {below} given; the least accuracy in the worst case is needed, from 0 to 1.")


def unestablished(arms: Collection[str], examples: Collection[str], results: Sequence[AttackResult]) -> list[str]:
    """One sentence per attack and reason why it says nothing about examples that it was to be tried on."""
    sentences = []
    for arm in arms:
        rows = [r for r in results if r.attack == arm]
        for status, did in DID.items():
            notes = Counter(r.note for r in rows if r.status == status)
            if notes:
                reason, _ = notes.most_common(1)[0]
                rest = f"which are in no rate of it (most often: {quoted(reason)})."
                sentences.append(f"{code(arm)} {did} {notes.total()} of {len(examples)} examples, {rest}")
        if missing := len(examples) - len(rows):
            rest = "run the same command again to complete them."
            sentences.append(f"{code(arm)} has no result for {missing} of {len(examples)} examples; {rest}")
        attacked = [r for r in rows if r.status != "skipped"]
        if attacked and all(r.status == "over_budget" for r in attacked):
            sentences.append(f"{code(arm)} was over its budget on all {len(attacked)} examples it attacked, so it has shown nothing.")
    return sentences


def check_rows(arms: Collection[str], examples: Collection[str], results: Sequence[AttackResult]) -> None:
    """Raises ConfigError for two results of one attack and example, and for a result of neither."""
    count = Counter((r.attack, r.example) for r in results)
    for (attack, example), number in count.items():
        if number > 1:
            raise ConfigError(f"results: {number} results of attack '{attack}' on example '{example}'; each is counted once.")
        if attack not in arms or example not in examples:
            raise ConfigError(f"results: a result of attack '{attack}' on example '{example}', which the suite does not ask for.")


def reasons(worst: Mapping[str, Any], results: Sequence[AttackResult], sentences: Sequence[str], below: float | None) -> list[str]:
    """Why the gate `below` fails: the worst case over all examples asked for (`sentences` say why some are not established)."""
    number, asked, failed = int(worst["num_judged"]), int(worst["num_asked"]), []
    if below is not None and not (number and worst["accuracy over asked"] >= below):
        rest = f", below {below:g}"
        if 0 < number < asked:
            rest = f" on {number} of {asked} examples and was not established for the others, below {below:g} of all"
        failed.append(f"Accuracy in the worst case over the suite is {worst['accuracy']:.3f}{rest}.")
    if below is not None:
        failed += sentences
    if (below is not None and not number) or (results and all(r.status in UNJUDGED for r in results)):
        failed.append("No result could be determined.")
    return failed


__all__ = ["check_bound", "check_rows", "reasons", "unestablished"]
