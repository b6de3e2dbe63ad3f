"""`advalign attack --target`: the attack brings the target about, and a target that was forced is not the model's."""

from helpers import victims


def test_the_command_brings_the_target_about(advalign, tmp_path):
    """`--target` alone breaks the model as `goal=lower` does; `goal=raise` leaves it and is warned of."""
    victims.generator_model().save_pretrained(tmp_path / "lm")
    words = ("attack", tmp_path / "lm", "one plus one =", "--target", "five")
    options = ("adversary.kind=pgd", "adversary.radius=2.0", "adversary.where=prompt", "adversary.steps=12")
    _, left_open, _ = advalign(*words, *options)
    _, lower, _ = advalign(*words, *options, "goal=lower")
    _, opposite, _ = advalign(*words, *options, "goal=raise")
    worst = [line for line in left_open.splitlines() if "worst case" in line]
    assert worst == [line for line in lower.splitlines() if "worst case" in line]
    assert worst != [line for line in opposite.splitlines() if "worst case" in line]
    assert "which asks for lower" in opposite


def test_a_beginning_that_is_all_the_judge_looks_for_is_refused(advalign, tmp_path):
    victims.generator_model().save_pretrained(tmp_path / "lm")
    code, _, errors = advalign("attack", tmp_path / "lm", "one plus one =", "--kind", "prefill", "--target", "five")
    assert code == 2
    assert (
        "suite.attacks.prefill: it forces the answer to example '0' to begin with 'five', which is all that the judge looks for" in errors
    )
