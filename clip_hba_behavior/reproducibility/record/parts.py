"""The parts of a run: whatever has a `state_dict` and takes it back; loaded completely, or not at all."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

import torch

from clip_hba_behavior.reproducibility.state.compare import compare_leaves
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.tree import Tree, copy_tree, tree_leaves


@runtime_checkable
class Part(Protocol):
    """A module, optimizer, scheduler, scaler, average, or anything else of this kind."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a state over."""


Parts = Mapping[str, Part]


def check_parts(parts: Parts) -> None:
    """Refuse what is no part, and one part under two names.

    Raises:
        BadInputError: names it.
    """
    names: dict[int, str] = {}
    for name, part in parts.items():
        if not isinstance(part, Part):
            raise BadInputError(
                f"{name} cannot be part of a run\n  found:    {type(part).__name__}\n"
                "  expected: an object with state_dict and load_state_dict"
            )
        if id(part) in names:
            raise BadInputError(f"{names[id(part)]} and {name} are one object; name it once")
        if name == "rng_state":
            raise BadInputError("rng_state is the name of the random streams; give the part another one")
        names[id(part)] = name


def states_of(parts: Parts) -> dict[str, Tree]:
    """Copy the state of every part; raises as `copy_tree` does."""
    return {name: copy_tree(part.state_dict(), name) for name, part in parts.items()}


def restore_parts(parts: Parts, saved: Mapping[str, Tree], source: str) -> None:
    """Load every part's state, once all of them are known to fit.

    Args:
        parts: the live ones.
        saved: what `states_of` gave.
        source: the file, for the messages.

    Raises:
        BadInputError: a part is missing or unknown; a leaf that it has is missing, or of another shape or dtype;
            or a part did not become what was saved. Every part is as it was then.
    """
    live = states_of(parts)
    problems = [f"{name}: not in the checkpoint" for name in live if name not in saved]
    problems += [f"{name}: in the checkpoint, but not given" for name in saved if name not in live]
    for name in live.keys() & saved.keys():
        problems += _misfits(name, parts[name], live[name], saved[name])
    if problems:
        raise _refusal(f"{source} does not fit the parts", problems)
    try:
        for name, part in parts.items():
            try:
                _load(part, saved[name])
            except Exception as error:  # of code that is not ours
                raise _refusal(f"{source} does not fit {name}", [f"{type(error).__name__}: {error}"]) from error
        left, right = (dict(tree_leaves(each)) for each in (dict(saved), states_of(parts)))
        if found := compare_leaves(left, right).differences:
            problems = [f"{each.name.removeprefix('/')}: {each.what}" for each in found]
            raise _refusal(f"{source} was loaded, but the parts did not become what was saved", problems)
    except BadInputError:
        for name, part in parts.items():
            with suppress(Exception):  # of the part that just failed, which is named
                _load(part, live[name])
        raise


def _load(part: Part, saved: Tree) -> None:
    """Give a part a copy of its own: `Optimizer.load_state_dict` keeps the tensors that it is given."""
    part.load_state_dict(_like(part.state_dict(), copy_tree(saved)))


def _like(live: Any, saved: Tree) -> Any:
    """Give saved mappings the live ones' type, such as the `Counter` of `MultiStepLR`."""
    if isinstance(saved, list | tuple) and isinstance(live, list | tuple) and len(saved) == len(live):
        return type(saved)(_like(own, each) for own, each in zip(live, saved, strict=True))
    if not isinstance(saved, dict) or not isinstance(live, Mapping):
        return saved
    content = {key: _like(live.get(key), value) for key, value in saved.items()}
    if type(live) is dict or not isinstance(live, dict):
        return content
    typed = copy.copy(live)  # with what such a type keeps beside its items, as a defaultdict does
    typed.clear()
    typed.update(content)
    return typed


def _misfits(name: str, part: Part, live: Tree, saved: Tree) -> Iterator[str]:
    """Name what of a saved state has no place in a live part."""
    have = {path: leaf for path, leaf in tree_leaves(live) if isinstance(leaf, torch.Tensor)}
    given = {path: leaf for path, leaf in tree_leaves(saved) if isinstance(leaf, torch.Tensor)}
    is_optimizer = isinstance(part, torch.optim.Optimizer)
    for path, leaf in have.items():
        if path not in given:
            # an optimizer that has done a step may be put back to before its first
            if not is_optimizer:
                yield f"{name}{path}: not in the checkpoint"
        elif _kind(leaf) != _kind(given[path]):
            yield f"{name}{path}\n    in the checkpoint: {_kind(given[path])}\n    in {name}: {_kind(leaf)}"
    if isinstance(part, torch.nn.Module):
        yield from (f"{name}{path}: in the checkpoint, not in {name}" for path in given if path not in have)
    if isinstance(part, torch.optim.Optimizer):
        yield from _optimizer_misfits(name, part, saved)


def _optimizer_misfits(name: str, optimizer: torch.optim.Optimizer, saved: Tree) -> Iterator[str]:
    """Check an optimizer's groups, and that what it keeps of a parameter fits that parameter.

    What is kept has one element (a step count), the parameter's shape or one that broadcasts to it (factored
    moments), or spans all parameters (the flat history of L-BFGS).
    """
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    if not isinstance(groups, list) or not isinstance(saved.get("state"), dict):
        yield f"{name}: what was saved is no optimizer's state"
        return
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group.get("params", ())) for group in groups]
    if found != sizes:
        yield f"{name}: parameters by group\n    in the checkpoint: {found}\n    in {name}: {sizes}"
        return
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    indices = [index for group in groups for index in group["params"]]
    total = sum(each.numel() for each in parameters)
    for index, parameter in zip(indices, parameters, strict=True):
        for path, leaf in tree_leaves(saved["state"].get(index, {})):
            if isinstance(leaf, torch.Tensor) and leaf.numel() not in (1, total) and not _fits(leaf, parameter):
                yield (
                    f"{name}/state{{{index}}}{path}\n    in the checkpoint: {_kind(leaf)}\n"
                    f"    the parameter:     {_kind(parameter)}"
                )


def _fits(leaf: torch.Tensor, parameter: torch.Tensor) -> bool:
    try:
        return bool(torch.broadcast_shapes(leaf.shape, parameter.shape) == parameter.shape)
    except RuntimeError:
        return False


def _kind(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _refusal(heading: str, problems: list[str]) -> BadInputError:
    more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
    return BadInputError(f"{heading}\n  " + "\n  ".join(problems[:6]) + more)
