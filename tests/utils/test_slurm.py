"""srun's variables as ranks."""

import pytest

from utils.errors import PansError
from utils.slurm import first_host, ranks_of_step

STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[007-008,11]",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
}


def test_a_task_on_several_nodes() -> None:
    assert ranks_of_step(STEP) == {
        "RANK": "4",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "5",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu007",
        "MASTER_PORT": str(15000 + 31 * 77),
    }
    assert ranks_of_step({**STEP, "SLURM_NODEID": "1"})["LOCAL_WORLD_SIZE"] == "2"


def test_one_node_needs_no_name_of_it() -> None:
    alone = {**STEP, "SLURM_STEP_NODELIST": "gpu007", "SLURM_STEP_TASKS_PER_NODE": "5"}
    found = ranks_of_step({**alone, "SLURM_NODEID": "0"})
    assert (found["MASTER_ADDR"], found["LOCAL_WORLD_SIZE"]) == ("localhost", "5")


def test_passed_addresses_override_the_environment() -> None:
    found = ranks_of_step({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[007-009,12],login1", "gpu007"),
        ("gpu[3,5]", "gpu3"),
        ("r[1-2]n[4-5]", "r1n4"),
        ("r[01-02]-ib", "r01-ib"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # srun -n 1 in a job of several tasks
        {**STEP, "RANK": "0", "WORLD_SIZE": "2"},  # torchrun within a step
    ],
)
def test_nothing_to_join(environment: dict[str, str]) -> None:
    assert ranks_of_step(environment) == {}


@pytest.mark.parametrize("lacking", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"])
def test_tasks_without_ranks_are_refused(lacking: str) -> None:
    environment = {name: value for name, value in STEP.items() if name != lacking}
    with pytest.raises(PansError, match=r"5 tasks.*srun python run\.py"):
        ranks_of_step(environment)


def test_a_batch_script_is_not_an_srun_task() -> None:
    """sbatch gives it the first task's numbers."""
    script = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    with pytest.raises(PansError, match="4 tasks"):
        ranks_of_step({**script, "SLURM_NODELIST": "gpu1"})
