"""What differs between two runs in config, data, weights, numerics and versions, the likeliest cause first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clip_hba_behavior.config import NATIVE_KEYS
from clip_hba_behavior.reproducibility.state.environment import is_compared, package_changes
from clip_hba_behavior.run.environment import changes_that_bear_on_bits
from clip_hba_behavior.verification.files import RunFiles

ORDER_KEYS = {"random_seed", "train_portion", "batch_size", "batch_order"}
_UPDATE_KEYS = {"lr", "weight_decay", "lr_schedule", "lr_min", "lr_warmup_epochs", "lr_schedule_epochs"}
_EVALUATION = {"eval_batch_size", "the digest of the inference_targets", "the digest of the human_rdm"}

# Which kinds of settings bear on a thing, the likeliest first.
_LIKELY: dict[str, tuple[str, ...]] = {
    "batch order": ("order", "config", "data", "weights", "versions", "update", "numerics"),
    "batch content": ("data", "order", "config", "weights", "versions", "numerics", "update"),
    "loss": ("update", "config", "weights", "data", "numerics", "versions", "order"),
    "metrics": ("evaluation", "data", "numerics", "versions", "weights", "config", "update", "order"),
    "parameters": ("order", "update", "config", "weights", "data", "numerics", "versions"),
}


@dataclass(frozen=True)
class Setting:
    """A setting that two runs do not share.

    Attributes:
        name: a key of the configuration, a digest, a version, or `images`.
        first: the first run's value.
        second: the second's.
    """

    name: str
    first: Any
    second: Any

    def __str__(self) -> str:
        """Put the two values under each other."""
        return f"{self.name}\n    in A: {self.first}\n    in B: {self.second}"


def differing_settings(
    pair: tuple[RunFiles, RunFiles], origins: tuple[Mapping[str, Any], Mapping[str, Any]], thing: str | None
) -> list[Setting]:
    """List the settings that differ.

    Args:
        pair: the two runs.
        origins: of each a checkpoint's provenance: the configuration under which this very state was made,
            and what the run's own files do not say.
        thing: what differs between the runs (a key of `_LIKELY`); it decides which comes first.
    """
    facts = [_facts(files, origin) for files, origin in zip(pair, origins, strict=True)]
    if all(each.get("arithmetic", "native") != "native" for each in facts):  # of no machine and no version
        facts = [{key: value for key, value in each.items() if not _is_of_a_machine(key)} for each in facts]
    found = [
        Setting(name, facts[0][name], facts[1][name])
        for name in facts[0]
        if name in facts[1] and facts[0][name] != facts[1][name]
    ]
    for key in ("images", "targets"):
        files = [files.environment.get(key) for files in pair]
        if files[0] and files[1]:
            found += [
                Setting(f"{key}: {name}", files[0].get(name, "absent"), files[1].get(name, "absent"))
                for name in sorted(files[0].keys() | files[1].keys())
                if files[0].get(name) != files[1].get(name)
            ]
    there, here = ({**each.environment, **origin} for each, origin in zip(pair, origins, strict=True))
    changes = package_changes(there, here) | changes_that_bear_on_bits(there, here)
    named = {name.removeprefix("version of ") for name in facts[0]}
    found += [Setting(name, *values) for name, values in changes.items() if name not in named]
    kinds = _LIKELY.get(thing or "", _LIKELY["parameters"])

    def likeliest(each: Setting) -> tuple[int, bool]:
        kind = _kind(each.name, kinds)
        # the file that differs says more than the digest of all
        return kinds.index(kind) if kind in kinds else len(kinds), each.name.startswith("the digest of ")

    if all(facts[each].get("lr_schedule") == "constant" for each in (0, 1)):
        found = [each for each in found if each.name != "lr_schedule_epochs"]  # it bears on nothing then
    return sorted(found, key=likeliest)


def _facts(files: RunFiles, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting that bears on bits, by name."""
    environment = files.environment
    trajectory = (files.config.trajectory() if files.config is not None else {}) | origin.get("config", {})
    digests = environment.get("digests") or origin.get("digests", {})
    machine = environment.get("machine") or origin
    facts = dict(trajectory)
    facts |= {f"the digest of the {name}": value for name, value in digests.items()}
    facts |= {key: value for key in ("device", "device_model") if (value := machine.get(key) or origin.get(key))}
    versions = environment.get("versions") or origin.get("versions", {})
    return facts | {f"version of {name}": value for name, value in versions.items()}


def _is_of_a_machine(name: str) -> bool:
    return name.startswith(("version of ", "device"))


def _kind(name: str, kinds: tuple[str, ...]) -> str:
    if name in _EVALUATION and "evaluation" in kinds:
        return "evaluation"
    if name in ORDER_KEYS:
        return "order"
    if name in _UPDATE_KEYS:
        return "update"
    if name in {"arithmetic", *NATIVE_KEYS} or name.startswith("device"):
        return "numerics"
    if name.startswith("version of ") or is_compared(name):
        return "versions"
    if name.startswith("package_"):
        return "package"  # the least likely: most changes of sources change no bit
    if name == "the digest of the weights":
        return "weights"
    if name.startswith(("the digest of the ", "images: ", "targets: ")):
        return "data"
    return "config"
