"""Two ways of sampling a memory are one function."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.model.attention import DeformableAttention, flatten_levels
from trainer.model.sampling import gathered, multiplied

GRIDS = [(5, 7)], [(1, 1)], [(8, 6), (4, 3), (2, 2)]


def _case(grids: list[tuple[int, int]], seed: int, dtype: torch.dtype) -> tuple:
    """Points inside, on the edge, up to three times the grid outside, and right on cells."""
    draw = torch.Generator().manual_seed(seed)
    cells, points, count = sum(rows * columns for rows, columns in grids), 3, 11
    value = torch.randn(4, 6, cells, generator=draw, dtype=dtype)
    places = torch.randn(4, count, len(grids) * points, 2, generator=draw, dtype=dtype) * 1.5
    places[0, 0], places[0, 1], places[0, 2] = 1, -1, 0
    rows, columns = grids[0]
    places[1, 0, 0] = torch.tensor([1 / columns - 1, 1 / rows - 1])  # the centre of a cell
    weights = torch.randn(4, count, len(grids) * points, generator=draw, dtype=dtype)
    return value, grids, places, weights.softmax(-1)


@pytest.mark.parametrize("grids", GRIDS, ids=str)
@given(seed=st.integers(0, 10**6))
def test_a_matrix_product_of_tents_is_bilinear_sampling(grids, seed):
    case = _case(grids, seed, torch.float64)
    torch.testing.assert_close(multiplied(*case), gathered(*case), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_it_stays_so_in_single_precision(grids):
    case = _case(grids, 0, torch.float32)
    torch.testing.assert_close(multiplied(*case), gathered(*case), rtol=0, atol=1e-6)


def test_sampling_is_a_value_of_the_attention():
    torch.manual_seed(0)
    attention = DeformableAttention(32, heads=4, levels=2, points=3)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    memory = flatten_levels([torch.randn(2, 32, 6, 4), torch.randn(2, 32, 3, 2)])
    fed = (torch.randn(2, 9, 32), torch.rand(2, 9, 4))
    with torch.no_grad():
        usual = attention(*fed, memory)
        attention.sampling = multiplied
        torch.testing.assert_close(attention(*fed, memory), usual, rtol=0, atol=2e-5)
        attention.sampling = lambda value, *_: torch.zeros_like(value[:, :, :9])
        assert not torch.equal(attention(*fed, memory), usual)
