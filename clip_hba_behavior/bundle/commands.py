"""`clip-hba bundle` and `clip-hba verify bundle`: check what is given, do it, print, and say the exit code."""

import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_hba_behavior.bundle.archive import Source, digest_of, in_order, unpack, write_archive
from clip_hba_behavior.bundle.contents import certificate_paths, contents_of, refuse_no_run
from clip_hba_behavior.bundle.manifest import MANIFEST, README, Manifest
from clip_hba_behavior.bundle.names import names_within
from clip_hba_behavior.bundle.readme import readme
from clip_hba_behavior.config import make_config, parse_settings, read_config_file
from clip_hba_behavior.report.certificates import certificates_of
from clip_hba_behavior.report.sources import Source as ReportSource
from clip_hba_behavior.report.sources import read_records
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import published_file
from clip_hba_behavior.reproducibility.state.untrusted import quote, shown
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint_files import list_checkpoints, name_epochs
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import session
from clip_hba_behavior.use.request import refuse_no_file, refuse_taken
from clip_hba_behavior.verification.certificate_file import check_free, headed, write_certificate
from clip_hba_behavior.verification.commands import parse_epochs


def bundle(path: Path, out: Path, certificate: Path | None) -> int:
    """Write a run into one file; return the exit code: 1 if a certificate of another run was left out.

    Raises:
        BadInputError: something given cannot be used, or the run is damaged; nothing was written.
    """
    refuse_taken(out)
    if certificate is not None:
        refuse_no_file(certificate, "--certificate")
    run = refuse_no_run(path)
    certificates, foreign = certificates_of(read_records([ReportSource("run", run.path)])[0], certificate)
    paths = certificate_paths(run, certificates, certificate)
    from clip_hba_behavior.bundle.record import facts_of, problems_of, states_for
    from clip_hba_behavior.verification.files import RunFiles

    with session() as here:
        epochs = states_for(run)
        contents = contents_of(run, epochs, paths)
        # before the files are read: what a process changes from here on is seen when they are written
        entries = {name: digest_of(each) for name, each in contents.files.items()}
        files = RunFiles(run.path, states=epochs)
        if problems := problems_of(files):
            raise BadInputError(
                f"{path} is damaged, and no bundle is made of it\n  "
                + "\n  ".join(problems)
                + f"\n  what can be made again is: {command_line('resume', path)}"
                + f"\n  look at the rest: {command_line('verify', 'checkpoints', path)}"
            )
        facts = facts_of(files, certificates)
        sources: dict[str, Source] = {**contents.files, README: readme(contents.files, facts)}
        entries[README] = digest_of(sources[README])
        manifest = Manifest(facts, contents.left_out, dict(sorted(entries.items())))
        out.parent.mkdir(parents=True, exist_ok=True)
        with published_file(out) as file:
            all_of_them = in_order(sources, manifest.to_bytes())
            written = write_archive(file, all_of_them, here.interruptible().report)
            if changed := [name for name, (_, sha256) in manifest.files.items() if written[name] != sha256]:
                raise BadInputError(f"{run.path / changed[0]} changed while it was read\n  try again")
    _say_what_is_in(contents.files, facts)
    origins = {files.files[epoch].relative_to(run.path).as_posix(): files.origin(epoch) for epoch in epochs}
    for name, held in names_within(run, contents.files, origins).items():
        print(f"tells:       {name} ({_shortened(held)})")
    print(f"left out:    {_shortened(contents.left_out) or 'nothing'}")
    if contents.others:
        print(f"not of the run, so not in the bundle: {', '.join(map(shown, contents.others))}")
    size, sha256 = digest_of(out)
    print(f"{out}: {size:,} bytes, SHA-256 {sha256}")
    print(f"check it:    {command_line('verify', 'bundle', out)}")
    for each in foreign:
        print(f"left out: {each}", file=sys.stderr)
    return 1 if foreign else 0


def _say_what_is_in(files: Mapping[str, Path], facts: Mapping[str, Any]) -> None:
    print(f"states:      after {name_epochs(map(int, facts['state_digests']))}")
    named = [f"{each['file']} ({each['verdict']}, level {each['level']})" for each in facts["certificates"]]
    print(
        f"certificate: {', '.join(named) or 'none: make one by verify checkpoints RUN --json FILE, and name it'}"
    )
    has_report = any(name.startswith("report/") for name in files)
    print(f"report:      {'report/index.html' if has_report else 'none in the run: clip-hba report RUN makes it'}")
    if facts["pending"]:
        print(f"pending:     {', '.join(facts['pending'])}")
    for each in facts["quarantine"]:
        print(f"quarantine:  {each}")


