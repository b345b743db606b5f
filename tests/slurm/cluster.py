"""A real SLURM of one node, without systemd: everything it owns is in one directory, and stops with it.

By hand: `python tests/slurm/cluster.py start DIR` prints the `export` line for a shell, `stop DIR` ends it.
"""

import argparse
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
FINISHED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"})
GRACE_TIME = 20  # seconds that a preempted job of `low` has
KILL_WAIT = 5  # seconds between TERM and KILL

# Declared CPUs are more than the machine's on purpose (config_overrides): the tests need room, not speed.
_CONFIGURATION = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge/socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
JobRequeue=1
KillWait={kill_wait}
MinJobAge=3600
ReturnToService=2
MaxArraySize=5001
MaxJobCount=20000
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd.log
SlurmctldPort={controller_port}
SlurmdPort={node_port}
{gpu_types}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Feature=fake {gpus} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_time}
PartitionName=low_without_grace Nodes={host} State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


class ClusterError(RuntimeError):
    """SLURM cannot be installed, started or asked."""


@dataclass(frozen=True)
class Cluster:
    """A running one-node SLURM, and what tests ask of it."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which `sbatch`, `squeue` and `scontrol` speak to this cluster."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return outside | {"SLURM_CONF": str(self.directory / "slurm.conf")}

    def command(self, *arguments: object) -> str:
        """Run a SLURM command and return what it printed; raise ClusterError with its message if it fails."""
        words = [str(each) for each in arguments]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr}{done.stdout}")
        return done.stdout

    def submit(self, script: str, *options: object, variables: Mapping[str, str] | None = None) -> str:
        """Submit the text of a batch script; returns the job id. `variables` are the job's, beside ours."""
        words = ["sbatch", "--parsable", *(str(each) for each in options)]
        environment = self.environment | dict(variables or {})
        done = subprocess.run(words, env=environment, input=script, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(words)} exited with {done.returncode}:\n{done.stderr}")
        return done.stdout.strip().split(";")[0]

    def show(self, job: str) -> list[dict[str, str]]:
        """The fields that `scontrol show job` has; one record each for the tasks of an array that have started."""
        lines = self.command("scontrol", "show", "job", "--oneliner", job).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if line]

    def states(self, job: str) -> dict[str, str]:
        """The state of a job, or of an array's tasks, by id: `{"7_0": "RUNNING", "7_[1-2]": "PENDING"}`."""
        found = {}
        for record in self.show(job):
            name = record["JobId"]
            if "ArrayTaskId" in record:
                task = record["ArrayTaskId"]
                name = f"{record['ArrayJobId']}_{task if task.isdecimal() else f'[{task}]'}"
            found[name] = record["JobState"]
        return found

    def state(self, job: str) -> str:
        """The one state of a job or of one array task."""
        states = set(self.states(job).values())
        if len(states) != 1:
            raise ClusterError(f"job {job} has more than one state: {self.states(job)}")
        return states.pop()

    def wait(self, job: str, states: str | Set[str] = FINISHED, timeout: float = 60) -> dict[str, str]:
        """Wait until a job, or every task of an array, is in one of the states; returns them."""
        wanted = {states} if isinstance(states, str) else states
        deadline = time.monotonic() + timeout
        while True:
            found = self.states(job)
            if set(found.values()) <= wanted:
                return found
            if time.monotonic() > deadline:
                records = "\n".join(str(record) for record in self.show(job))
                raise ClusterError(f"job {job}: {found}, not {sorted(wanted)}, after {timeout} s:\n{records}")
            time.sleep(0.2)

    def wait_for(self, condition: Callable[[], bool], failure: str, timeout: float = 60) -> None:
        """Wait until a condition holds; if it never does, raise ClusterError with `failure` and the logs."""
        if not _wait_for(condition, timeout):
            raise ClusterError(f"{failure}, after {timeout} s\n{self.log()}")

    def log(self) -> str:
        """The last lines of both daemons' logs."""
        return "\n".join(_tail(path) for path in sorted((self.directory / "log").glob("*")))

    def stop(self) -> None:
        """Cancel all jobs, stop the daemons, and end whatever is left of them."""
        stop(self.directory)


