"""Problems of data that are of one kind, told together: three examples and how many there are."""

from collections import defaultdict
from collections.abc import Hashable, Iterable

_NUM_EXAMPLES = 3


def group_problems(problems: Iterable[tuple[Hashable, str]]) -> list[str]:
    """Return the messages of some problems, those of one kind as one if there are more than three.

    Args:
        problems: kind and message of each. What is expected, and the advice, are the same for a kind.
    """
    kinds: defaultdict[Hashable, list[str]] = defaultdict(list)
    for kind, message in problems:
        kinds[kind].append(message)
    messages: list[str] = []
    for each in kinds.values():
        messages += each if len(each) <= _NUM_EXAMPLES else [_as_one(each)]
    return messages


def _as_one(messages: list[str]) -> str:
    lines = [f"{len(messages)} times the same problem, such as"]
    for message in messages[:_NUM_EXAMPLES]:
        headline, *rest = message.split("\n")
        lines += [f"    {headline}", *(f"    {line}" for line in rest if _is_found(line))]
    return "\n".join(lines + [line for line in messages[0].split("\n")[1:] if not _is_found(line)])


def _is_found(line: str) -> bool:
    """Whether a line tells what was found, which is each problem's own."""
    return line.startswith("  found:")
