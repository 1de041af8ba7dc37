"""One thread a worker, and the same random numbers in every test whatever ran before it."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
