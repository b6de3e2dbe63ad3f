"""Sentences of errors: where the path of what was given comes from."""

import pytest

from advalign.errors import BudgetError, ConfigError, located


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        ("model: 'x' cannot be loaded.", "learners.policy.model: 'x' cannot be loaded."),
        ("model.options.lora: got 4.", "learners.policy.options.lora: got 4."),
        ("models are large.", "learners.policy: models are large."),
        ("learners.policy.tokenizer: none given.", "learners.policy.tokenizer: none given."),
    ],
)
def test_a_sentence_that_knows_a_part_of_its_path_gets_the_rest(raised, sentence):
    """The field is replaced as a whole name, and what names the path already stays as it is."""
    with pytest.raises(ConfigError) as caught, located("learners.policy", **{"model.options": "options", "model": "model"}):
        raise ConfigError(raised)
    assert str(caught.value) == sentence


def test_the_class_of_an_error_stays_and_other_errors_pass():
    with pytest.raises(BudgetError, match=r"^sources.s: too long$"), located("sources.s"):
        raise BudgetError("too long")
    with pytest.raises(ZeroDivisionError, match=r"^division"), located("sources.s"):
        1 / 0  # noqa: B018
