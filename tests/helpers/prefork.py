"""A process that has imported everything, and forks the processes of a run from it: a start without its five seconds.

A forked process runs `pretrain_llama3_synE.py` from its first line to its end, in the environment that torchrun sets.
The rest of torchrun's part, the rendezvous store and the end of all with the first that fails, is
`tests.helpers.launch.ForkedRun`'s.

One JSON object a line. Asked: {"argv", "env", "cwd", "output"} → {"pid"}; {"poll": [pid, …]} → {"statuses": [int or
null, …]}, a status being minus the signal that ended the process.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

from tests.helpers.commands import ROOT


def serve() -> dict[str, Any] | None:
    """Answer until stdin ends. In a forked child: returns what it is to run."""
    statuses: dict[int, int | None] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            for pid in request["poll"]:
                if statuses[pid] is None:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    statuses[pid] = os.waitstatus_to_exitcode(status) if ended else None
            answer: dict[str, Any] = {"statuses": [statuses[pid] for pid in request["poll"]]}
        else:
            pid = os.fork()
            if pid == 0:
                return request
            statuses[pid] = None
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Stand where a process started for `request` would stand."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nowhere), (1, output), (2, output)):
        os.dup2(source, target)
    os.setsid()  # as torchrun starts its processes
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    sys.argv = [str(ROOT / "pretrain_llama3_synE.py"), *request["argv"]]


def import_everything() -> None:
    """What a run imports until its first step, and nothing that starts a thread."""
    import pretrain_llama3_synE

    pretrain_llama3_synE.quiet_megatron()
    import torch
    from torch.distributed.checkpoint import filesystem  # noqa: F401

    import megatron_synE.training.loop
    import megatron_synE.training.setup  # noqa: F401

    torch.set_num_threads(1)
    assert len(os.listdir("/proc/self/task")) == 1, "a process that forks has one thread"


if __name__ == "__main__":
    import_everything()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    wanted = serve()
    if wanted is not None:
        become(wanted)
        runpy.run_path(sys.argv[0], run_name="__main__")
