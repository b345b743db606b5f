"""A run's directory: its paths, who may write in it, and its files of one piece, complete or absent."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, as_recorded, make_config, read_config_file
from clip_hba_behavior.reproducibility.record.lease import LOCK_NAME, Lease, LeaseLostError, hold
from clip_hba_behavior.reproducibility.record.ledger import LEDGER_NAME
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish, replace
from clip_hba_behavior.reproducibility.state.process import join_command
from clip_hba_behavior.reproducibility.state.system import IS_WINDOWS, sync_directory, sync_file
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text, quote
from clip_hba_behavior.run.advice import command_line, free_directory, go_on_with
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints, name_epochs
from clip_hba_behavior.run.results import RESULTS_NAME

# Of another run's history, with lines that it has still to repeat; its checkpoints follow.
RECORD_FILES = tuple(f"{name}{end}" for name in (LEDGER_NAME, RESULTS_NAME) for end in ("", ".pending", ".aside"))
SWEEP_FILE = "sweep.yaml"  # the copy in a sweep's directory, which is known by it


# What `environment.json` must hold; keys that came later may be absent.
_ENVIRONMENT_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("versions", "machine", "trajectory", "digests", "images", "targets"), (dict,)),
    **dict.fromkeys(("package", "variables", "pixels"), (dict,)),
    **dict.fromkeys(("drift", "package_changes"), (list,)),
    **dict.fromkeys(("parent", "continued_from"), (dict, type(None))),
    "device": (str,),
}
_ADDED_LATER = ("package", "variables", "package_changes", "pixels")


def is_tracked(path: Path) -> bool:
    """Whether a directory holds a run of `track`: one of a training loop of the user's own."""
    return (path / "run.json").is_file()


