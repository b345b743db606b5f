"""A job of the standard library alone: writes down, a JSON line each, its start, every signal, and its end.

`recorder.py RECORD SECONDS [SIGNAL=ACTION ...]` works for SECONDS, or for one if SLURM has restarted it. An
action is `note` (also of signals without one), `exit:CODE`, or `requeue:CODE`: have SLURM requeue this job, then
exit with CODE.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

_WATCHED = ("HUP", "INT", "TERM", "USR1", "USR2", "CONT")


def job_name(environment: dict[str, str]) -> str:
    """What `scontrol requeue` calls this job: of an array, only this task."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def main() -> None:
    """Work until the time is over or a signal's action ends it."""
    record, seconds = Path(sys.argv[1]), float(sys.argv[2])
    actions = dict(each.split("=") for each in sys.argv[3:])
    started = time.time()
    if "SLURM_RESTART_COUNT" in os.environ:
        seconds = 1

    def write(event: str, **facts: Any) -> None:
        with record.open("a") as file:
            line = {"event": event, "time": time.time(), "restart": os.environ.get("SLURM_RESTART_COUNT")}
            file.write(json.dumps(line | facts) + "\n")

    def act(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name.removeprefix("SIG")
        write("signal", signal=name, after=round(time.time() - started, 2))
        action, _, code = actions.get(name, "note").partition(":")
        if action == "requeue":
            words = ["scontrol", "requeue", job_name(dict(os.environ))]
            before = time.time()
            done = subprocess.run(words, capture_output=True, text=True)
            took = round(time.time() - before, 2)
            write("requeue", code=done.returncode, message=done.stderr.strip(), took=took)
        if action != "note":
            write("exit", code=int(code))
            os._exit(int(code))

    for name in _WATCHED:
        signal.signal(signal.Signals[f"SIG{name}"], act)
    slurm = {name: value for name, value in os.environ.items() if name.startswith(("SLURM", "CUDA"))}
    write("start", slurm=slurm, process=os.getpid(), folder=str(Path.cwd()))
    while (rest := started + seconds - time.time()) > 0:
        time.sleep(min(rest, 0.2))
    write("end")


if __name__ == "__main__":
    main()
