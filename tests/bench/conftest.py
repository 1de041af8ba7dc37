import pytest
from torch import nn

from penstock.bench.tasks import get_task
from penstock.core import Gate


class Tiny(nn.Module):
    """A model with a gate, a matrix without bias, vectors, and dropout, so that a run depends on the random state."""

    def __init__(self, vocabulary, dim=8):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList([nn.Linear(dim, dim)])
        self.gate = Gate()
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        before = x.cumsum(1) / 10
        return self.head(self.dropout(x * self.gate(self.layers[0](before).sigmoid())))


@pytest.fixture
def task():
    return get_task("mqar", length=16, pairs=2, vocabulary=16, held_out=40)


@pytest.fixture
def model():
    return Tiny(16)
