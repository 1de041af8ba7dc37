"""`penstock adapt` from a folder with a model to an adapter and a table."""

import json

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from penstock import adapt
from penstock.cli import main

WORDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **WORDS))
    folder = tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    text = folder / "text.txt"
    text.write_text("the gate lets the water through, or holds it back. " * 60, "utf-8")
    return folder


@pytest.mark.slow
def test_gates_are_fitted_and_measured(model, tmp_path, capsys):
    out = tmp_path / "out"
    small = ["--steps", "6", "--batch", "2", "--length", "16", "--tokens", "4", "--budget", "0.6", "--budget", "1.0"]
    command = ["adapt", str(model), "--text", str(model / "text.txt"), *small, "--out", str(out), "--set", "grain=token"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "no gates" in shown
    assert "60%" in shown
    rows = json.loads((out / "adapt.json").read_text("utf-8"))["rows"]
    assert [row["budget"] for row in rows] == [0, 0.6, 1.0]
    assert abs(rows[1]["spent"] - 0.6) < 0.15
    assert rows[2]["spent"] == 1
    assert all(row["decode"] > 0 for row in rows)
    other = transformers.AutoModelForCausalLM.from_pretrained(model)
    assert adapt.load(other, out).budget == 0.6
    assert main(command) == 0  # from the checkpoint
    assert "step 1 of 6" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_whole_model_is_compared_with_one_that_was_trained_as_long(model, tmp_path, capsys):
    small = ["--steps", "20", "--batch", "2", "--length", "16", "--tokens", "4", "--budget", "0.6", "--rate", "0.01"]
    set_ = ["--set", "grain=token", "--set", "share=model"]
    out = tmp_path / "out"
    assert main(["adapt", str(model), "--text", str(model / "text.txt"), *small, "--out", str(out), "--whole", *set_]) == 0
    assert "no gates, tuned" in capsys.readouterr().out
    plain, tuned, gated = json.loads((out / "adapt.json").read_text("utf-8"))["rows"]
    assert [plain["tuned"], tuned["tuned"], gated["tuned"]] == [False, True, False]
    assert tuned["loss"] < 0.9 * plain["loss"]
    assert tuned["spent"] == 1
    assert adapt.adapters_of(adapt.from_pretrained(out / "model"))[0].budget == 0.6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["skip-middle", "wina"])
def test_every_method_with_a_budget_is_measured(method, model, tmp_path):
    small = ["--steps", "4", "--batch", "2", "--length", "16", "--tokens", "4", "--budget", "0.5", "--method", method]
    assert main(["adapt", str(model), "--text", str(model / "text.txt"), *small, "--out", str(tmp_path)]) == 0
    plain, row = json.loads((tmp_path / "adapt.json").read_text("utf-8"))["rows"]
    assert row["spent"] == pytest.approx(0.5, abs=0.1) or method == "skip-middle"  # whose gates are open yet
    assert row["loss"] >= plain["loss"] - 0.5
    assert adapt.load(transformers.AutoModelForCausalLM.from_pretrained(model), tmp_path).budget == 0.5


def test_what_is_not_there_is_told_in_one_line(model, tmp_path, capsys):
    text = str(model / "text.txt")
    assert main(["adapt", str(tmp_path / "nothing"), "--text", text]) == 2
    assert "cannot load" in capsys.readouterr().err
    assert main(["adapt", str(model), "--text", str(tmp_path / "no.txt")]) == 2
    assert "no text file" in capsys.readouterr().err
    assert main(["adapt", str(model), "--text", text, "--method", "gatskip", "--out", str(tmp_path)]) == 2
    assert "did you mean 'gateskip'" in capsys.readouterr().err
