"""What a person does next: commands to copy, and names that are free."""

from pathlib import Path

from clip_hba_behavior.reproducibility.state.process import join_command


def command_line(*words: object) -> str:
    """Return a `clip-hba` command with its words quoted where the shell needs it."""
    return join_command(["clip-hba", *(str(each) for each in words)])


def go_on_with(command: str) -> str:
    """Return the line that names the command which continues what was interrupted."""
    return f"go on with: {command}"


def start_again_with(command: str) -> str:
    """Return the line that names the command to repeat, where there is nothing yet to continue."""
    return f"start it again with: {command}"


def free_directory(directory: Path) -> Path:
    """Return a directory that does not exist: this one, or its name with a number."""
    candidate, number = directory, 1
    while candidate.exists():
        number += 1
        candidate = directory.with_name(f"{directory.name}-{number}")
    return candidate
