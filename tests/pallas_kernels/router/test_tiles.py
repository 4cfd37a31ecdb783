"""Pairs grouped by expert: every property of the tiles, and the kernel beside plain jnp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.router import by_expert
from pallas_kernels.router.tiles import MOST_CELLS, most_tiles, reference
from pallas_kernels.targets import INTERPRET, Target
from tests.pallas_kernels.conftest import lowered_to_triton

pytestmark = pytest.mark.core
#: (tokens, experts per token, experts, rows of a tile)
SIZES = [
    (1, 1, 1, 2),
    (7, 3, 5, 2),
    (32, 8, 128, 2),
    (33, 4, 32, 16),
    (17, 2, 3, 4),
    (20, 6, 61, 16),
]


def _choices(seed, tokens, used, experts, repeats):
    draw = np.random.default_rng(seed)
    if repeats:
        return draw.integers(0, experts, (tokens, used)).astype(np.int32)
    return np.argsort(draw.random((tokens, experts)), axis=1)[:, :used].astype(np.int32)


@pytest.mark.parametrize("repeats", [False, True], ids=["different", "repeated"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_pair_has_a_row_of_its_expert(size, repeats):
    tokens, used, experts, rows = size
    ids = _choices(sum(size), tokens, used, experts, repeats)
    tiles = jax.tree.map(np.asarray, by_expert(jnp.array(ids), experts, rows, INTERPRET))
    assert len(tiles.experts) == most_tiles(tokens * used, experts, rows)
    pair = np.arange(tokens * used)
    assert len(set(tiles.rows.tolist())) == len(pair)
    np.testing.assert_array_equal(tiles.pairs.reshape(-1)[tiles.rows], pair)
    np.testing.assert_array_equal(tiles.experts[tiles.rows // rows], ids.reshape(-1))
    full = tiles.experts >= 0
    # As few tiles as possible, in the order of experts, and of pairs within an expert.
    count = np.bincount(ids.reshape(-1), minlength=experts)
    np.testing.assert_array_equal(
        tiles.experts[full], np.repeat(np.arange(experts), -(-count // rows))
    )
    assert (np.diff(tiles.rows[np.argsort(ids.reshape(-1), kind="stable")]) > 0).all()
    assert not (full[1:] & ~full[:-1]).any()
    np.testing.assert_array_equal(tiles.tokens[full], tiles.pairs[full] // used)
    assert (tiles.pairs[~full] == -1).all()
    assert (tiles.tokens[~full] == -1).all()
    # Rows that have no pair repeat the first pair of their tile.
    is_free = ~np.isin(np.arange(tiles.pairs.size), tiles.rows).reshape(tiles.pairs.shape)
    first = np.broadcast_to(tiles.pairs[:, :1], tiles.pairs.shape)
    np.testing.assert_array_equal(tiles.pairs[is_free], first[is_free])


@pytest.mark.parametrize("repeats", [False, True], ids=["different", "repeated"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_kernel_equals_plain_jnp(size, repeats):
    tokens, used, experts, rows = size
    ids = jnp.array(_choices(1 + sum(size), tokens, used, experts, repeats))
    found = by_expert(ids, experts, rows, INTERPRET)
    for kernel, plain in zip(found, reference(ids, experts, rows)):
        np.testing.assert_array_equal(kernel, plain)


@pytest.mark.parametrize("target", [Target("cuda", "9.0"), Target("rocm", "gfx942")], ids=str)
@pytest.mark.parametrize(("tokens", "launches"), [(32, 1), (129, 0)])
def test_many_tokens_are_sorted_by_xla(target, tokens, launches):
    assert (tokens * 128 > MOST_CELLS) == (launches == 0)
    ids = jax.ShapeDtypeStruct((tokens, 8), jnp.int32)
    text = lowered_to_triton(target, lambda ids: by_expert(ids, 128, 2, target), ids)
    assert text.count("__gpu$xla.gpu.triton") == launches
