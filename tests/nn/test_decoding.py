"""Decoding: rows end at their own stop token and limit, and draws follow the tempered nucleus. A table of logits stands for the model."""

import pytest
import torch

from plait.keys import rng
from plait.nn.decoding import Sampling, choose_tokens, decode

STOP = 3


class Table:
    """A model whose next token follows from the last one alone, and which counts its steps."""

    def __init__(self, first: list[int], following: torch.Tensor):
        self.first, self.following, self.steps = torch.tensor(first), following, 0

    def prefill(self):
        return self.advance(self.first)

    def advance(self, token_B):
        self.steps += 1
        return self.following[token_B]


CYCLE = torch.eye(6).roll(1, 1)  # the token after n is n + 1


@pytest.mark.parametrize(
    ("first", "limits", "rows", "steps"),
    [
        ([0, 4], [9, 9], [[1, 2], [5, 0, 1, 2]], 5),
        ([0, 4], [9, 2], [[1, 2], [5, 0]], 3),
        ([0, 4], [1, 3], [[1], [5, 0, 1]], 3),
        ([2, 2], [5, 5], [[], []], 1),
    ],
    ids=["stop tokens", "a stop and a limit", "limits", "nothing to say"],
)
def test_rows_end_at_their_own_stop_or_limit_and_the_loop_with_the_last(first, limits, rows, steps):
    model = Table(first, CYCLE)
    assert decode(model, max_new_tokens=limits, stops=frozenset({STOP})) == rows
    assert model.steps == steps


def test_a_rows_draws_come_from_its_key_alone():
    flat = torch.zeros(6, 6)
    together = decode(Table([0, 0], flat), max_new_tokens=[8, 8], stops=frozenset({9}), sampling=Sampling(1.0, 1.0, [5, 6]))
    alone = decode(Table([0], flat), max_new_tokens=[8], stops=frozenset({9}), sampling=Sampling(1.0, 1.0, [6]))
    assert together[1] == alone[0] != together[0]


def test_choose_tokens_draws_in_proportion_within_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1000, 4)
    draws = [(n + 0.5) / 1000 for n in range(1000)]
    assert choose_tokens(logits, 1.0, draws=draws).bincount(minlength=4).tolist() == [500, 300, 150, 50]
    assert choose_tokens(logits, 1.0, 0.7, draws).bincount(minlength=4).tolist() == [625, 375, 0, 0]
    assert choose_tokens(logits).unique().tolist() == [0]


def test_choose_tokens_follows_the_tempered_nucleus():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)
    draws = rng("nucleus").random(4000).tolist()
    counts = choose_tokens(logits, 0.5, 0.95, draws).bincount(minlength=4)
    kept = (logits[0] / 0.5).softmax(-1)[:2]  # 0.865 + 0.117: the first two reach 0.95
    expected = 4000 * kept / kept.sum()
    assert counts[2:].tolist() == [0, 0]
    assert abs(counts[0] - expected[0]) < 4 * (expected[0] * expected[1] / 4000).sqrt()  # four standard deviations
