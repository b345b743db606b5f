"""The readers that must refuse hostile files, each in a fresh process within limits."""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from hostile.files import GIB


def read_checkpoint(path: Path) -> object:
    from clip_hba_behavior.run import checkpoint

    found = checkpoint.read_checkpoint(path)
    checkpoint.describe(found)
    return found


def read_config(path: Path) -> object:
    from clip_hba_behavior.config import make_config, read_config_file

    return make_config(read_config_file(path)).to_yaml().encode()


def read_table(path: Path) -> object:
    from clip_hba_behavior.data.things import read_annotations

    return read_annotations(path)


def read_prompts(path: Path) -> object:
    from clip_hba_behavior.data.things import read_prompts

    return read_prompts(path)


def read_rdm(path: Path) -> object:
    from clip_hba_behavior.data.things import read_human_rdm

    return read_human_rdm(path)


def read_image(path: Path) -> object:
    from clip_hba_behavior.data.images import Preprocessing, load_pixels

    return load_pixels([path], Preprocessing())


def digest_image(path: Path) -> object:
    from clip_hba_behavior.data.things import image_digests

    return image_digests([path])


def read_backbone(path: Path) -> object:
    from clip_hba_behavior.model.openai_format import load_openai_file

    return load_openai_file(path, trust_backbone_file=False)


def read_results(path: Path) -> object:
    from clip_hba_behavior.verification.results_table import read_results_table

    return read_results_table(path)


def read_ledger(path: Path) -> object:
    """Read a run whose ledger is this file: what is wrong with it is said, and the run is read on."""
    from clip_hba_behavior.reproducibility.state.errors import BadInputError
    from clip_hba_behavior.verification.files import RunFiles

    run = Path.cwd().with_name("run")
    (run / "dora_params").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "dora_params" / "epoch1_dora_params.pth").touch()
    (run / "steps.jsonl").symlink_to(path)
    files = RunFiles(run)
    about_it = [each for each in files.problems if "steps.jsonl" in each]
    if about_it:
        raise BadInputError("\n".join(about_it))
    return files.ledger


READERS = {
    "checkpoint": read_checkpoint,
    "config": read_config,
    "table": read_table,
    "prompts": read_prompts,
    "rdm": read_rdm,
    "image": read_image,
    "image digest": digest_image,
    "backbone": read_backbone,
    "results": read_results,
    "ledger": read_ledger,
}


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def attempt(reader: str, path: str, directory: str, report: str) -> None:
    """Read a file as this process, within 6 GiB of address space more than it has, and say how it went."""
    from clip_hba_behavior.reproducibility.state.errors import BadInputError

    os.chdir(directory)
    for module in ("data.images", "model.openai_format", "verification.files", "run.checkpoint"):
        __import__(f"clip_hba_behavior.{module}")
    limit = _memory("VmSize") + 6 * GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of memory begins again
    before, begin = _memory("VmHWM"), time.process_time()
    outcome: dict[str, Any] = {}
    try:
        READERS[reader](Path(path))
        outcome["end"] = "accepted"
    except BadInputError as error:
        outcome |= {"end": "refused", "message": str(error)}
    outcome |= {"seconds": time.process_time() - begin, "grown": _memory("VmHWM") - before}
    Path(report).write_text(json.dumps(outcome))
    sys.exit(2 if outcome["end"] == "refused" else 0)
