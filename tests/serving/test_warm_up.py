from types import SimpleNamespace

import pytest
from fake_batches import FakeModel, make_slots, make_text

from poolgraph.serving.warm_up import warm_up


class Model(FakeModel):
    """What is run is listed: the lengths of each batch, its graph and its threads."""

    def __init__(self, layout, *, longest=256, budget=512, families=("sequence", "token")):
        super().__init__()
        self.manifest = SimpleNamespace(limits=SimpleNamespace(max_model_len=longest))
        self.variant = SimpleNamespace(graphs=dict.fromkeys(families))
        self.slots, self.ran = make_slots(max_batch_tokens=budget, layout=layout), []

    def plan_slots(self):
        return self.slots

    def run_batch(self, texts, family, *, threads):
        self.ran.append(([text.num_tokens for text in texts], family, threads))
        return super().run_batch(texts, family, threads=threads)


FIRST = [([5], family, threads) for family in ("sequence", "token") for threads in (1, 2)]


@pytest.mark.parametrize(
    ("layout", "options", "expected"),
    [
        ("uniform", {}, [[16] * 32, [64] * 8, [256] * 2]),
        ("padded", {"longest": 100}, [[16] * 32, [64] * 8]),
        ("packed", {}, [[256, 128, 64, 32, 16, 8, 4, 2, 1, 1]]),
        ("packed", {"longest": 20, "budget": 70}, [[20, 20, 15, 8, 4, 2, 1]]),
    ],
)
def test_each_session_then_batches_that_fill_the_budget(layout, options, expected):
    model = Model(layout, **options)
    warm_up(model, make_text(5), ("sequence", "token"), seconds=60)
    assert model.ran == FIRST + [(lengths, "sequence", 1) for lengths in expected]


def test_the_first_session_is_opened_whatever_the_time():
    model = Model("packed", families=("token",))
    warm_up(model, make_text(5), ("sequence", "token"), seconds=-1)
    assert model.ran == [([5], "token", 1)]
