import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from penstock.core import ConfigError, DataError
from penstock.models import Classifier, LanguageModel, files, load_model

SHAPE = {"vocabulary": 11, "dim": 16, "layers": 2}


def outputs(model):
    return model.eval()(torch.arange(10).view(2, 5))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    LanguageModel(**SHAPE, mixer="gla").save(folder)
    return folder


@pytest.mark.parametrize(
    "mixer", ["attention", "gla", "hgrn", "gam", ["hgrn", {"mechanism": "gated-attention", "heads": 2}]], ids=str
)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_comes_back_as_it_was(tmp_path, mixer, tied):
    model = LanguageModel(**SHAPE, mixer=mixer, tied=tied)
    model.save(tmp_path / "new" / "folder")
    again = LanguageModel.load(tmp_path / "new" / "folder")
    assert again.spec() == model.spec()
    assert torch.equal(outputs(again), outputs(model))


def test_what_layers_share_is_written_once_and_shared_again(tmp_path):
    model = LanguageModel(**SHAPE, mixer="hgrn")
    with torch.no_grad():
        model.layers[0].mixer.bounds.normal_()
    model.save(tmp_path)
    assert sum(name.endswith("bounds") for name in load_file(tmp_path / "model.safetensors")) == 1
    again = load_model(tmp_path)
    assert again.layers[0].mixer.bounds is again.layers[1].mixer.bounds
    assert torch.equal(again.layers[1].mixer.bounds, model.layers[1].mixer.bounds)


def test_the_dtype_of_the_weights_is_kept(tmp_path):
    LanguageModel(**SHAPE).to(torch.bfloat16).save(tmp_path)
    assert {p.dtype for p in LanguageModel.load(tmp_path).parameters()} == {torch.bfloat16}


def test_a_second_save_replaces_the_first(saved):
    model = LanguageModel(**SHAPE, mixer="attention")
    model.save(saved)
    assert torch.equal(outputs(LanguageModel.load(saved)), outputs(model))
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_save_that_breaks_off_leaves_the_old_model(saved, monkeypatch):
    before = outputs(LanguageModel.load(saved))

    def breaks_off(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", breaks_off)
    with pytest.raises(DataError, match="No space left on device"):
        LanguageModel(**SHAPE, mixer="gla").save(saved)
    assert torch.equal(outputs(LanguageModel.load(saved)), before)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot save the model in .*file"):
        LanguageModel(**SHAPE).save(tmp_path / "file")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        LanguageModel.load(saved)


@pytest.mark.parametrize("text", ["{", "\xff\xfe"], ids=["half", "binary"])
def test_a_damaged_config_is_named(saved, text):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"config.json is not JSON"):
        LanguageModel.load(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_damaged_weights_are_named(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"model.safetensors is damaged"):
        LanguageModel.load(saved)


def test_files_of_two_models_are_refused(saved):
    spec = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**spec, "layers": 1}))
    with pytest.raises(DataError, match="are not of one model"):
        LanguageModel.load(saved)


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_weights_that_do_not_fit_are_named(saved, change):
    path = saved / "model.safetensors"
    spec, tensors = (saved / "config.json").read_text().strip(), load_file(path)
    name = "layers.1.mixer.to_key.weight"
    if change == "shape":
        tensors[name] = tensors[name][:3].contiguous()
    elif change == "missing":
        del tensors[name]
    else:
        name = "more"
        tensors[name] = torch.zeros(1)
    save_file(tensors, path, metadata={"spec": spec})
    with pytest.raises(DataError, match=f"1 tensors do not fit.*{name}"):
        LanguageModel.load(saved)


def test_a_file_of_something_else_is_refused(saved):
    save_file({"x": torch.zeros(1)}, saved / "model.safetensors", metadata={"spec": "[]"})
    (saved / "config.json").write_text("[]")
    with pytest.raises(DataError, match="does not hold a model"):
        load_model(saved)


def test_another_kind_of_model_is_named(tmp_path):
    Classifier(2, 8, 1, features=3).save(tmp_path)
    assert isinstance(load_model(tmp_path), Classifier)
    with pytest.raises(ConfigError, match=r"LanguageModel: .* holds a Classifier"):
        LanguageModel.load(tmp_path)
