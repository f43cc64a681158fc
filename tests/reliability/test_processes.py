"""Signals, kills and hangs of whole processes, as a user meets them."""

import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LONG = ("--epochs", "60", "--val_interval", "60", "--ckpt_interval", "5")


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return found


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def end(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and the lines of stderr that tell no progress."""
    _, errors = process.communicate(timeout=120)
    errors = re.sub(r"[^\r\n]*\|[^\r\n]*it/s[^]]*\]", "", errors)
    errors = re.sub(r"^epoch \d+/\d+  .*$", "", errors, flags=re.MULTILINE)
    return process.returncode, [line for line in re.split(r"[\r\n]", errors) if line.strip()]


def weights(runs: Any) -> dict[str, torch.Tensor]:
    return runs.state()["model_state"]


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_sigint_saves_and_says_how_to_resume(runs: Any) -> None:
    process = runs.start(*LONG)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    process.send_signal(signal.SIGINT)
    code, lines = end(process)
    assert code == 128 + signal.SIGINT
    assert lines[0] == "SIGINT: saving after this step"
    assert re.match(
        r"error: stopped by SIGINT: step \d+ is saved in .*/x\.pth; resume with: python ", lines[1]
    )
    assert lines[1].endswith(" ".join(LONG))
    assert len(lines) == 2
    step = runs.state()["iteration"]
    assert f"step {step} is saved" in lines[1]
    assert 20 <= step < 240


def test_two_processes_stop_together_and_continue_bit_for_bit(runs: Any) -> None:
    flags = (*LONG, "--nproc", "2", "--batch_size", "1")
    whole = runs.start(*flags, "--name", "whole")
    assert end(whole)[0] == 0
    process = runs.start(*flags)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    process.terminate()  # torch's launcher passes it on to both
    code, lines = end(process)
    assert code == 128 + signal.SIGTERM
    (report,) = [line for line in lines if line.startswith("error: ")]
    assert re.match(r"error: stopped by SIGTERM: step \d+ is saved in .*--nproc 2", report)
    assert 20 <= runs.state()["iteration"] < 240
    assert end(runs.start(*flags))[0] == 0
    assert_same_weights(weights(runs), runs.state("whole")["model_state"])


def test_torchrun_restarts_a_killed_process_and_it_continues(runs: Any) -> None:
    flags = (*LONG, "--batch_size", "1")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--max-restarts=1")
    launcher += ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    process = runs.start(*flags, launcher=launcher)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert re.search(r"continues \S+x\.pth: epoch \d+ of 60, ", output)
    assert runs.state()["iteration"] == 240
    steps = [step for step, _ in runs.points("train/loss")]
    assert steps == list(range(1, 241))


def test_a_killed_loader_process_is_named(runs: Any) -> None:
    process = runs.start(*LONG, "--num_workers", "1")
    wait_for((runs.checkpoints / "x.pth").exists, process)
    (worker,) = [pid for pid in children(process.pid) if is_loader(pid)]
    os.kill(worker, signal.SIGTERM)  # from another process: it continues
    os.kill(worker, signal.SIGINT)
    step = runs.state()["iteration"]
    wait_for(lambda: runs.state()["iteration"] > step, process)
    os.kill(worker, signal.SIGKILL)
    code, lines = end(process)
    assert code == 1
    assert re.match(r"error: a? ?loader process .* most likely out of memory", lines[0])
    assert len(lines) == 1


def is_loader(pid: int) -> bool:
    return b"tiny.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # which nobody has collected yet


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 30
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    assert [pid for pid in pids if is_alive(pid)] == []


def test_no_process_outlives_a_killed_launcher(runs: Any) -> None:
    """Two processes, each with a loader process, one of which is stopped."""
    flags = (*LONG, "--nproc", "2", "--batch_size", "1", "--num_workers", "1")
    process = runs.start(*flags)
    wait_for((runs.checkpoints / "x.pth").exists, process)
    workers = children(process.pid)
    assert len(workers) == 2
    loaders = [child for worker in workers for child in children(worker)]
    os.kill(loaders[0] if loaders else workers[0], signal.SIGSTOP)
    # To another launcher that comes meanwhile the run is taken, and that is one line.
    second = runs.start(*flags)
    code, lines = end(second)
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: run x is running already: process {process.pid} on ")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until_gone([*workers, *loaders])
    third = runs.start(*flags)  # whose place is free again
    wait_for(lambda: runs.state()["iteration"] >= 40, third)
    third.kill()
    third.communicate()


def test_two_processes_handle_sigusr1_and_sighup(runs: Any) -> None:
    flags = (*LONG, "--ckpt_interval", "60", "--nproc", "2", "--batch_size", "1")
    process = runs.start(*flags, "--crop_size", "192")  # steps slow enough to be interrupted
    logs = runs.folder / "logs/streethazards/x"
    wait_for(lambda: list(logs.glob("*tfevents*")), process)

    def saved() -> bool:
        process.send_signal(signal.SIGUSR1)  # ignored before the first step
        return (runs.checkpoints / "x.pth").exists()

    wait_for(saved, process)
    assert 0 < runs.state()["iteration"] < 240
    process.send_signal(signal.SIGHUP)
    code, lines = end(process)
    assert code == 128 + signal.SIGHUP
    assert any(line.startswith("error: stopped by SIGHUP: step ") for line in lines)
    assert 0 < runs.state()["iteration"] < 240


def tasks(runs: Any, count: int, **variables: str) -> list[subprocess.Popen[str]]:
    """What srun starts: the same command so many times."""
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": str(count), "SLURM_NNODES": "1"}
    step |= {"SLURM_NODELIST": "node1", "SLURM_NODEID": "0", **variables}
    return [
        runs.start("--epochs", "1", "--batch_size", "1", environment={
            **step, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)
        })
        for number in range(count)
    ]  # fmt: skip


def test_tasks_of_srun_are_the_processes_of_one_run(runs: Any) -> None:
    for process in tasks(runs, 2, SLURM_STEP_ID="0"):
        code, lines = end(process)
        assert code == 0, lines
    assert runs.state()["world_size"] == 2
    assert runs.state()["iteration"] == 4


def test_tasks_without_ranks_train_nothing(runs: Any) -> None:
    for process in tasks(runs, 2):
        code, lines = end(process)
        assert code == 2
        assert len(lines) == 1
        assert "SLURM gives this job 2 tasks" in lines[0]
    assert not runs.checkpoints.exists()


def meet(runs: Any, **variables: str) -> tuple[int, list[str]]:
    """What the first of two processes says that does not find the other."""
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    return end(runs.start("--timeout", "2", environment={**environment, **variables}))


def test_a_taken_port_is_one_line(runs: Any) -> None:
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        code, lines = meet(runs, MASTER_PORT=port)
    assert code == 2
    assert lines[-1].startswith(f"error: port {port} (MASTER_PORT) is taken by another program")
    assert not [line for line in lines if "Traceback" in line]


def test_an_unknown_host_is_one_line(runs: Any) -> None:
    code, lines = meet(runs, MASTER_ADDR="no.such.host.invalid", MASTER_PORT="29999")
    assert code == 2
    assert lines[-1].startswith("error: the host no.such.host.invalid (MASTER_ADDR) is unknown")
    assert not [line for line in lines if "Traceback" in line]


def test_a_shell_that_allows_few_files_is_reported_at_start_up(runs: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = runs.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30)))
    code, lines = end(process)
    assert code == 2
    assert lines == [
        "error: this shell allows 30 open files, and a run needs 128 or more; raise the limit "
        "(ulimit -n 4096)"
    ]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
