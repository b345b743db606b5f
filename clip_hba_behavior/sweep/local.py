"""A sweep on this machine: processes that take chain after chain, so that imports are paid once each."""

import json
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from clip_hba_behavior.reproducibility.record.lease import holder_of
from clip_hba_behavior.reproducibility.record.signals import INTERRUPTED, StopRequest, stopping_on_signals
from clip_hba_behavior.reproducibility.state.errors import InterruptedRunError, StoppedError
from clip_hba_behavior.run.advice import command_line, go_on_with
from clip_hba_behavior.run.workers import SECONDS_BETWEEN_LOOKS, check_workers, workers
from clip_hba_behavior.sweep.plan import Run
from clip_hba_behavior.sweep.status import Status
from clip_hba_behavior.sweep.sweep import Chain, Sweep

_sweep: Sweep | None = None  # of a worker: sent once, not with each of thousands of chains
_MAX_BREAKS = 3  # a worker that dies thrice without any run coming to its end is no accident


def run_locally(
    sweep: Sweep, stop: StopRequest, report: Callable[[Run, Status], None], look: Callable[[], None]
) -> None:
    """Execute every chain of a sweep; a run that fails ends its chain, not the others.

    A worker that is killed takes its run with it; another resumes it.

    Args:
        sweep: what to do.
        stop: when a signal has come, the workers are told to save and leave; no further run begins.
        report: called with each run that ended.
        look: called every half a second, to tell of the progress.

    Raises:
        InterruptedRunError: a signal came; what is done is kept.
        StoppedError: workers die again and again.
    """
    waiting = sweep.chains()
    breaks = 0
    while waiting:
        _check(stop)
        before = len(waiting)
        try:
            waiting = _pass(sweep, waiting, stop, report, look)
        except _BrokenPassError as broken:
            breaks = breaks + 1 if len(broken.waiting) == before else 0
            waiting = broken.waiting
            if breaks >= _MAX_BREAKS:
                again = command_line("sweep", "resume", sweep.copied_file())
                raise StoppedError(
                    f"{_MAX_BREAKS} times a worker was killed, and no chain of runs came to its end in between\n"
                    f"  is there memory for {sweep.num_processes()} at once? The sweep's key processes sets it\n"
                    f"  what was complete stays; {go_on_with(again)}"
                ) from None


def _check(stop: StopRequest) -> None:
    if stop.name is not None:
        raise InterruptedRunError(f"the sweep was stopped by {stop.name}; its runs are saved")


class _BrokenPassError(Exception):
    def __init__(self, waiting: list[Chain]) -> None:
        super().__init__()
        self.waiting = waiting


def _pass(
    sweep: Sweep,
    chains: list[Chain],
    stop: StopRequest,
    report: Callable[[Run, Status], None],
    look: Callable[[], None],
) -> list[Chain]:
    """Execute chains with one pool; return those that are left."""
    left = dict(enumerate(chains))
    with workers(sweep.num_processes(), "clip_hba_behavior.sweep.work", _begin_worker, (sweep,)) as pool:
        try:
            futures: dict[Future[list[tuple[Run, Status]]], int] = {
                pool.submit(_execute_chain, chain): number for number, chain in left.items()
            }
        except (BrokenProcessPool, EOFError, ConnectionError):  # a worker, or the server of all, was killed by now
            _check(stop)
            raise _BrokenPassError(list(left.values())) from None
        running = set(futures)
        while running:
            done, running = wait(running, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
            _check(stop)
            for future in done:
                try:
                    outcomes = future.result()
                except BrokenProcessPool:
                    raise _BrokenPassError(list(left.values())) from None
                for run, status in outcomes:
                    report(run, status)
                del left[futures[future]]
            if running and not done:
                try:
                    check_workers(pool)
                except BrokenProcessPool:
                    raise _BrokenPassError(list(left.values())) from None
            look()
    return list(left.values())


def _begin_worker(sweep: Sweep) -> None:
    global _sweep
    _sweep = sweep


def _execute_chain(chain: Chain) -> list[tuple[Run, Status]]:
    from clip_hba_behavior.sweep.work import execute  # the process that waits for the workers trains nothing

    assert _sweep is not None  # a worker begins with it
    number, runs = chain
    outcomes = []
    with stopping_on_signals(
        second="changes nothing"
    ) as stop:  # Ctrl-C comes from the terminal and from the parent
        try:
            for run in runs:
                stop.check()
                status = execute(_sweep.plans[number], run)
                outcomes.append((run, status))
                if status.state != "done":
                    break  # the longer ones continue from it
            stop.check()
        except InterruptedRunError:
            os._exit(INTERRUPTED)  # a worker that returned would be given the next chain
    return outcomes


def cancel_local(sweep: Sweep) -> str:
    """Ask the process of this machine that executes the sweep to save and leave."""
    try:
        holder = json.loads((sweep.directory / "run.lock").read_bytes())
    except (OSError, ValueError):
        return "no process of this machine executes the sweep"
    if holder.get("host") != socket.gethostname():
        return f"the sweep is executed on {holder.get('host')}: cancel it there"
    if holder_of(sweep.directory) is None:
        return "no process of this machine executes the sweep"
    os.kill(int(holder["process"]), signal.SIGTERM)
    again = go_on_with(command_line("sweep", "resume", sweep.copied_file()))
    return f"asked process {holder['process']} to save and leave\n  {again}"
