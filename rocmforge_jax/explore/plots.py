"""Pictures of what the other functions return. Needs matplotlib, of the extra `notebook`."""

from typing import Any

import numpy as np

from rocmforge_jax.arguments import integer
from rocmforge_jax.explore.activations import ActivationStatistics
from rocmforge_jax.explore.attention import AttentionMap
from rocmforge_jax.explore.likelihood import TokenLikelihoods
from rocmforge_jax.explore.predictions import LogitLens, NextTokens
from rocmforge_jax.explore.weights import QuantizationErrors

#: Characters of a token in a picture.
MOST_CHARACTERS = 12


def plot_next_tokens(found: NextTokens, *, place: int = -1, ax: Any = None) -> Any:
    """Draws the likeliest next tokens after a place as bars.

    Args:
        found: What `next_tokens` returned.
        place: After which token of the prompt; negative counts from the end.
        ax: The Axes to draw on. Default: a new figure's.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There is no such place.
    """
    T = len(found.prompt_ids)
    place = integer("place", place, -T, T - 1)
    ax = _axes(ax, (5, 0.6 + 0.25 * found.ids.shape[1]))
    bars = np.arange(found.ids.shape[1])
    ax.barh(bars, found.probabilities[place])
    ax.set_yticks(bars, _labels(found.pieces[place]), parse_math=False)
    ax.invert_yaxis()
    ax.set_xlabel("probability")
    ax.set_title(f"after {_label(found.prompt_pieces[place])}", parse_math=False)
    return ax


def plot_logit_lens(found: LogitLens, *, ax: Any = None) -> Any:
    """Draws the likeliest token of each layer and place, the darker the likelier.

    Args:
        found: What `logit_lens` returned.
        ax: The Axes to draw on. Default: a new figure's.

    Returns:
        The Axes. The last layer is on top.

    Raises:
        ImportError: matplotlib is missing.
    """
    layers, T, _ = found.ids.shape
    ax = _axes(ax, (1.5 + 0.75 * T, 1.2 + 0.35 * layers))
    shares = found.probabilities[:, :, 0]
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, origin="lower", aspect="auto")
    for layer in range(layers):
        for place in range(T):
            colour = "white" if shares[layer, place] > 0.6 else "black"
            text = _label(found.pieces[layer][place][0])
            style = dict(ha="center", va="center", color=colour, fontsize=8, parse_math=False)
            ax.text(place, layer, text, **style)
    _label_tokens(ax.set_xticks, found.prompt_pieces)
    ax.set_yticks(range(layers))
    ax.set_ylabel("after layer")
    ax.figure.colorbar(image, ax=ax, label="probability")
    return ax


def plot_attention_map(found: AttentionMap, *, head: int | None = None, ax: Any = None) -> Any:
    """Draws the attention of a head, from the tokens of rows to those of columns.

    Args:
        found: What `attention_map` returned.
        head: The number of the head. Default: the mean of all that there are.
        ax: The Axes to draw on. Default: a new figure's.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: The map has no such head.
    """
    if head is not None and head not in found.heads:
        raise ValueError(f"the map has the heads {list(found.heads)}, got head {head}")
    T = len(found.prompt_ids)
    ax = _axes(ax, (2 + 0.35 * T, 1.5 + 0.3 * T))
    chosen = found.probabilities if head is None else found.probabilities[[found.heads.index(head)]]
    image = ax.imshow(chosen.mean(axis=0), cmap="viridis", vmin=0)
    _label_tokens(ax.set_xticks, found.prompt_pieces)
    _label_tokens(ax.set_yticks, found.prompt_pieces, rotation=0)
    of_heads = f"head {head}" if head is not None else f"mean of {len(found.heads)} heads"
    ax.set_title(f"layer {found.layer}, {of_heads}")
    ax.figure.colorbar(image, ax=ax, label="weight")
    return ax


def plot_activation_statistics(found: ActivationStatistics, *, ax: Any = None) -> Any:
    """Draws the root mean square and the largest magnitude after each layer.

    Args:
        found: What `activation_statistics` returned.
        ax: The Axes to draw on. Default: a new figure's.

    Returns:
        The Axes, with a logarithmic axis of magnitudes.

    Raises:
        ImportError: matplotlib is missing.
    """
    ax = _axes(ax, (5, 3))
    ax.plot(found.rms, marker="o", label="rms")
    ax.plot(found.largest, marker="^", label="largest")
    ax.set_yscale("log")
    ax.set_xticks(range(len(found.rms)))
    ax.set_xlabel("after layer")
    ax.legend()
    return ax


def plot_quantization_error(found: QuantizationErrors, *, ax: Any = None) -> Any:
    """Draws the relative errors of tensors as bars.

    Args:
        found: What `quantization_error` returned.
        ax: The Axes to draw on. Default: a new figure's.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is missing.
    """
    ax = _axes(ax, (6, 0.8 + 0.22 * len(found)))
    bars = np.arange(len(found))
    ax.barh(bars, 100 * found.relative)
    pairs = zip(found.names, found.types)
    labels = [f"{name} {kind}".strip()[-48:] for name, kind in pairs]
    ax.set_yticks(bars, labels, fontsize=7, parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel("error in % of the root mean square")
    return ax


def plot_perplexity_by_position(found: TokenLikelihoods, *, ax: Any = None) -> Any:
    """Draws the negative log-likelihood of each token of a text.

    Args:
        found: What `perplexity_by_position` returned.
        ax: The Axes to draw on. Default: a new figure's.

    Returns:
        The Axes. Tokens are named if there are at most 60.

    Raises:
        ImportError: matplotlib is missing.
    """
    count = len(found.losses)
    ax = _axes(ax, (max(5, min(12, 0.25 * count)), 3))
    ax.bar(np.arange(1, count + 1), found.losses)
    ax.axhline(found.losses.mean(), color="black", linewidth=0.8)
    if count <= 60:
        _label_tokens(ax.set_xticks, found.pieces)
    ax.set_ylabel("loss in nats")
    ax.set_title(f"perplexity {found.perplexity:.4g}")
    return ax


def _axes(ax: Any, size: tuple[float, float]) -> Any:
    """Returns the Axes to draw on."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "pictures need matplotlib: pip install 'rocmforge-jax[notebook]'"
        ) from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def _label_tokens(set_ticks: Any, pieces: list[str], rotation: int = 90) -> None:
    """Names the ticks of an axis after tokens."""
    style = dict(rotation=rotation, fontsize=8, parse_math=False)
    set_ticks(range(len(pieces)), _labels(pieces), **style)


def _labels(pieces: list[str]) -> list[str]:
    return [_label(piece) for piece in pieces]


def _label(piece: str) -> str:
    """Writes a token with quotes, without characters that the font lacks."""
    text = piece if len(piece) <= MOST_CHARACTERS else piece[:MOST_CHARACTERS] + "\u2026"
    plain = "".join(letter if ord(letter) < 0x2100 else "\ufffd" for letter in text)
    return repr(plain)
