"""Every operation that portable arithmetic calls has the same bits on CUDA, for the reason in docs/EXACT.md."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clip_hba_behavior import exact
from conftest import REPOSITORY
from exact_tools import normal, with_outliers
from twin_tools import Twin, standin_data_of


class Operations(TorchDispatchMode):
    """Collects the names of all operations called, and refuses forms of them that are not safe."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        space, name = func._schema.name.split("::")
        if space == "aten":
            name = name if name.endswith("__") else name.removesuffix("_")
            self.names.add(name)
            check_form(name, args, kwargs)
        return func(*args, **kwargs)


def check_form(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if name in ("add", "sub", "rsub"):
        assert len(args) == 2, f"{name} with alpha"
        assert "alpha" not in kwargs, f"{name} with alpha"
    if name == "div":
        assert isinstance(args[1], torch.Tensor), "division by a Python number"
        assert "rounding_mode" not in kwargs
    if name in ("mm", "bmm", "sum"):
        assert args[0].dtype == torch.float64, f"{name} of {args[0].dtype}"
    if name == "index_put":
        places = torch.stack(torch.broadcast_tensors(*(index for index in args[1] if index is not None)))
        assert places.unique(dim=1).shape == places.flatten(1).shape, "index_put of one place twice"


def allowed() -> set[str]:
    """The names in the table."""
    _, _, section = (REPOSITORY / "docs" / "EXACT.md").read_text().partition("## On CUDA\n")
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def all_functions(standin_data: Path, operations: Operations) -> None:
    with operations:
        exact.digests()


def both_engines(standin_data: Path, operations: Operations) -> None:
    x = with_outliers(normal(40, 300, seed=1), 1e4)
    engines: tuple[exact.Choice, ...] = ("float64", "int8")
    for engine in engines:
        with exact.use_engine(engine), operations:
            exact.matmul(x, x.T)


def training_steps(standin_data: Path, operations: Operations) -> None:
    """From pixels and tokens on, all kinds of attention, with dropout."""
    backbone, data = standin_data_of(standin_data)
    for layers in ((1, 1), (3, 3)):
        with operations:
            twin = Twin("portable", backbone, data.part(4, 6), layers, rank=4)
            for layer in twin.model.dora_layers().values():
                layer.dropout = 0.1
            twin.model.train()
            twin.train([torch.arange(4)] * 2)
            twin.predict(torch.arange(2))


@pytest.mark.parametrize("function", [all_functions, both_engines, training_steps])
def test_no_operation_is_called_that_the_table_does_not_know(
    function: Callable[[Path, Operations], None], standin_data: Path
) -> None:
    torch.set_num_threads(1)
    operations = Operations()
    function(standin_data, operations)
    assert len(operations.names) > 20
    assert operations.names - allowed() == set()


def test_unsafe_forms_are_found() -> None:
    """The failed control of the test above."""
    x = torch.ones(3, dtype=torch.float64)
    place = torch.tensor([1, 1])
    unsafe_forms: list[Callable[[], torch.Tensor]] = [
        lambda: x / 3.0,
        lambda: torch.add(x, x, alpha=3),
        lambda: torch.ones(2, 2) @ torch.ones(2, 2),
        lambda: x.index_put((place,), x[:2], accumulate=True),
    ]
    for unsafe in unsafe_forms:
        with pytest.raises(AssertionError), Operations():
            unsafe()
    with Operations() as operations:
        x.sqrt().addcmul(x, x).softmax(0)
    assert operations.names - allowed() == {"sqrt", "addcmul", "_softmax"}
