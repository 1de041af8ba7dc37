"""Numbers as people read them."""

import numpy as np
import pytest

from penstock.bench.report import numbers
from penstock.bench.report.numbers import Metric
from penstock.bench.report.palette import COLORS, MARKERS, THEMES, color, marker


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999.4, "999"), (999.6, "1k"), (1930, "1.93k"), (421_300, "421k"), (999_700, "1M"), (2.5e9, "2.5G"),
     (None, "–")],
)  # fmt: skip
def test_count(value, text):
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (512, "512 B"), (1023.9, "1 KiB"), (16_384, "16 KiB"), (96_100_000, "91.6 MiB"), (None, "–")],
)
def test_size(value, text):
    assert numbers.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.97, "1 min 0 s"), (200, "3 min 20 s"), (4320, "1 h 12 min")]
)
def test_duration(seconds, text):
    assert numbers.duration(seconds) == text


@pytest.mark.parametrize(
    ("walls", "text"),
    [
        ([], "–"),
        ([3.0], "3.0 s"),
        ([3.0, 5.0], "4.0 ± 1.4 s"),
        ([200, 240], "220 ± 28 s"),
        ([700, 740], "12.0 ± 0.5 min"),
    ],
)
def test_time_spent(walls, text):
    assert numbers.time_spent(walls) == text


@pytest.mark.parametrize(("rate", "text"), [(0.02, "0.02"), (0.00126, "0.00126"), (5e-4, "5.00e-4"), (None, "–")])
def test_learning_rate(rate, text):
    assert numbers.learning_rate(rate) == text


def test_spread_says_how_far_the_seeds_lie_apart():
    assert numbers.spread([0.25]) == "0.25"
    assert numbers.spread([-0.5, 0.5]) == "0.00 (−0.50 to 0.50)"


def test_an_accuracy_is_a_percentage_and_its_difference_is_in_points():
    metric = Metric("accuracy")
    assert metric.text(0.9312) == "93.1%"
    assert metric.interval((0.91, 0.952)) == "91.0 to 95.2%"
    assert metric.interval((0.0, 0.0019)) == "0.00 to 0.19%"
    assert metric.differences((-0.02, 0.0004)) == "−2.0 to +0.0"
    assert metric.difference(0.0066) == "0.66"
    assert metric.difference(0.0066, -0.02, signed=True) == "+0.7"
    assert metric.better(0.9, 0.8)


def test_a_loss_in_bits_is_a_number_and_less_is_better():
    metric = Metric("bits per byte")
    assert metric.text(2.4131) == "2.413"
    assert metric.difference(-0.051, signed=True) == "−0.051"
    assert metric.better(2.4, 2.5)


@pytest.mark.parametrize(
    ("items", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_joined(items, text):
    assert numbers.joined(items) == text


def linear(color):
    channels = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(color):
    return linear(color) @ [0.2126, 0.7152, 0.0722]


def lab(rgb):
    """Return the CIE L*a*b* coordinates of a linear RGB color."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_colors_stand_out_from_the_page(theme):
    colors = THEMES[theme]
    for name in ("ink", "muted", "link", "warn"):
        assert min(contrast(colors[name], colors[ground]) for ground in ("page", "panel")) >= 4.5, name
    for place in range(COLORS):
        assert contrast(colors[color(place)], colors["page"]) >= 3, place


# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0
EYES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("theme", THEMES)
def test_color_blind_eyes_tell_the_colors_apart(theme, eyes):
    seen = [lab(np.asarray(EYES[eyes]) @ linear(THEMES[theme][color(place)])) for place in range(COLORS)]
    for place, one in enumerate(seen):
        for other in seen[:place]:
            assert np.linalg.norm(one - other) > (20 if place < 5 else 15)


def test_no_two_mechanisms_have_the_same_color_and_marker():
    pairs = [(color(place), marker(place)) for place in range(COLORS * len(MARKERS))]
    assert len(set(pairs)) == len(pairs)
