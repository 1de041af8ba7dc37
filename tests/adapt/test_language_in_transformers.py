"""A LanguageModel is a model of transformers: it generates with its own states, is saved, loaded and trained there."""

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from penstock.core import ConfigError
from penstock.models import LanguageModel

MIXERS = ["attention", "gla", "gated-deltanet", ["hgrn", "attention"]]


def made(mixer="gla", **words):
    from penstock.adapt.transformers import PenstockForCausalLM

    torch.manual_seed(0)
    model = LanguageModel(64, 32, 2, mixer=mixer, **words).eval()
    return model, PenstockForCausalLM.of(model)


def tokens(batch=2):
    return torch.randint(64, (batch, 10), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_it_generates_what_the_model_generates(mixer):
    model, other = made(mixer)
    expected = model.generate(tokens(), 6)
    words = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(other.generate(tokens(), **words), expected)
    assert torch.equal(other.generate(tokens(), use_cache=False, **words), expected)
    assert torch.equal(other(tokens()).logits, model(tokens()))
    assert other.generate(tokens(1), num_beams=3, **words).shape == (1, 16)


def test_the_cache_does_not_grow():
    _, other = made("gla")

    def size(length):
        cache = other(torch.randint(64, (1, length)), use_cache=True).past_key_values
        return sum(x.numel() for x in torch.utils._pytree.tree_leaves(cache.state))

    assert size(8) == size(64)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_it_is_loaded_by_auto_classes(tied, tmp_path):
    _, other = made("gla", tied=tied)
    other.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(tokens()).logits, other(tokens()).logits)
    assert again.model.spec() == other.model.spec()
    assert again.num_parameters() == sum(p.numel() for p in other.parameters())


def test_it_has_the_loss_of_transformers():
    _, other = made()
    logits = other(tokens()).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 64), tokens()[:, 1:].reshape(-1))
    torch.testing.assert_close(other(tokens(), labels=tokens()).loss, expected)
    torch.testing.assert_close(other(tokens(), logits_to_keep=1).logits, logits[:, -1:])


LENGTHS = (7, 10, 1, 7)


def padded(side):
    """Return sequences of several lengths, and them padded at a side, with their mask."""
    rows = [torch.randint(1, 64, (n,), generator=torch.Generator().manual_seed(n + i)) for i, n in enumerate(LENGTHS)]
    ends = [(10 - n, 0) if side == "left" else (0, 10 - n) for n in LENGTHS]
    ids, mask = (
        torch.stack([torch.nn.functional.pad(each(row), end) for row, end in zip(rows, ends, strict=True)])
        for each in (torch.clone, torch.ones_like)
    )
    return rows, ids, mask


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_prompts_of_several_lengths_are_continued_as_each_alone(mixer):
    _, other = made(mixer)
    rows, ids, mask = padded("left")
    words = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for more in ({}, {"use_cache": False}, {"num_beams": 3}):
        found = other.generate(ids, attention_mask=mask, **words, **more)
        for row, new in zip(rows, found[:, 10:], strict=True):
            assert torch.equal(new, other.generate(row.unsqueeze(0), **words, **more)[0, len(row) :])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_and_gets_no_gradient(side):
    model, other = made()
    rows, ids, mask = padded(side)
    labels = ids.masked_fill(mask == 0, -100)
    labels.scatter_(1, mask.argmax(1, keepdim=True), -100)
    output = other(ids, attention_mask=mask, labels=labels)
    total = 0.0
    for row, logits, here in zip(rows, output.logits, mask > 0, strict=True):
        alone = model(row.unsqueeze(0))[0]
        torch.testing.assert_close(logits[here], alone)
        total += torch.nn.functional.cross_entropy(alone[:-1], row[1:], reduction="sum")
    torch.testing.assert_close(output.loss, total / (sum(LENGTHS) - len(LENGTHS)))
    output.loss.backward()
    found = model.embedding.weight.grad.clone()
    model.zero_grad()
    (total / (sum(LENGTHS) - len(LENGTHS))).backward()
    torch.testing.assert_close(found, model.embedding.weight.grad)


def test_states_of_sequences_padded_otherwise_are_repeated():
    _, other = made()
    _, ids, mask = padded("left")
    cache, wide = (other(ids, attention_mask=mask, use_cache=True).past_key_values for _ in range(2))
    wide.batch_repeat_interleave(2)
    new = torch.arange(4).unsqueeze(1)
    expected = other(new, past_key_values=cache).logits.repeat_interleave(2, 0)
    torch.testing.assert_close(other(new.repeat_interleave(2, 0), past_key_values=wide).logits, expected)


@pytest.mark.parametrize(("cached", "gone"), [(False, (0, 3)), (False, (0, slice(None))), (True, (0, 9))])
def test_masks_of_more_than_padding_are_refused(cached, gone):
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[gone] = 0
    with pytest.raises(ConfigError, match="attention_mask must leave out padding"):
        made()[1](tokens(), attention_mask=mask, use_cache=cached)


def test_padding_after_a_cache_is_refused():
    _, other = made()
    cache, mask = other(tokens(), use_cache=True).past_key_values, torch.ones(2, 12, dtype=torch.long)
    mask[0, 10] = 0
    with pytest.raises(ConfigError, match="must not leave out tokens that come to a cache"):
        other(tokens()[:, :2], past_key_values=cache, attention_mask=mask)


def test_it_ends_at_the_token_of_its_configuration():
    model, other = made()
    first = model.generate(tokens(1), 1)[0, -1].item()
    ending = type(other).of(model, eos_token_id=first)
    assert ending.generate(tokens(1), max_new_tokens=6, do_sample=False, pad_token_id=0).shape == (1, 11)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # of the Trainer
def test_the_trainer_trains_it(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    _, other = made()
    rows = [{"input_ids": row, "labels": row} for row in (torch.arange(400) % 7).view(-1, 10)]
    words = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    arguments = TrainingArguments(tmp_path, max_steps=12, learning_rate=0.01, per_device_train_batch_size=8, **words)
    trainer = Trainer(other, arguments, train_dataset=rows)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0] - 0.5
