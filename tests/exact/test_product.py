from concurrent.futures import ThreadPoolExecutor
from operator import mul

import pytest
import torch
from torch.nn import functional

from clip_hba_behavior import exact
from clip_hba_behavior.exact.engine import multiply, on_grids
from exact_tools import F64, gradients, normal, relative_error, with_outliers


@pytest.mark.parametrize("k", [64, 1024, 4096, 16448])
def test_products_are_as_accurate_as_float32s_own(k: int) -> None:
    a, b = normal(256, k, seed=1), normal(192, k, seed=2)
    expected = a.to(F64) @ b.to(F64).T
    error = relative_error(exact.matmul(a, b.T), expected)
    assert error < 3.0e-7
    assert error < 1.15 * relative_error(a @ b.T, expected)


@pytest.mark.parametrize("factor", [10.0, 100.0, 1000.0, 10000.0])
def test_outlier_columns_cost_no_more_than_in_float32(factor: float) -> None:
    a, b = with_outliers(normal(256, 1024, seed=1), factor), normal(192, 1024, seed=2)
    expected = a.to(F64) @ b.to(F64).T
    assert relative_error(exact.matmul(a, b.T), expected) < relative_error(a @ b.T, expected)


@pytest.mark.parametrize("factor", [10.0, 100.0, 1000.0, 10000.0])
@pytest.mark.parametrize("num_outliers", [2, 300])
def test_products_with_outlier_columns_are_pythons_integers(factor: float, num_outliers: int) -> None:
    """With few outliers, which int8 leaves to float64, and with more than it takes; in two chunks of k."""
    a, b = normal(5, 1500, seed=1), normal(4, 1500, seed=2)
    a[:, torch.randperm(1500, generator=torch.Generator().manual_seed(3))[:num_outliers]] *= factor
    expected = torch.zeros(5, 4, dtype=F64)
    for left, right in zip(a.split(1024, 1), b.split(1024, 1), strict=True):
        rows, columns = on_grids(left), on_grids(right)
        integers = [
            [sum(map(mul, row, column)) for column in columns.integers.tolist()] for row in rows.integers.tolist()
        ]
        assert max(abs(integer) for row in integers for integer in row) <= 1 << 53
        expected += torch.tensor(integers, dtype=F64) * rows.grids * columns.grids.T
    engines: tuple[exact.Choice, ...] = ("float64", "int8")
    for engine in engines:
        with exact.use_engine(engine):
            assert torch.equal(exact.matmul(a.to(F64), b.to(F64).T), expected)
            assert torch.equal(exact.matmul(a, b.T), expected.float())


def test_the_rows_of_a_product_depend_on_themselves_alone() -> None:
    x, weight, bias = normal(700, 1500, seed=1), normal(50, 1500, seed=2), normal(50, seed=3)
    whole = exact.linear(x, weight, bias)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(4))
    assert torch.equal(whole[order], exact.linear(x[order], weight, bias))
    for sizes in ([1, 40, 7, 652], [350, 350], [1] * 20 + [680]):
        assert torch.equal(whole, torch.cat([exact.linear(part, weight, bias) for part in x.split(sizes)]))
    assert torch.equal(whole, exact.linear(x.view(7, 100, 1500), weight, bias).view(700, 50))
    assert torch.equal(whole, exact.linear(x, exact.FrozenWeight(weight), bias))
    assert torch.equal(whole[:, :20], exact.linear(x, weight[:20], bias[:20]))


def test_native_products_of_parts_have_other_bits() -> None:
    """The failed control of the test above."""
    x, weight = normal(700, 1500, seed=1), normal(50, 1500, seed=2)
    assert not torch.equal(x @ weight.T, torch.cat([row @ weight.T for row in x.split(1)]))


@pytest.mark.parametrize("k", [300, 1100])
def test_threads_engines_and_memory_order_change_no_bits(k: int) -> None:
    inputs = normal(600, k, seed=1), normal(16, k, seed=2), normal(16, seed=3)
    results = []
    for threads, engine in ((1, "float64"), (2, "float64"), (2, "int8")):
        torch.set_num_threads(threads)
        with exact.use_engine(engine):
            results.append(gradients(exact.linear, *inputs))
    results.append(gradients(exact.linear, inputs[0].T.contiguous().T, inputs[1].T.contiguous().T, inputs[2]))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_k_in_reverse_order_gives_the_same_bits() -> None:
    a, b = normal(60, 1024, seed=1), normal(70, 1024, seed=2)
    assert torch.equal(exact.matmul(a, b.T), exact.matmul(a.flip(1), b.flip(1).T))
    assert not torch.equal(a @ b.T, a.flip(1) @ b.flip(1).T)


