import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.distributed import (
    Process,
    default_nproc,
    gather_objects,
    launch,
    run_reporting,
    start_process,
    sum_over_processes,
)
from utils.errors import PansError
from utils.slurm import launched

REPOSITORY = Path(__file__).parents[2]
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")

# A program such as run.py: `program.py MODE NPROC` starts itself in NPROC processes.
PROGRAM = """
import json, os, sys, time
import torch
from utils.errors import PansError
from utils.slurm import launched
from utils.distributed import (
    end_process, first_on_each_machine, gather_objects, launch, run_reporting,
    start_process, sum_over_processes
)

def describe(process):
    total = sum_over_processes(torch.tensor([process.rank + 1.0, 10.0])).tolist()
    return {
        "rank": process.rank, "local_rank": process.local_rank, "world_size": process.world_size,
        "main": process.is_main, "device": process.device.type, "total": total,
        "threads": os.environ["OMP_NUM_THREADS"],
    }

# torch.distributed.launch puts --local-rank=N before the program's own words.
mode, *nproc = [word for word in sys.argv[1:] if not word.startswith("--local-rank=")]

def work():
    process = start_process()
    if mode == "sums":
        descriptions = gather_objects(describe(process))
        if process.is_main:
            print(json.dumps(descriptions))
        end_process()
        return
    if mode == "first":
        with first_on_each_machine(process):
            print(f"{process.rank} in\\n", end="", flush=True)
            time.sleep(1 - process.local_rank)
            print(f"{process.rank} out\\n", end="", flush=True)
        end_process()
        return
    if mode == "user error" and process.rank == 1:
        raise PansError("no data in x; run y")
    if mode == "bug" and process.rank == 1:
        raise RuntimeError("a bug")
    if mode == "kill" and process.rank == 1:
        os.kill(os.getpid(), 9)
    if mode == "abort" and process.rank == 1:
        os.abort()  # as NCCL's watchdog does after --timeout
    print("waiting\\n", end="", flush=True)  # in one piece, whoever prints at the same time
    if mode != "wait":
        sum_over_processes(torch.ones(1))
    time.sleep(20)

if __name__ == "__main__":
    sys.exit(run_reporting(work) if launched() else launch(sys.argv, int(nproc[0])))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def environment(folder: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    # Without GPUs, so that gloo is tested on every machine; temporary files where they show.
    own = {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder)}
    return clean | own


def run(program: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=environment(program.parent),
        capture_output=True,
        text=True,
        timeout=60,
    )


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_launch_joins_processes_and_shares_the_cores(program: Path) -> None:
    ended = run(program, str(program), "sums", "2")
    assert ended.returncode == 0, ended.stderr
    first, second = json.loads(ended.stdout)
    threads = first["threads"]
    assert 1 <= int(threads) <= max(1, len(os.sched_getaffinity(0)) // 2)
    shared = {"world_size": 2, "device": "cpu", "total": [3.0, 20.0], "threads": threads}
    assert first == {"rank": 0, "local_rank": 0, "main": True} | shared
    assert second == {"rank": 1, "local_rank": 1, "main": False} | shared
    assert [path.name for path in program.parent.iterdir()] == ["program.py"]


def test_the_first_process_of_a_machine_finishes_before_the_others_start(program: Path) -> None:
    ended = run(program, str(program), "first", "2")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["0 in", "0 out", "1 in", "1 out"]


def test_user_error_of_one_process_ends_all_with_one_line(program: Path) -> None:
    ended = run(program, str(program), "user error", "2")
    assert ended.stderr == "error: no data in x; run y\n"
    assert ended.returncode == 2


def test_killed_process_ends_all_and_is_named(program: Path) -> None:
    ended = run(program, str(program), "kill", "2")
    assert ended.returncode == 1
    assert ended.stderr.endswith(
        "error: process 1 was ended by SIGKILL, most likely out of memory\n"
    )


def test_a_process_aborted_by_nccl_is_reported_with_the_remedy(program: Path) -> None:
    ended = run(program, str(program), "abort", "2")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "error: process 1 was ended by SIGABRT; on GPUs that most likely means: a process has "
        "waited in vain for another one, which hangs or is far slower; check the machines and "
        "their network, or raise --timeout"
    )


def test_bug_under_torch_distributed_launch_ends_all_with_its_traceback(program: Path) -> None:
    launcher = ("-m", "torch.distributed.launch", f"--master_port={free_port()}")
    ended = run(program, *launcher, "--nproc_per_node=2", str(program), "bug")
    assert ended.returncode == 1
    assert ended.stderr.count("RuntimeError: a bug\nin process 1 of 2\n") == 1
    # The other process has lost its connection, which is not the cause.
    assert "in process 0 of 2" not in ended.stderr


def test_signal_ends_all_processes(program: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(program), "wait", "2"],
        env=environment(program.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["waiting\n", "waiting\n"]
        process.terminate()
        # The pipe ends only when no process of them holds it any more.
        _, errors = process.communicate(timeout=60)
    assert errors == "error: stopped by SIGTERM\n"
    assert process.returncode == 128 + signal.SIGTERM


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's environment at all."""
    for name in (*VARIABLES, "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def variables(alone: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A launcher's environment: the second process of two on this machine."""
    good = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in (good | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}).items():
        alone.setenv(name, value)
    return alone


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", None, "the launcher's environment lacks RANK; start with torchrun"),
        ("WORLD_SIZE", None, "the launcher's environment lacks WORLD_SIZE;"),
        ("MASTER_ADDR", None, "the launcher's environment lacks MASTER_ADDR;"),
        ("MASTER_PORT", "", "the launcher's environment lacks MASTER_PORT;"),
        ("RANK", "first", "variable RANK should be a whole number, got 'first'"),
        ("RANK", "2", "RANK 2 should be below WORLD_SIZE 2"),
        ("LOCAL_RANK", "-1", "variable LOCAL_RANK should be a whole number, got '-1'"),
        ("LOCAL_RANK", None, "neither LOCAL_RANK nor --local_rank"),
    ],
)
def test_inconsistent_environments_are_refused(
    variables: pytest.MonkeyPatch, name: str, value: str | None, message: str
) -> None:
    if value is None:
        variables.delenv(name)
    else:
        variables.setenv(name, value)
    assert launched()
    with pytest.raises(PansError, match=re.escape(message)):
        start_process()


