"""Pictures show the numbers of what they draw, and name tokens whatever these hold."""

import sys

import numpy as np
import pytest

from rocmforge_jax import explore

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

RNG = np.random.default_rng(4)
T, TOP, LAYERS = 5, 3, 4
PIECES = ["a$_{x", "$\\frac$", "\u4e2d\u6587", "\n<b>", "x" * 40]
IDS = np.arange(T, dtype=np.int32)
NEXT = explore.NextTokens(
    IDS, PIECES, np.zeros((T, TOP), np.int32), [PIECES[:TOP]] * T, RNG.random((T, TOP)), IDS * 1.0
)
LENS = explore.LogitLens(
    IDS,
    PIECES,
    np.zeros((LAYERS, T, TOP), np.int32),
    [[PIECES[:TOP]] * T] * LAYERS,
    RNG.random((LAYERS, T, TOP)),
)
MAP = explore.AttentionMap(IDS, PIECES, 1, (2, 5), RNG.random((2, T, T)))
STATISTICS = explore.ActivationStatistics(*RNG.random((2, LAYERS)), IDS[:4], RNG.random(4), 6.0)
ERRORS = explore.QuantizationErrors(
    ("a$_{", "b"), ("Q4_0",) * 2, ("F32",) * 2, ((2, 32),) * 2, *RNG.random((4, 2))
)
LOSSES = explore.TokenLikelihoods(IDS, PIECES, RNG.random(T - 1))


@pytest.fixture(autouse=True)
def closed():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def test_next_tokens():
    np.testing.assert_allclose(widths(explore.plot_next_tokens(NEXT)), NEXT.probabilities[-1])
    ax = explore.plot_next_tokens(NEXT, place=1)
    np.testing.assert_allclose(widths(ax), NEXT.probabilities[1])
    assert [label.get_text() for label in ax.get_yticklabels()][0] == repr(PIECES[0])
    with pytest.raises(ValueError, match="place .*-5 .* 4, got 5"):
        explore.plot_next_tokens(NEXT, place=5)


def test_logit_lens():
    ax = explore.plot_logit_lens(LENS)
    np.testing.assert_array_equal(ax.images[0].get_array(), LENS.probabilities[:, :, 0])
    assert len(ax.texts) == LAYERS * T


def test_attention_map():
    ax = explore.plot_attention_map(MAP)
    np.testing.assert_allclose(ax.images[0].get_array(), MAP.probabilities.mean(0))
    ax = explore.plot_attention_map(MAP, head=5)
    np.testing.assert_array_equal(ax.images[0].get_array(), MAP.probabilities[1])
    with pytest.raises(ValueError, match=r"\[2, 5\], got head 3"):
        explore.plot_attention_map(MAP, head=3)


def test_activation_statistics():
    rms, largest = explore.plot_activation_statistics(STATISTICS).lines
    np.testing.assert_array_equal(rms.get_ydata(), STATISTICS.rms)
    np.testing.assert_array_equal(largest.get_ydata(), STATISTICS.largest)


def test_quantization_error():
    np.testing.assert_allclose(
        widths(explore.plot_quantization_error(ERRORS)), 100 * ERRORS.relative
    )


def test_losses():
    ax = explore.plot_perplexity_by_position(LOSSES)
    np.testing.assert_array_equal([bar.get_height() for bar in ax.patches], LOSSES.losses)
    many = explore.TokenLikelihoods(np.arange(99), ["a"] * 99, RNG.random(98))
    assert "'a'" not in [
        text.get_text() for text in explore.plot_perplexity_by_position(many).get_xticklabels()
    ]


PLOTS = [
    (explore.plot_next_tokens, NEXT),
    (explore.plot_logit_lens, LENS),
    (explore.plot_attention_map, MAP),
    (explore.plot_activation_statistics, STATISTICS),
    (explore.plot_quantization_error, ERRORS),
    (explore.plot_perplexity_by_position, LOSSES),
]


@pytest.mark.parametrize("plot, found", PLOTS)
def test_a_picture_is_drawn_on_the_axes_that_are_given(plot, found, tmp_path):
    """Warnings are errors: a glyph that the font lacks, or mathematics in a token, would be one."""
    from matplotlib import pyplot

    _, ax = pyplot.subplots()
    assert plot(found, ax=ax) is ax
    ax.figure.savefig(tmp_path / "a.png")
    assert plot(found) is not ax


@pytest.mark.parametrize("plot, found", PLOTS)
def test_without_matplotlib_the_remedy_is_named(plot, found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'rocmforge-jax\[notebook\]'"):
        plot(found)