@pytest.mark.parametrize("rows", [100, 3000])
def test_gradients_are_as_accurate_as_float32s_own(rows: int) -> None:
    inputs = normal(rows, 300, seed=1), normal(200, 300, seed=2), normal(200, seed=3)
    expected = gradients(functional.linear, *inputs, dtype=F64)
    for found, native, reference in zip(
        gradients(exact.linear, *inputs), gradients(functional.linear, *inputs), expected, strict=True
    ):
        error = relative_error(found, reference)
        assert error < 2.5e-7
        assert error < 1.2 * max(relative_error(native, reference), 1e-7)


def test_batched_products_equal_those_of_their_samples() -> None:
    a, b = normal(4, 3, 20, 33, seed=1), normal(4, 3, 33, 15, seed=2)
    whole = gradients(exact.matmul, a, b)
    assert relative_error(whole[0], a.to(F64) @ b.to(F64)) < 2e-7
    for found, expected in zip(whole, gradients(torch.matmul, a, b, dtype=F64), strict=True):
        assert relative_error(found, expected) < 2e-7
    for i in range(4):
        for j in range(3):
            assert torch.equal(whole[0][i, j], exact.matmul(a[i, j], b[i, j]))


def test_float64_inputs_give_float64_results_of_the_same_numbers() -> None:
    a, b = normal(30, 200, seed=1), normal(200, 20, seed=2)
    wide = exact.matmul(a.to(F64), b.to(F64))
    assert wide.dtype == F64
    assert torch.equal(wide.float(), exact.matmul(a, b))


def test_empty_products_are_those_of_torch() -> None:
    for m, k, n in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        assert torch.equal(exact.matmul(torch.ones(m, k), torch.ones(k, n)), torch.ones(m, k) @ torch.ones(k, n))


def test_frozen_weights_pass_gradients_on() -> None:
    x, weight = normal(20, 30, seed=1).requires_grad_(), normal(40, 30, seed=2)
    (through_frozen,) = torch.autograd.grad(exact.linear(x, exact.FrozenWeight(weight)).sum(), x)
    (through_tensor,) = torch.autograd.grad(exact.linear(x, weight).sum(), x)
    assert torch.equal(through_frozen, through_tensor)


def test_helpful_errors() -> None:
    with pytest.raises(
        ValueError, match=r"found:    \[2, 3\] torch.float32 and \[2, 3\] torch.float32\n.*\[..., m, k\]"
    ):
        exact.matmul(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(
        ValueError, match=r"inputs \[2, 3\], weight \[4, 5\]\n  expected: \[..., in\] and \[out, in\]"
    ):
        exact.linear(torch.ones(2, 3), torch.ones(4, 5))
    with pytest.raises(ValueError, match=r"found:    torch.float16\n  expected: float32 or float64"):
        exact.matmul(torch.ones(2, 3).half(), torch.ones(3, 2).half())
    with pytest.raises(ValueError, match=r"this bias\n  found:    \[5\]\n  expected: \[4\]"):
        exact.linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(5))
    with pytest.raises(ValueError, match=r"this bias\n  found:    \[1\]\n  expected: \[4\]"):
        exact.linear(torch.ones(2, 3), exact.FrozenWeight(torch.ones(4, 3)), torch.ones(1))


def test_a_product_is_not_overwritten_by_the_next_whatever_the_thread_or_mode() -> None:
    """Products reuse their memory; what they return is memory of its own, the first made in inference mode."""
    factors = [
        (normal(300, 1100, seed=seed), normal(1100, n, seed=seed + 9)) for seed, n in enumerate((70, 300) * 3)
    ]
    batch = normal(4, 3, 20, 30, seed=1)
    with torch.inference_mode():
        expected = [exact.matmul(a, b).clone() for a, b in factors]
    found = [exact.matmul(a, b) for a, b in factors]
    exact.matmul(batch, batch.mT)
    assert all(map(torch.equal, found, expected))
    with ThreadPoolExecutor(3) as pool:
        assert all(map(torch.equal, pool.map(lambda pair: exact.matmul(*pair), factors * 4), expected * 4))
    first = multiply(on_grids(factors[0][0]), on_grids(factors[0][0]), "chunk")
    kept = first.clone()
    multiply(on_grids(factors[2][0]), on_grids(factors[2][0]), "chunk")
    assert not torch.equal(first, kept)  # the failed control: within a product memory is used again