def test_restarts_of_several_nodes_need_fresh_stores(variables: pytest.MonkeyPatch) -> None:
    torchrun = {
        "GROUP_WORLD_SIZE": "2",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in torchrun.items():
        variables.setenv(name, value)
    with pytest.raises(PansError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every node"):
        start_process()
    variables.setenv("WORLD_SIZE", "1")
    variables.setenv("RANK", "0")
    variables.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in (
        ("GROUP_WORLD_SIZE", "1"),
        ("TORCHELASTIC_MAX_RESTARTS", "0"),
        ("TORCHELASTIC_USE_AGENT_STORE", "False"),
    ):
        with variables.context() as patch:
            patch.setenv(name, value)
            assert start_process().world_size == 1


def test_local_rank_of_the_environment_overrides_the_flag(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("WORLD_SIZE", "1")
    variables.setenv("RANK", "0")
    variables.setenv("LOCAL_RANK", "0")
    variables.setattr(torch.cuda, "is_available", lambda: False)
    assert start_process(local_rank=5).local_rank == 0
    variables.delenv("LOCAL_RANK")
    assert start_process(local_rank=5).local_rank == 5


def test_fewer_gpus_than_processes_are_refused(variables: pytest.MonkeyPatch) -> None:
    variables.setattr(torch.cuda, "is_available", lambda: True)
    variables.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PansError, match=r"2 processes on this machine .* and 1 can be seen"):
        start_process()
    with pytest.raises(PansError, match=r"4 processes on this machine .* and 1 can be seen"):
        launch(["program.py"], 4)


def test_default_is_one_process_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert default_nproc() == 8
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert default_nproc() == 1


def test_single_process_is_a_world_of_its_own(alone: pytest.MonkeyPatch) -> None:
    alone.setattr(torch.cuda, "is_available", lambda: False)
    assert not launched()
    process = start_process()
    assert process == Process(0, 0, 1, torch.device("cpu"))
    assert process.is_main
    value = torch.tensor([1.0, 2.0])
    total = sum_over_processes(value)
    assert torch.equal(total, value)
    assert total.data_ptr() != value.data_ptr()
    assert gather_objects("x") == ["x"]


def fail(error: BaseException) -> int:
    def work() -> None:
        raise error

    return run_reporting(work)


@pytest.mark.usefixtures("alone")
def test_reports_of_a_single_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting(lambda: None) == 0
    assert fail(PansError("no data")) == 2
    assert capsys.readouterr().err == "error: no data\n"
    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "error: stopped by SIGINT\n"
    assert fail(ValueError("a bug")) == 1
    report = capsys.readouterr().err
    assert report.startswith("Traceback")
    assert report.endswith("ValueError: a bug\n")


def test_fault_of_all_processes_is_reported_once(
    alone: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        alone.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        assert fail(PansError("no data")) == 2
    assert capsys.readouterr().err == "error: no data\n"
