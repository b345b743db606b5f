"""`README.txt` of a bundle, for people who do not have this program."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from clip_hba_behavior.run.checkpoint_files import name_epochs

# What each file is, in the order in which they are told; a name that ends in `/` is a folder.
_MEANINGS = {
    "manifest.json": "facts of the run, names of what was left out, size and SHA-256 of every file here",
    "config.yaml": "the configuration, every key filled in",
    "environment.json": """program, versions, machine; digests of weights and data, and of each image; what was
        allowed to change on the way""",
    "training_res.csv": """a row for each epoch: losses, and Spearman's rho between the model's and people's
        dissimilarities; behavioral_rsa_p_value takes pairs of images for independent, and is no test""",
    "steps.jsonl": """the ledger, a JSON object a line: of each step the digest of its batch and its loss, of each
        epoch's end the digests of the complete training state and of each tensor in it""",
    "best.json": "the epoch with the lowest test loss",
    "dora_params/": """training states (parameters, optimizer, random generators): the first, the best, the last,
        and those around a change of settings""",
    "report/": "pages of figures: open report/index.html",
    "quarantine/": "what could not stay where it was recorded, each with a record of why",
    "steps.jsonl.pending": "lines that the run, interrupted and resumed, had still to write again",
    "training_res.csv.pending": "the same, of the results",
}

_TEXT = """\
A training run of clip_hba_behavior {version}, which fine-tunes CLIP on human behaviour.
States after {epochs}; arithmetic: {arithmetic}.

WHAT IS HERE

{files}

CHECK THE FILES, with Python alone, in this folder

    python3 -c "import hashlib, json; [print(name, 'ok' if hashlib.sha256(open(name, 'rb').read()).hexdigest() == \
file['sha256'] else 'DIFFERS') for name, file in json.load(open('manifest.json'))['files'].items()]"

CHECK THAT THEY AGREE, AND REPEAT THE TRAINING, with the program, on the zip file as it was published

    clip-hba verify bundle FILE.zip
    clip-hba verify bundle FILE.zip --config FILE.yaml

The first compares states, ledger, results and certificates with each other. The second also trains from the
first state to the last, and compares every bit. FILE.yaml names where images, tables and weights are, which
are not in the bundle, by the keys csv_file, img_dir, inference_csv_file, RDM48_triplet_dir, prompts_file and
backbone. Whether they are those of the run is told by their digests: data_digests in manifest.json, of each
image in environment.json. A run on the synthetic data set of the program needs no such file: --epochs all.
{claim}

READ A STATE, with PyTorch

    checkpoint = torch.load("{state}", weights_only=True)

It is a dict: the trained parameters by name, optimizer_state, rng_state, and how far the run was. Unpacked, this
folder is a run directory, and the program's other commands work on it too.

WHAT THIS DOES NOT SHOW

Digests tell that nothing was changed since the bundle was made, not who made it: compare the SHA-256 of the
zip file with the one that its authors published elsewhere. The files name machines and folders as the run
recorded them.
"""
_CLAIMS = {
    True: "The arithmetic is portable: every bit is claimed, on any machine.",
    False: "The arithmetic is native: equal bits are claimed on the same processor model and versions alone.",
}


def readme(names: Iterable[str], facts: Mapping[str, Any]) -> bytes:
    """Return the text.

    Args:
        names: of the bundle's files.
        facts: of its run, as in the manifest.
    """
    held = ["manifest.json", *names]
    certificates = {
        each["file"]: f"certificate of a verification: {each['verdict']}" for each in facts["certificates"]
    }
    told = {
        name: meaning
        for name, meaning in (_MEANINGS | certificates).items()
        if any(each == name or (name.endswith("/") and each.startswith(name)) for each in held)
    }
    width = min(max(map(len, told)), 40) + 1
    text = _TEXT.format(
        version=(facts["package"] or {}).get("version", "(version not recorded)"),
        epochs=name_epochs(map(int, facts["state_digests"])),
        arithmetic=facts["arithmetic"],
        files="\n".join(_wrapped(f"{name:<{width}} ", meaning) for name, meaning in told.items()),
        claim=_CLAIMS[facts["arithmetic"] != "native"],
        state=f"dora_params/epoch{facts['epochs']['best']}_dora_params.pth",
    )
    return text.encode()


def _wrapped(label: str, text: str) -> str:
    words = " ".join(text.split())
    width = max(115, len(label) + 60)
    return textwrap.fill(
        words, width, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    )
