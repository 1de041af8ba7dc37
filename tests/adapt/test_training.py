"""Adapters are trained by the plain loop, which goes on where it stopped, and by the Trainer of transformers."""

import pytest
import torch

pytest.importorskip("transformers")

from cases import small
from test_adapters import run

from penstock import adapt
from penstock.adapt.data import stream, tokens_of
from penstock.core import ConfigError, DataError

TEXT = "to be or not to be, that is the question; " * 40


def letters():
    return torch.tensor([ord(c) % 64 for c in TEXT])


def gated(what=adapt.GateSkip):
    model = small("llama")
    return model, adapt.insert(model, what(0.6))


def test_gates_learn_and_the_model_stays():
    model, handle = gated()
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses = adapt.train(handle, letters(), steps=40, batch=4, length=16, rate=0.05)
    assert len(losses) == 40
    assert sum(losses[-5:]) < sum(losses[:5])
    for name, p in model.named_parameters():
        assert name not in before or torch.equal(p, before[name])
    assert handle.budget == 0.6
    assert not model.training


@pytest.mark.parametrize("what", [adapt.GateSkip, adapt.SkipMiddle])
def test_it_goes_on_where_it_stopped(what, tmp_path):
    words = {"steps": 6, "batch": 2, "length": 8}
    model, handle = gated(what)
    torch.manual_seed(0)
    whole = adapt.train(handle, letters(), **words)
    _, again = gated(what)

    def stop(done, steps, loss):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt.train(again, letters(), **words, out=tmp_path, every=3, on_progress=stop)
    third, rest = gated(what)
    losses = adapt.train(rest, letters(), **words, out=tmp_path, every=3)
    assert losses == whole[3:]
    assert torch.equal(run(third, "llama"), run(model, "llama"))
    assert adapt.train(rest, letters(), **words, out=tmp_path) == []
    with pytest.raises(DataError, match="of another run"):
        adapt.train(rest, letters(), **words | {"steps": 9}, out=tmp_path)


def test_data_may_be_a_file_a_data_set_or_batches(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    assert tokens_of(path).tolist() == list(TEXT.encode())

    class Rows:
        def __init__(self):
            self.column_names = ["input_ids"]

        def __getitem__(self, name):
            return [[1, 2, 3], [4, 5]]

    assert tokens_of(Rows()).tolist() == [1, 2, 3, 4, 5]
    batches = [{"input_ids": torch.full((1, 2), i)} for i in range(3)]
    found = stream(torch.utils.data.DataLoader(batches, batch_size=None), None, 4, 1, 0, 2)
    assert [int(next(found)["input_ids"][0, 0]) for _ in range(3)] == [2, 0, 1]
    with pytest.raises(DataError, match="must have more than length"):
        adapt.train(gated()[1], torch.arange(5), steps=1, length=8)
    with pytest.raises(DataError, match="no text file"):
        adapt.train(gated()[1], tmp_path / "nothing.txt", steps=1)
    with pytest.raises(DataError, match="has none"):
        adapt.train(gated()[1], [], steps=1)


def test_what_cannot_be_trained_says_so():
    _, handle = gated()
    for parameter in handle.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing of the model wants a gradient"):
        adapt.train(handle, letters(), steps=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # of the Trainer
def test_the_trainer_of_transformers_trains_gates(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model, handle = gated()
    rows = letters()[: 16 * 40].view(-1, 16)
    data = [{"input_ids": row, "labels": row} for row in rows]
    fixed = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    words = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    arguments = TrainingArguments(tmp_path, max_steps=20, learning_rate=0.05, per_device_train_batch_size=4, **words)
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(torch.equal(p, fixed[name]) for name, p in model.named_parameters() if name in fixed)
    handle.remove()
    assert torch.equal(run(model.eval(), "llama"), run(small("llama"), "llama"))
