"""Numbers as people read them."""

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
    assert metric.interval((0.0, 0.00195)) == "0.00 to 0.20%"
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


def luminance(color):
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


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


def test_no_two_mechanisms_have_the_same_color_and_marker():
    pairs = [(color(place), marker(place)) for place in range(COLORS * len(MARKERS))]
    assert len(set(pairs)) == len(pairs)
