"""What is said of an unknown name."""

import pytest
import torch

from penstock.core import Selection
from penstock.core.errors import unknown


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("casual", ["causal", "steps"], "unknown trait 'casual'; did you mean 'causal'?"),
        ("x", ["causal", "steps"], "unknown trait 'x'; known: causal, steps"),
        ("x", [], "unknown trait 'x'; known: none"),
        ("x", [f"name-{i}" for i in range(20)], "unknown trait 'x'"),
        (7, ["causal"], "unknown trait 7; known: causal"),
    ],
)
def test_the_nearest_name_is_suggested_or_all_are_listed_when_few(name, known, said):
    assert unknown("trait", name, known) == said


def test_selected_tokens_are_put_back_in_their_places():
    x = torch.arange(10.0).view(1, 5, 2)
    chosen = Selection(x[:, [3, 1]], torch.tensor([[3, 1]]), 5)
    y = chosen.put_back(-chosen.tokens.bfloat16(), x)
    assert y.dtype == x.dtype
    assert y[0, :, 0].tolist() == [0, -2, 4, -6, 8]
    assert x[0, 1, 0] == 2
