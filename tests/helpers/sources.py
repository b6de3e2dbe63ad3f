"""Source runtimes without data, for tests of what reads them."""

from advalign.interfaces import SourceRuntime


class ExampleRuntime(SourceRuntime):
    """A source over a list of examples that only other sources read."""

    def __init__(self, examples):
        self.examples = list(examples)

    def draw(self, step, repeat):
        raise AssertionError("this test draws nothing from it")

    def rows(self, items, encoder):
        raise AssertionError("this test builds no rows of it")

    def sample(self, number, rng):
        return rng.sample(self.examples, min(number, len(self.examples)))