def _shortened(names: Sequence[str]) -> str:
    """Name files, those of one folder together."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        by_folder.setdefault(name.rpartition("/")[0] or name, []).append(name)
    return ", ".join(
        held[0] if len(held) == 1 else f"{len(held)} files of {folder}/" for folder, held in by_folder.items()
    )


def verify_bundle(
    path: Path, config: Path | None, settings: list[str], epochs: str | None, json: Path | None
) -> int:
    """Check a bundle, and train the run again where that is asked for.

    Args:
        path: of the zip file.
        config: YAML file that says where data and backbone are.
        settings: keys given one by one.
        epochs: which to train again; None: all if the data are given, else none.
        json: where a certificate is written.

    Returns:
        The exit code: 0 complete, and reproducible if it was trained again; 1 if anything differs; 2 and 3 as
        `Verdict.exit_code`.

    Raises:
        BadInputError: it is no bundle, or something given cannot be used.
    """
    check_free(json)
    if path.is_dir():
        raise BadInputError(
            f"{path} is a directory, not a bundle\n  make a bundle of a run: "
            f"{command_line('bundle', path)} --out FILE.zip\n  verify the run itself: "
            f"{command_line('verify', 'checkpoints', path)}"
        )
    chosen = parse_epochs(epochs or "all")
    # the recorded cache is of another machine's: here it is where this one has it
    given = (
        {"cache_dir": None} | (read_config_file(config) if config is not None else {}) | parse_settings(settings)
    )
    make_config(given)
    is_replayed = epochs is not None or config is not None or bool(settings)
    with tempfile.TemporaryDirectory(prefix="clip-hba-bundle-") as name:
        directory = Path(name).resolve() / "run"
        directory.mkdir()
        with session() as here:
            manifest, problems = unpack(path, directory, here.interruptible().report)
            if manifest is not None and not problems:
                problems = _problems_within(directory, manifest)
            here.stop.check()
        problems = [_without(directory, path, each) for each in problems]
        what = {"bundle": str(path), "sha256": digest_of(path)[1]}
        print(f"SHA-256 of {path}: {what['sha256']}")
        for each in problems:
            print(f"differs: {each}")
        if manifest is None or problems:
            print("not complete: see above" + ("; nothing was trained again" if is_replayed else ""))
            _certify(json, what, "not complete", 1, problems)
            return 1
        print(_complete(manifest))
        if is_replayed:
            return _replay(path, directory, given, chosen, what, json)
    print(
        "nothing was trained again; to do so: "
        + command_line("verify", "bundle", path, "--epochs", "all")
        + "\n  with --config FILE, which says where data and backbone are, unless they are where the run had them"
    )
    _certify(json, what, "complete", 0, [])
    return 0


def _complete(manifest: Manifest) -> str:
    facts = manifest.facts
    certificates = [
        shown(f"{each['file']}, level {each['level']}, {each['verdict']}") for each in facts["certificates"]
    ]
    return "\n".join(
        [
            f"complete: {len(manifest.files)} files, each with the digest in the manifest",
            f"  states after {name_epochs(map(int, facts['state_digests']))}: as ledger and results have them",
            f"  arithmetic: {facts['arithmetic']}",
            f"  certificates of this run: {'; '.join(certificates) or 'none'}",
        ]
    )


def _problems_within(directory: Path, manifest: Manifest) -> list[str]:
    """Name what is not right in an unpacked bundle, though every file is as the manifest says."""
    from clip_hba_behavior.bundle.record import facts_of, problems_of
    from clip_hba_behavior.verification.files import RunFiles

    run = RunDirectory(directory)
    try:
        certificates, foreign = certificates_of(read_records([ReportSource("run", directory)])[0], None)
        files = RunFiles(directory, states=list_checkpoints(run.checkpoints))
        problems = [*foreign, *problems_of(files)]
        facts = facts_of(files, certificates)
    except (BadInputError, OSError) as error:
        return [str(error)]
    for key in sorted(facts.keys() | manifest.facts.keys()):
        told, found = manifest.facts.get(key), facts.get(key)
        if told != found:
            problems.append(
                f"{MANIFEST}: {shown(key)} is not what the files say\n    in the manifest: {quote(told)}\n"
                f"    in the files:    {quote(found)}"
            )
    return problems


def _replay(
    path: Path,
    directory: Path,
    given: Mapping[str, Any],
    chosen: list[int] | None,
    what: dict[str, Any],
    json: Path | None,
) -> int:
    """Train the run of an unpacked bundle again, and compare; return the exit code."""
    from clip_hba_behavior.verification.certificate import certificate
    from clip_hba_behavior.verification.text import epoch_block, summary
    from clip_hba_behavior.verification.verify import verify_checkpoints

    with session() as here:
        found = verify_checkpoints(
            directory, given, chosen, None, here, lambda each: here.logger.info(epoch_block(each)), has_gaps=True
        )
    notes, problems = (
        tuple(_without(directory, path, each) for each in told) for told in (found.notes, found.problems)
    )
    found = dataclasses.replace(
        found, what=found.what | what | {"run": what["bundle"]}, notes=notes, problems=problems
    )
    print(summary(found))
    if json is not None:
        write_certificate(json, certificate(found))
    return found.word().exit_code()


def _without(directory: Path, path: Path, text: str) -> str:
    """Return a text that names no file of the temporary directory by its path."""
    return text.replace(f"{directory}/", "").replace(str(directory), str(path))


def _certify(path: Path | None, what: Mapping[str, Any], verdict: str, code: int, problems: Sequence[str]) -> None:
    if path is not None:
        content = {"verdict": verdict, "exit_code": code, "what": dict(what), "problems": list(problems)}
        write_certificate(path, headed("bundle", content))
