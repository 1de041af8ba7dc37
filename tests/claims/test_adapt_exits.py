"""What early exits in a trained vision transformer keep, by gates that learn with their heads and by confidence."""

import pytest
import torch
from sklearn.datasets import load_digits

pytest.importorskip("transformers")

import transformers

from penstock import adapt

DIGITS, NOISE = load_digits(), 0.15
SIZES = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64}
IMAGES = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def calibration_error(logits, labels, bins=10):
    """Return by how much confidence and accuracy differ, bin by bin of the confidence."""
    (sure, best), error = logits.softmax(-1).max(-1), 0.0
    for k in range(bins):
        here = (sure > k / bins) & (sure <= (k + 1) / bins)
        if here.any():
            error += (here.float().mean() * (sure[here].mean() - (best == labels)[here].float().mean()).abs()).item()
    return error


def study(seed, budgets=(0.15, 0.3, 0.5)):
    """Return accuracy, calibration error and cost at each budget, by method, and the accuracy of the model without exits."""
    labels = torch.tensor(DIGITS.target)
    torch.manual_seed(seed)
    order = torch.randperm(len(labels))
    train, valid, test = order[:1000], order[1000:1300], order[1300:]
    images = torch.tensor(DIGITS.images / 16 - 0.5, dtype=torch.float32).unsqueeze(1)
    images = images + NOISE * torch.randn_like(images)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **IMAGES, **PLAIN))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(500):
        some = train[torch.randint(len(train), (64,))]
        optimizer.zero_grad()
        model(images[some], labels=labels[some]).loss.backward()
        optimizer.step()
    model.eval()

    @torch.no_grad()
    def score():
        logits = model(images[test]).logits
        return (logits.argmax(-1) == labels[test]).float().mean().item(), calibration_error(logits, labels[test])

    found = {"model": [(*score(), 1.0)]}
    for what in (adapt.EarlyExits(), adapt.JEIDNN(warm=100)):
        torch.manual_seed(seed + 100)
        handle = adapt.insert(model, what)
        draws = train[torch.randint(len(train), (100, 64))]
        adapt.train(handle, [{"pixel_values": images[i], "labels": labels[i]} for i in draws], steps=250, rate=1e-2)
        handle.calibrate([{"pixel_values": images[valid]}], budgets=budgets)
        found[what.name] = []
        for budget in budgets:
            handle.budget = budget
            handle.spent()
            found[what.name].append((*score(), handle.spent()))
        handle.remove()
    return found


@pytest.mark.slow
@pytest.mark.claim("jei-dnn")
@pytest.mark.claim("early-exit")
def test_half_of_the_layers_are_as_good_as_all_and_gates_are_as_good_as_confidence():
    """Noisy digits, six layers of a model that stays; budgets are shares of the five layers behind the first exit.

    In the mean of seeds 0 to 4 the model is right in 84.2% of what it has not seen. With 15%, 30% and 50% of the layers,
    exits by confidence are right in 83.9%, 84.4% and 84.8%, and by gates in 84.2%, 84.1% and 84.6%: that gates beat
    confidence does not hold here, the differences are those of one or two of 497 images. Their calibration error is lower
    at 15% (0.033 to 0.035, at no seed higher) and at 50% (0.040 to 0.051, at four seeds of five), and higher at 30% (0.050
    to 0.045, at four seeds of five).
    """
    found = study(1)
    (whole, _, _), early, gated = found["model"][0], found["early-exit"], found["jei-dnn"]
    for accuracy, _, cost in (early[2], gated[2]):
        assert accuracy > whole - 0.015
        assert cost < 0.55
    assert abs(gated[1][0] - early[1][0]) < 0.02
    assert gated[0][1] < early[0][1] + 0.003
    assert gated[2][1] < early[2][1] - 0.005