def start(directory: Path, *, cpus: int = 4, num_gpus: int = 2, timeout: float = 60) -> Cluster:
    """Install SLURM where it is missing, start it in a directory, and wait until its node is idle.

    Raises:
        ClusterError: with what was missing, or with the logs of the daemon that did not start.
    """
    _install()
    directory = directory.resolve()
    for name in ("munge", "state", "spool", "log"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    _configure(directory, cpus, num_gpus)
    cluster = Cluster(directory)
    try:
        _start_daemons(cluster, timeout)
    except (ClusterError, subprocess.SubprocessError, OSError) as error:
        log = cluster.log()
        stop(directory)
        raise ClusterError(f"SLURM did not start: {error}\n{log}") from error
    return cluster


def stop(directory: Path) -> None:
    """Stop the cluster of a directory; it may be half started, or stopped already."""
    directory = directory.resolve()
    cluster = Cluster(directory)
    if _daemon(directory / "slurmctld.pid"):
        # Cancelling waits for KillWait; the signal to all of a job's processes ends them now.
        for options in ([], ["--signal=KILL", "--full"]):
            words = ["scancel", "--user=root", *options]
            subprocess.run(words, env=cluster.environment, capture_output=True, timeout=60)
        _wait_for(lambda: _is_without_jobs(cluster), KILL_WAIT + 5)
    for name in ("slurmd.pid", "slurmctld.pid", "munge/munged.pid"):
        _end(_daemon(directory / name))
    # The keepers of running jobs (slurmstepd) outlive slurmd by design, and so does what the jobs started.
    for process in processes_of(directory):
        _end(process, signal.SIGKILL)


def processes_of(directory: Path) -> list[int]:
    """Processes that were started with this cluster's SLURM_CONF, by slurmd or in a job."""
    mark = f"SLURM_CONF={directory}/slurm.conf".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended
    return [process for process in found if process not in (os.getpid(), os.getppid())]


def _install() -> None:
    missing = [name for name in COMMANDS if not _which(name)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise ClusterError(f"SLURM is not installed ({missing[0]} is missing), and only root can install it")
    if not shutil.which("apt-get"):
        raise ClusterError(f"SLURM is not installed ({missing[0]} is missing), and there is no apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True, timeout=240)
        if done.returncode != 0:
            raise ClusterError(f"apt-get {' '.join(words)} exited with {done.returncode}: {done.stderr[-500:]}")


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _configure(directory: Path, cpus: int, num_gpus: int) -> None:
    if os.geteuid() != 0:
        raise ClusterError("slurmd and slurmctld are started as root here")
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 - 1024
    has_gpus = num_gpus > 0 and _make_fake_gpus(directory, num_gpus)
    controller_port, node_port = _free_ports(2)
    configuration = _CONFIGURATION.format(
        host=host,
        directory=directory,
        kill_wait=KILL_WAIT,
        grace_time=GRACE_TIME,
        controller_port=controller_port,
        node_port=node_port,
        cpus=cpus,
        memory=memory,
        gpu_types="GresTypes=gpu" if has_gpus else "",
        gpus=f"Gres=gpu:fake:{num_gpus}" if has_gpus else "",
    )
    (directory / "slurm.conf").write_text(configuration)
    devices = f"{directory}/fakegpu[0-{num_gpus - 1}]"
    gpus = f"NodeName={host} Name=gpu Type=fake File={devices}\n" if has_gpus else ""
    (directory / "gres.conf").write_text(gpus)
    key = directory / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)


def _make_fake_gpus(directory: Path, number: int) -> bool:
    """Device nodes like /dev/null; slurmd refuses plain files. False where nodes cannot be made."""
    for index in range(number):
        path = directory / f"fakegpu{index}"
        try:
            if not path.exists():
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            return False
    return True


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _start_daemons(cluster: Cluster, timeout: float) -> None:
    directory = cluster.directory
    munge = directory / "munge"
    # Its own key and socket, so that a munged of the system, or of another cluster, is not touched.
    files = {"socket": "socket", "key-file": "key", "pid-file": "munged.pid", "seed-file": "seed"}
    options = [f"--{option}={munge / name}" for option, name in files.items()]
    _run(cluster, "munged", "--force", *options, f"--log-file={directory}/log/munged.log")
    _run(cluster, "slurmctld", "-c", "-f", directory / "slurm.conf")
    _run(cluster, "slurmd", "-c", "-f", directory / "slurm.conf")
    if not _wait_for(lambda: "idle" in _node_state(cluster), timeout):
        raise ClusterError(f"the node is not idle after {timeout} s: {_node_state(cluster)}")


def _run(cluster: Cluster, name: str, *arguments: object) -> None:
    """Start a daemon: it returns when it has gone into the background."""
    words = [_which(name) or name, *(str(each) for each in arguments)]
    # A daemon keeps its output open: a file, since a pipe would never end.
    with (cluster.directory / "log" / f"{name}.start").open("w") as output:
        done = subprocess.run(words, env=cluster.environment, stdout=output, stderr=output, timeout=60)
    if done.returncode != 0:
        raise ClusterError(f"{name} exited with {done.returncode}")


def _node_state(cluster: Cluster) -> str:
    try:
        return cluster.command("sinfo", "--noheader", "--format=%t").strip()
    except (ClusterError, subprocess.TimeoutExpired) as error:
        return str(error)


def _is_without_jobs(cluster: Cluster) -> bool:
    try:
        return not cluster.command("squeue", "--noheader")
    except (ClusterError, subprocess.TimeoutExpired):
        return False


def _wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def _daemon(pid_file: Path) -> int | None:
    """The process of a pid file, if it is still this cluster's."""
    try:
        process = int(pid_file.read_text())
        command = Path(f"/proc/{process}/cmdline").read_text()
    except (OSError, ValueError):
        return None
    return process if str(pid_file.parent) in command else None


def _end(process: int | None, first: signal.Signals = signal.SIGTERM) -> None:
    """End a process, and wait for its end; KILL after ten seconds."""
    for number in (first, signal.SIGKILL):
        try:
            if process is None:
                return
            os.kill(process, number)
        except ProcessLookupError:
            return
        if _wait_for(lambda: not _is_running(process), 10):
            return


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _tail(path: Path, num_lines: int = 40) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join([f"--- {path.name}", *lines[-num_lines:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Start or stop a cluster from a shell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cpus", type=int, default=4)
    options = parser.parse_args(arguments)
    if options.action == "stop":
        stop(options.directory)
        return 0
    try:
        cluster = start(options.directory, cpus=options.cpus)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"export SLURM_CONF={cluster.directory}/slurm.conf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
