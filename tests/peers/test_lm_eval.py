"""The evaluation harness people use, lm_eval, takes a LanguageModel as a model of transformers (`pip install lm_eval`)."""

import json
import math

import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from penstock.adapt.transformers import PenstockForCausalLM
from penstock.models import LanguageModel

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]  # theirs are many
MIXERS = ["gla", "attention", "mamba2", ["hgrn", "attention"]]
PAIRS = [("the gate", " opens"), ("water flows in", " slowly, and then"), ("a", " b"), ("", "alone")]
PROMPTS = ["the gate", "a text that is longer", "b", "the gatf"]
LONG = "the gate lets the water through; " * 4


def tokenizer():
    """Return one whose tokens are bytes, with an end beside them."""
    vocabulary = {token: i for i, token in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    bytewise = Tokenizer(models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<end>", pad_token="<end>", model_max_length=64)


def made(mixer="gla", batch=4):
    torch.manual_seed(0)
    model = PenstockForCausalLM.of(LanguageModel(257, 32, 2, mixer=mixer).eval(), eos_token_id=0)
    return model, HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=batch, device="cpu")


def asked(kind, arguments):
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


@torch.no_grad()
def logs(model, ids, count):
    """Return the log-probabilities of the last tokens, and whether each was the likeliest."""
    rows = model.model(torch.tensor([ids])).log_softmax(-1)[0, -count - 1 : -1]
    wanted = torch.tensor(ids[-count:])
    return rows.gather(1, wanted.unsqueeze(1)).sum().item(), bool((rows.argmax(-1) == wanted).all())


def expected(model, context, continuation):
    text = tokenizer()
    head, tail = (text(part)["input_ids"] for part in (context, continuation))
    return logs(model, [*(head or [0]), *tail], len(tail))


def rolling(model, text):
    """Return the log-probability of a text in windows of at most 64 tokens, each after its last 64 as far as they go."""
    ids = tokenizer()(text)["input_ids"]
    total = logs(model, [0, *ids[:64]], min(64, len(ids)))[0]
    for start in range(64, len(ids), 64):
        end = min(len(ids), start + 64)
        total += logs(model, ids[max(0, end - 65) : end], end - start)[0]
    return total


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_it_is_given_the_likelihoods_of_the_model(mixer):
    model, harness = made(mixer)
    found = harness.loglikelihood(asked("loglikelihood", PAIRS))
    for (log, greedy), pair in zip(found, PAIRS, strict=True):
        wanted, likeliest = expected(model, *pair)
        assert log == pytest.approx(wanted, abs=1e-3)
        assert greedy == likeliest
    found = harness.loglikelihood_rolling(asked("loglikelihood_rolling", [(LONG,), ("short",)]))
    assert found == pytest.approx([rolling(model, LONG), rolling(model, "short")], abs=1e-3)


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_prompts_of_several_lengths_are_continued_as_each_alone(mixer):
    model, harness = made(mixer)
    requests = [(prompt, {"until": ["\n"], "max_gen_toks": 8}) for prompt in PROMPTS]
    found = harness.generate_until(asked("generate_until", requests))
    for text, prompt in zip(found, PROMPTS, strict=True):
        ids = torch.tensor([tokenizer()(prompt)["input_ids"]])
        with torch.no_grad():
            alone = model.model.generate(ids, 8)[0, ids.shape[1] :].tolist()
        alone = alone[: alone.index(0)] if 0 in alone else alone
        assert text == tokenizer().decode(alone).split("\n")[0]


def test_a_saved_model_is_loaded_by_its_folder(tmp_path):
    model, harness = made()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    other = HFLM(pretrained=str(tmp_path), batch_size=4, device="cpu", dtype="float32")
    requests = asked("loglikelihood", PAIRS)
    assert other.loglikelihood(requests) == harness.loglikelihood(requests)
    assert other.max_length == 64


@pytest.mark.slow
def test_tasks_are_evaluated(tmp_path):
    model, harness = made()
    rows = [{"text": LONG[:n], "ask": ask, "choices": [" opens", " is", " x"]} for n, ask in ((40, "the gate"), (60, "it"))]
    for row in rows:
        odds = [expected(model, row["ask"], choice)[0] for choice in row["choices"]]
        row["right"] = odds.index(max(odds))
        ids = torch.tensor([tokenizer()(row["ask"])["input_ids"]])
        row["more"] = tokenizer().decode(model.model.generate(ids, 4)[0, ids.shape[1] :].tolist())
    rows[1]["right"] = (rows[1]["right"] + 1) % 3
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}, "cache_dir": str(tmp_path)},
    }

    def task(kind, metric, **words):
        metrics = [{"metric": metric}]
        given = {"task": kind, "test_split": "test", "output_type": kind, "metric_list": metrics, **data, **words}
        return ConfigurableTask(config=given)

    tasks = [
        task("multiple_choice", "acc", doc_to_text="{{ask}}", doc_to_choice="{{choices}}", doc_to_target="{{right}}",
             target_delimiter=""),
        task("loglikelihood_rolling", "bits_per_byte", doc_to_text="", doc_to_target="{{text}}"),
        task("generate_until", "exact_match", doc_to_text="{{ask}}", doc_to_target="{{more}}",
             generation_kwargs={"until": ["\n"], "max_gen_toks": 4}),
    ]  # fmt: skip
    found = simple_evaluate(model=harness, tasks=tasks, bootstrap_iters=0)["results"]
    bits = -sum(rolling(model, row["text"]) for row in rows) / sum(len(row["text"]) for row in rows)
    assert found["multiple_choice"]["acc,none"] == 0.5
    assert found["loglikelihood_rolling"]["bits_per_byte,none"] == pytest.approx(bits / math.log(2), rel=1e-4)
    assert found["generate_until"]["exact_match,none"] == 1.0
