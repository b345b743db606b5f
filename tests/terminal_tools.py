"""Tools of the tests of terminals: a command in a session of its own, with a terminal as all its streams."""

import fcntl
import os
import termios

import fresh_process


def clip_hba_on_terminal(name: str, arguments: list[str], variables: dict[str, str]) -> None:
    """Run a `clip-hba` command line as this process, on a terminal that the path names."""
    os.environ.update(variables)
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for stream in range(3):
        os.dup2(terminal, stream)
    os.close(terminal)
    fresh_process.clip_hba(arguments)
