"""Processes started by a launcher: torchrun, or SLURM's srun as in `srun -n 8 python run.py`."""

import os
import re
from collections.abc import Mapping

from utils.errors import PansError

_FIRST_PORT, _PORTS = 15000, 15000  # below the ephemeral ports


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, torch.distributed.launch or `utils.distributed.launch` is the parent."""
    return "RANK" in environment or "WORLD_SIZE" in environment


def task_count(environment: Mapping[str, str]) -> str:
    """The number of tasks of the step, or of the job outside a step; "1" without SLURM."""
    return environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"


def ranks_of_step(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would set, from srun's; empty if srun started only one task.

    Raises:
        PansError: the job has several tasks, but this process was not started by srun.
    """
    if launched(environment):
        return {}
    is_step = "SLURM_STEP_ID" in environment or "SLURM_STEP_NUM_TASKS" in environment
    tasks = task_count(environment)
    if tasks == "1":
        return {}
    needed = ("SLURM_PROCID", "SLURM_LOCALID")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST")
    if not is_step or nodes is None or any(name not in environment for name in needed):
        raise PansError(
            f"SLURM gives this job {tasks} tasks, and srun has not started this process as one of "
            "them: start with srun python run.py, with torchrun, with --nproc N, or unset "
            "SLURM_NTASKS"
        )
    host = first_host(nodes) if set(nodes) & set(",[") else "localhost"
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": _tasks_here(environment, tasks),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or host,
        "MASTER_PORT": environment.get("MASTER_PORT") or _port(environment),
    }


def first_host(nodes: str) -> str:
    """The first of a list of nodes such as gpu[007-009,12],login1."""
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", nodes).partition(",")[0]


def _tasks_here(environment: Mapping[str, str], tasks: str) -> str:
    """This node's entry of a list such as 4(x2),3."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    counts: list[str] = []
    for entry in (text or tasks).split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        if found:
            counts += [found[1]] * int(found[2] or 1)
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else tasks


def _port(environment: Mapping[str, str]) -> str:
    """A port that all tasks of a step agree on, and that other steps most likely do not use."""
    numbers = (environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    job, step = (int(number) if number.isdecimal() else 0 for number in numbers)
    return str(_FIRST_PORT + (31 * job + step) % _PORTS)


def join_step() -> None:
    """Set the variables of this process, if srun has started it among others.

    Raises:
        PansError: see `ranks_of_step`.
    """
    os.environ.update(ranks_of_step(os.environ))
