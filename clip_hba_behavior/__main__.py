"""`python -m clip_hba_behavior` is `clip-hba`."""

from clip_hba_behavior.cli import run_from_command_line

run_from_command_line()
