"""A real Slurm for one test: two nodes of one CPU each on this machine, with its own keys, ports and folders."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NODES = ("node1", "node2")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credentials of its first start have expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=5
MinJobAge=600
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports[0]} CPUs=1
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports[1]} CPUs=1
PartitionName=test Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why Slurm cannot run here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root only"
    return None


def search_path() -> str:
    """Debian has the daemons in /usr/sbin, which is not on everybody's PATH."""
    return f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"


class Cluster:
    """Commands against the running cluster."""

    def __init__(self, configuration: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(configuration), "PATH": search_path()}

    def command(self, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> str:
        """A Slurm command's output; AssertionError where it fails."""
        result = subprocess.run(
            [str(argument) for argument in arguments], env={**self.environment, **environment}, cwd=cwd,
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert result.returncode == 0, f"{arguments}: {result.stderr}"
        return result.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start munge, the controller and two nodes in `folder`; stop them at the end.

    Raises:
        RuntimeError: the nodes did not come up in 90 seconds; the text says what the daemons logged.
    """
    for name in ("state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    ports = free_ports(3)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname(), folder=folder, nodes=NODES, ctld_port=ports[0], node_ports=ports[1:]
        )
    )
    cluster = Cluster(configuration)
    munge = [f"--{name}={folder / f'munge.{end}'}" for name, end in
             (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))]  # fmt: skip  # noqa: E501
    with ExitStack() as daemons:
        # --force: the test's folder may be readable to others; the key is not.
        start(daemons, cluster, folder, "munged", "--foreground", "--force", *munge)
        wait_for((folder / "munge.socket").exists, folder)
        start(daemons, cluster, folder, "slurmctld", "-D")
        for node in NODES:
            start(daemons, cluster, folder, "slurmd", "-D", "-N", node)
        wait_for(lambda: idle_nodes(cluster) == len(NODES), folder)
        yield cluster


def start(daemons: ExitStack, cluster: Cluster, folder: Path, *command: str) -> None:
    """Start a daemon in the foreground and have it stopped when `daemons` closes."""
    log = daemons.enter_context((folder / "daemons.log").open("a"))
    process = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    daemons.callback(stop, process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def idle_nodes(cluster: Cluster) -> int:
    result = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle"], env=cluster.environment, capture_output=True, text=True,
        check=False, timeout=30,
    )  # fmt: skip
    return len(result.stdout.splitlines())


def wait_for(condition: object, folder: Path, timeout_s: float = 90.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"Slurm did not come up:\n{logs}")
        time.sleep(0.1)


def free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
