import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from penstock.bench.tasks import get_task


@pytest.mark.parametrize(("scan", "shape"), [("pixels", (64, 1)), ("rows", (8, 8))])
def test_sequences_are_the_images_read_in_order(scan, shape):
    task = get_task("digits", scan=scan)
    images, labels = load_digits(return_X_y=True)
    known = {tuple(image): label for image, label in zip(images, labels, strict=True)}
    inputs, targets, _ = task.batch("train", 0, 0, 20)
    assert inputs.shape == (20, *shape) == (20, task.length, task.features)
    for image, label in zip(inputs.flatten(1).numpy() * 16, targets.tolist(), strict=True):
        assert known[tuple(image)] == label


def test_splits_share_no_image_and_leave_none_out():
    task = get_task("digits")
    parts = {
        split: [tuple(i) for b in task.evaluation(split, 100) for i in b.inputs.flatten(1).tolist()]
        for split in ("train", "valid", "test")
    }
    assert [len(part) for part in parts.values()] == [1438, 179, 180]
    assert len(set().union(*parts.values())) == len(np.unique(load_digits().data, axis=0)) == 1797


def test_floors_equal_an_independent_fit():
    task = get_task("digits")
    (train,), (test,) = (task.evaluation(split, 2000) for split in ("train", "test"))
    x, y = test.inputs.flatten(1).numpy(), test.targets.numpy()
    answers = train.targets.tolist()
    common = max(set(answers), key=answers.count)
    fit = LogisticRegression(max_iter=3000, tol=1e-6).fit(train.inputs.flatten(1).numpy(), train.targets.numpy())
    assert task.floors()["majority"] == (y == common).mean()
    assert task.floors()["logistic regression"] == pytest.approx((fit.predict(x) == y).mean(), abs=0.006)