class RunDirectory:
    """Paths and files of one run. Files that record the run are never replaced, only added to."""

    def __init__(self, path: Path) -> None:
        """Name a run directory; nothing is read or made yet."""
        self.path = path
        self.checkpoints = path / "dora_params"
        self.step_checkpoints = path / "step_checkpoints"
        self.ledger_file = path / LEDGER_NAME
        self.results_file = path / RESULTS_NAME
        self.log_file = path / "training_log.txt"
        self.forks_file = path / "forks.txt"
        self.config_file = path / "config.yaml"
        self.environment_file = path / "environment.json"
        self.lease: Lease | None = None

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "RunDirectory":
        """Name the run that a person means by a path: its directory, or the `dora_params` within."""
        named = Path(path).expanduser().absolute()
        beside = ("config.yaml", LEDGER_NAME, "environment.json")
        if named.name == "dora_params" and any((named.parent / each).is_file() for each in beside):
            named = named.parent
        return cls(named)

    # --- who may write ------------------------------------------------------------------------------

    @contextmanager
    def created(self) -> Iterator[None]:
        """Make the directory and hold it. If it stays without a first state, nothing of it is left.

        Raises:
            BadInputError: it holds a run already, or something else.
        """
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        self.refuse_if_used()
        self.path.mkdir(parents=True, exist_ok=True)
        is_abandoned = False
        try:
            with self._hold():
                self.refuse_if_used()  # another process may have come first
                self._remove_unpublished()
                try:
                    yield
                finally:
                    if not list_checkpoints(self.checkpoints):
                        with suppress(LeaseLostError):  # what is there now may be another's
                            self.check_held()
                            self._remove_empty(made)
                            is_abandoned = True
        finally:
            if is_abandoned and IS_WINDOWS:  # which removes no open file, so it was still there
                with suppress(OSError):  # another process has it by now
                    (self.path / LOCK_NAME).unlink()
                    _remove_directories(made)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold an existing run's directory.

        Raises:
            BadInputError: there is no run in it, or another process holds it.
        """
        self.refuse_if_no_run()
        with self._hold():
            self.remove_temporary_files()
            yield

    def refuse_if_no_run(self) -> None:
        """Return if there is a run here.

        Raises:
            BadInputError: there is none, or it is the run of a training loop of the user's own.
        """
        if is_tracked(self.path):
            fork = f"from clip_hba_behavior.reproducibility import fork; fork({str(self.path)!r}, EPOCH, NEW)"
            raise BadInputError(
                f"{self.path} is the run of a training loop of your own\n"
                f"  to go on with it, start your script again\n  to fork it, in Python: {fork}"
            )
        if not self.config_file.is_file():
            why = "it has no config.yaml" if self.path.is_dir() else "there is no such directory"
            holds_runs = any(self.path.glob(f"*/{self.config_file.name}"))
            below = f"\n  list the runs below it: {command_line('runs', self.path)}" if holds_runs else ""
            raise BadInputError(f"there is no run in {self.path}: {why}{below}")

    @contextmanager
    def _hold(self) -> Iterator[None]:
        with hold(self.path) as self.lease:
            try:
                yield
            finally:
                self.lease = None

    def check_held(self) -> None:
        """Return if a directory that this process holds is still its own; to be asked before publishing in it.

        Raises:
            LeaseLostError: another process holds it, or could have taken it.
        """
        if self.lease is not None:
            self.lease.check()

    def refuse_if_used(self) -> None:
        """Return if a run can begin here.

        Raises:
            BadInputError: it holds a run already, or something else, or is a file.
        """
        for each in (self.path, *self.path.parents):
            if each.exists() and not each.is_dir():
                raise BadInputError(
                    f"the run directory {self.path} cannot be: {each} is a file\n  {_elsewhere(each)}"
                )
        if not self.path.exists() or self._never_began():
            return
        if self.config_file.is_file() and list_checkpoints(self.checkpoints):
            raise BadInputError(
                f"the run directory {self.path} is not empty: it holds a run\n"
                f"  {go_on_with(command_line('resume', self.path))}\n  or {_elsewhere(self.path)}"
            )
        if self.config_file.is_file() and self.environment_file.is_file():
            raise BadInputError(
                f"the run directory {self.path} is not empty: it holds a run, but none of its checkpoints\n"
                f"  put {self.checkpoints} back, or {_elsewhere(self.path)}"
            )
        names = sorted(each.name for each in self.path.iterdir())
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise BadInputError(
            f"the run directory {self.path} is not empty, and holds no run: found {some}\n"
            f"  {_elsewhere(self.path)}"
        )

    def _never_began(self) -> bool:
        """Whether nothing is here but what a start leaves that was killed before its first state."""
        if not self.path.is_dir() or list_checkpoints(self.checkpoints):
            return False
        own = {"run.lock", "config.yaml", "environment.json", "training_log.txt", "dora_params"}
        found = {each.name for each in self.path.iterdir() if not is_temporary(each)}
        copies = found & set(RECORD_FILES)
        if "config.yaml" in found:  # another's config.yaml does not name this directory
            try:
                if copies and self.read_environment().get("continued_from") is None:
                    return False  # a ledger whose checkpoints someone took away is no copy
                return found - copies <= own and self.read_config().run_dir == str(self.path)
            except BadInputError:
                return False
        return found <= {"run.lock", "training_log.txt"}

    def remove_temporary_files(self) -> None:
        """Remove what a killed process had not published yet. Only for the process that holds the run."""
        remove_temporary_files(self.path, self.checkpoints, self.step_checkpoints)

    def _remove_unpublished(self) -> None:
        """Remove what a start, or a copy of a history, leaves that ended before its first checkpoint."""
        self.remove_temporary_files()
        for name in RECORD_FILES:
            (self.path / name).unlink(missing_ok=True)

    def _remove_empty(self, made: list[Path]) -> None:
        """Take back what a start that failed has made: its own files, and directories it created."""
        self._remove_unpublished()
        for name in ("config.yaml", "environment.json", "training_log.txt", *(() if IS_WINDOWS else (LOCK_NAME,))):
            (self.path / name).unlink(missing_ok=True)
        _remove_directories([self.checkpoints, *made])

    # --- checkpoints --------------------------------------------------------------------------------

    def newest_epoch(self) -> int:
        """Return the newest epoch's number, whatever state its file is in.

        Raises:
            BadInputError: there is none.
        """
        found = list_checkpoints(self.checkpoints)
        if not found:
            raise BadInputError(f"{self.path} has no checkpoint: it never began")
        return max(found)

    def checkpoint_of(self, epoch: int, option: str = "--from-epoch") -> Path:
        """Return the file of the state after an epoch, whatever state it is in.

        Args:
            epoch: number of completed epochs.
            option: which said so, for the message.

        Raises:
            BadInputError: there is none.
        """
        found = list_checkpoints(self.checkpoints)
        if epoch not in found:
            raise BadInputError(
                f"{self.path} has no checkpoint of epoch {epoch}\n  found:    {name_epochs(found)}\n"
                f"  give {option} one of those{self.recompute_advice(epoch)}"
            )
        return found[epoch]

    def removed_epochs(self) -> set[int]:
        """Return the epochs whose checkpoints `keep_checkpoints` removed; their states can be trained again."""
        found = list_checkpoints(self.checkpoints)
        if not found or not self.config_file.is_file() or self.read_config().keep_checkpoints == "all":
            return set()
        return set(range(min(found), max(found))) - found.keys()

    def recompute_advice(self, epoch: int) -> str:
        """Return the line that names the command which trains up to a state again; empty where none can."""
        found = list_checkpoints(self.checkpoints)
        if not self.config_file.is_file() or not found or not min(found) < epoch < max(found):
            return ""
        return f"\n  or make it again: {command_line('state', self.path, '--epoch', epoch)}"

    # --- files of one piece -------------------------------------------------------------------------

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration, once for a new run, again when `epochs` is extended."""
        replace(self.config_file, config.to_yaml().encode())

    def read_config(self) -> Config:
        """Read the resolved configuration."""
        keys = read_config_file(self.config_file)
        try:
            return make_config(as_recorded(keys))
        except BadInputError as error:
            raise BadInputError(f"{self.config_file}: {error}") from None

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write `environment.json`."""
        replace(self.environment_file, (json.dumps(environment, indent=2) + "\n").encode())

    def read_environment(self) -> dict[str, Any]:
        """Read `environment.json`."""
        try:
            with open_text(self.environment_file, 16 * MIB) as file:
                environment = dict(json.load(file))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise BadInputError(f"{self.environment_file} cannot be read: {error}") from None
        for key, kinds in _ENVIRONMENT_KINDS.items():
            if key not in environment and key in _ADDED_LATER:
                continue
            if key not in environment or not isinstance(environment[key], kinds):
                raise BadInputError(
                    f"{self.environment_file} is damaged\n  found:    {key} is {quote(environment.get(key))}\n"
                    f"  expected: {' or '.join(kind.__name__ for kind in kinds)}"
                )
        for key in ("drift", "package_changes"):
            if others := [each for each in environment.get(key, []) if not isinstance(each, str)]:
                raise BadInputError(
                    f"{self.environment_file} is damaged\n  found:    {key} holds {quote(others[0])}\n"
                    "  expected: sentences"
                )
        return environment | {"trajectory": as_recorded(environment["trajectory"])}

    def write_best(self, epoch: int, test_loss: float) -> None:
        """Name "the model" of the run in `best.json`: the epoch with the lowest test loss."""
        file = checkpoint_path(self.checkpoints, epoch).relative_to(self.path)
        best = {"epoch": epoch, "test_loss": test_loss, "checkpoint": file.as_posix()}
        replace(self.path / "best.json", (json.dumps(best) + "\n").encode())

    def read_best(self) -> tuple[int, float]:
        """Return "the model" of the run: the epoch with the lowest test loss, and that loss.

        Raises:
            BadInputError: `best.json` is not there, or damaged.
        """
        path = self.path / "best.json"
        try:
            with open_text(path, MIB) as file:
                best = json.load(file)
            return int(best["epoch"]), float(best["test_loss"])
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            again = command_line("resume", self.path)
            raise BadInputError(f"{path} cannot be read: {error}\n  write it again: {again}") from None

    def forks(self) -> list[str]:
        """Return the lines of `forks.txt`: of each fork that began here, epoch and directory."""
        try:
            return self.forks_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def forked_epochs(self) -> set[int]:
        """Return the epochs that forks began with, as they wrote them down here."""
        return {int(line.partition(" ")[0]) for line in self.forks() if line.partition(" ")[0].isdecimal()}

    def note_fork(self, epoch: int, fork: Path) -> None:
        """Write down that a fork begins with the state after `epoch`, so that its checkpoint stays."""
        if f"{epoch} {fork}" in self.forks():
            return  # it was killed before its first state, and begins again
        noted = self.forks_file.read_bytes() if self.forks_file.exists() else b""
        is_torn = noted != b"" and not noted.endswith(b"\n")  # empty: another fork is about to write
        with self.forks_file.open("a", encoding="utf-8", newline="\n") as file:
            file.write(("\n" if is_torn else "") + f"{epoch} {fork}\n")
            file.flush()
            sync_file(file.fileno())
        sync_directory(self.path)

    def copy_history(self, source: "RunDirectory", epoch: int) -> None:
        """Copy another run's ledger, results and checkpoints up to an epoch, so that this run holds both."""
        for name in RECORD_FILES:
            if (source.path / name).exists():
                publish(self.path / name, (source.path / name).read_bytes())
        self.checkpoints.mkdir(exist_ok=True)
        for each, path in list_checkpoints(source.checkpoints).items():
            if each <= epoch:
                publish(self.checkpoints / path.name, path.read_bytes())

    def check_space(self, needed: int) -> None:
        """Refuse to train on where the disk cannot hold what is to come.

        Raises:
            BadInputError: names both amounts.
        """
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise BadInputError(
                f"there is not enough space in {self.path}\n  found:    {free / 1e6:,.1f} MB free\n"
                f"  expected: {needed / 1e6:,.1f} MB, for all epochs\n"
                "  make space, or keep fewer checkpoints: keep_checkpoints"
            )


def _remove_directories(directories: list[Path]) -> None:
    for directory in directories:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def is_temporary(path: Path) -> bool:
    """Whether a file is what a process writes, or was writing when it was killed, before it gets its name."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_temporary_files(*directories: Path) -> None:
    """Remove what killed processes had not published yet; only for who alone writes in these directories."""
    for directory in directories:
        for path in directory.iterdir() if directory.is_dir() else []:
            if is_temporary(path) and not path.is_dir():  # such as an export to the run, perhaps under way
                path.unlink(missing_ok=True)


def _elsewhere(taken: Path) -> str:
    return f"give another --run-dir, such as {join_command([str(free_directory(taken))])}"
