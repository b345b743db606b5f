"""Both engines return the exact integers, whatever the rows."""

import math
from collections.abc import Iterator

import pytest
import torch

from clip_hba_behavior import exact
from clip_hba_behavior.exact import engine, grid
from clip_hba_behavior.exact.engine import Rows, multiply, on_grids

F64 = torch.float64
KINDS = ("normal", "constant", "cauchy", "one", "outlier", "outliers", "tiny", "denormal", "huge", "zero", "below")


@pytest.fixture(autouse=True)
def _automatic_engine() -> Iterator[None]:
    with exact.use_engine("auto"):
        yield


def rows_of(kind: str, n: int, k: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=generator, dtype=F64)
    if kind == "constant":
        x = torch.ones(n, k, dtype=F64) * (1 + torch.rand(n, 1, generator=generator, dtype=F64))
    if kind == "cauchy":
        x = x / torch.randn(n, k, generator=generator, dtype=F64)
    if kind == "one":
        x = torch.zeros(n, k, dtype=F64)
        x[:, k // 2] = -3.7
    if kind == "outlier":
        x[:, 0] *= 1e6
    if kind == "outliers":
        x[:, : k // 3] *= 300
    scale = {"tiny": 1e-35, "denormal": 1e-42, "huge": 1e35, "zero": 0.0}.get(kind, 1.0)
    if kind == "below":
        x = torch.full((n, k), 2.0 - 2**-20, dtype=F64)
    return (x * scale).float().double()


def exact_products(a: Rows, b: Rows) -> list[list[int]]:
    """Python's own integers."""
    left, right = a.integers.tolist(), b.integers.tolist()
    return [[sum(x * y for x, y in zip(row, other, strict=True)) for other in right] for row in left]


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_return_pythons_integers(kind: str) -> None:
    for k in (1, 2, 31, 64, 257, 1024):
        for other in ("normal", "outlier", "constant"):
            a, b = on_grids(rows_of(kind, 5, k, k)), on_grids(rows_of(other, 3, k, k + 1))
            assert bool((a.integers.to(F64).norm(dim=1) <= 2**26.5).all())
            assert torch.equal(a.integers.to(F64) * a.grids, a.values)
            expected = torch.tensor(exact_products(a, b), dtype=F64)
            for name in ("float64", "int8"):
                with exact.use_engine(name):
                    found = multiply(a, b) / a.grids / b.grids.mT
                assert torch.equal(found, expected), (kind, k, other, name)


def test_a_sum_can_be_cut_and_ordered_in_any_way() -> None:
    a, b = on_grids(rows_of("outliers", 20, 1000, 1)), on_grids(rows_of("cauchy", 30, 1000, 2))
    whole = multiply(a, b)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(whole, a.values.flip(1) @ b.values.flip(1).T)
    assert torch.equal(whole, a.values[:, order] @ b.values[:, order].T)
    pieces = [x @ y.T for x, y in zip(a.values.split(7, 1), b.values.split(7, 1), strict=True)]
    assert torch.equal(whole, torch.stack(pieces).sum(0))


def test_without_the_grids_the_order_of_a_sum_changes_bits() -> None:
    """The failed control of the test above."""
    a, b = rows_of("normal", 20, 1000, 1), rows_of("normal", 30, 1000, 2)
    pieces = [x @ y.T for x, y in zip(a.split(7, 1), b.split(7, 1), strict=True)]
    assert not torch.equal(a @ b.T, torch.stack(pieces).sum(0))


def test_a_zero_is_positive_and_a_row_that_is_not_finite_is_nan_in_both_engines() -> None:
    a, b = rows_of("normal", 4, 40, 1), rows_of("normal", 4, 40, 2)
    a[0] = 0
    a[1, 3] = torch.inf
    a[2, 5] = torch.nan
    for name in ("float64", "int8"):
        with exact.use_engine(name):
            found = multiply(on_grids(a.clone()), on_grids(-b.abs()))
        assert not bool(found[0].signbit().any())
        assert bool(found[1:3].isnan().all())
        assert bool(found[3].isfinite().all())


def test_int8_products_that_saturate_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Sums of pairs in int16, as on processors without VNNI."""
        pairs = a.int().reshape(len(a), -1, 2, 1) * b.int().reshape(-1, 2, b.shape[1])
        return pairs.sum(2).clamp(-(2**15), 2**15 - 1).sum(1, dtype=torch.int32)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    device = torch.device("cpu")
    assert not engine.int8_is_exact.__wrapped__(device)
    monkeypatch.setattr(engine, "int8_is_exact", engine.int8_is_exact.__wrapped__)
    assert engine._faster.__wrapped__(device) == "float64"
    rows = on_grids(rows_of("normal", 4, 40, 1))
    with exact.use_engine("int8"), pytest.raises(ValueError, match="int8 products on cpu that are not exact"):
        multiply(rows, rows)


def test_the_choice_of_an_engine_ends_with_its_block() -> None:
    with exact.use_engine("int8"):
        with exact.use_engine("float64"):
            assert engine._chosen == "float64"
        assert engine._chosen == "int8"
    assert engine._chosen == "auto"
    with pytest.raises(ValueError, match="engine 'float32'\n  expected: float64, int8, auto"):
        exact.use_engine("float32")  # type: ignore[arg-type]
    assert engine._chosen == "auto"
    assert engine._engine(torch.device("cpu")) in ("float64", "int8")


@pytest.mark.parametrize("k", [3, 64, 1000])
def test_grids_are_those_of_trees_where_another_order_of_summation_gives_others(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose bound lies a few units in the last place from a limit between two grids."""
    x = rows_of("normal", 200, k, k)
    budget = grid.NORM_BUDGET - (math.isqrt(k) // 2 + 1)
    limit = 2.0**-52 * budget * budget / (1 + 2.0**-40)
    x = x * exact.sqrt(limit / grid.tree_sum(x * x))
    trees = grid.tree_sum(x * x)
    _, rounders = grid.round_rows(x)
    assert torch.equal(rounders, grid.rounder_of_norm(trees, k))
    assert len(rounders.unique()) == 2  # they lie on both sides
    monkeypatch.setattr(grid, "tree_sum_", lambda values: values.flip(1).cumsum(1)[:, -1:])  # the failed control
    assert k == 3 or not torch.equal(rounders, grid.round_rows(x)[1])


def test_frozen_weights_are_kept_in_float32() -> None:
    weight = rows_of("outlier", 40, 1500, 1)
    for matrix in (weight.float(), weight / 3):
        frozen = exact.FrozenWeight(matrix)
        for operand in (frozen.forward, frozen.backward):
            is_narrow = [chunk.values.dtype == torch.float32 for chunk in operand.chunks]
            assert all(is_narrow) == (matrix.dtype == torch.float32)
        x = rows_of("normal", 5, 1500, 2).to(matrix.dtype)
        for name in ("float64", "int8"):
            with exact.use_engine(name):
                assert torch.equal(exact.linear(x, frozen), exact.linear(x, matrix))
