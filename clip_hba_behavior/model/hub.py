"""The files of a pretrained model: in a directory, on the Hugging Face hub, or in the hub's cache."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_COMMIT = re.compile("[0-9a-f]{40}")


def pretrained_files(name: str) -> Iterator[Path]:
    """Yield the file of a model or tokenizer that was read; or its directory, and the files in it.

    Of one from the hub they are the hub's cache's, with the file that says which commit it is. The hub is not
    asked: it may be out of reach by now, or have another commit.
    """
    directory = Path(name).expanduser()
    if not directory.exists():
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        commit = cache / "refs" / "main"
        yield commit
        if not commit.is_file():
            return
        directory = cache / "snapshots" / commit.read_text()
    yield directory
    if directory.is_dir():
        yield from directory.iterdir()


class PretrainedFiles:
    """Finds a model's files one by one; those from the hub are all of one commit."""

    def __init__(self, name: str) -> None:
        """Name a model by its directory or its place on the hub; nothing is looked for yet."""
        self.name = name
        self._directory = Path(name) if Path(name).is_dir() else None
        self._commit: str | None = None

    def find(self, file: str) -> Path | None:
        """Return the path of a file, downloaded if need be; None if the model has none of this name.

        Raises:
            OSError: the hub does not have the model, does not hand it out, or cannot be reached.
        """
        if self._directory is not None:
            path = self._directory / file
            # a link to nothing stays: that its target is missing is an error, not a file left out
            return path if os.path.lexists(path) else None
        try:
            found = self._find_on_hub(file)
        except OSError:
            raise
        except Exception as error:  # the library and those below it raise a dozen kinds
            raise OSError(str(error).strip() or type(error).__name__) from error
        if found is not None and _COMMIT.fullmatch(found.parent.name):
            self._commit = found.parent.name
        return found

    def _find_on_hub(self, file: str) -> Path | None:
        from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        known_absent = try_to_load_from_cache(self.name, file, revision=self._commit) is _CACHED_NO_EXIST
        if known_absent and self._commit:
            return None  # a commit never changes
        try:
            return Path(hf_hub_download(self.name, file, revision=self._commit))
        except LocalEntryNotFoundError as error:
            if known_absent or constants.HF_HUB_OFFLINE:
                return None
            # taken for absent, it could change what is loaded without a word
            raise OSError(
                f"the hub cannot be reached, and its cache does not hold {file}; "
                "with HF_HUB_OFFLINE=1, what the cache does not hold counts as absent"
            ) from error
        except EntryNotFoundError:
            return None
