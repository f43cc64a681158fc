"""Processes: starting several under torch's own launcher, joining them, and adding up over them.

Every function also works in a single process without a process group, where the sum over all
processes is the value itself.
"""

import logging
import os
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from errors import USER_ERROR, PansError

_SIGNAL_BASE = 128
"""Shells report a process that a signal ended as this number plus the signal's."""

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")


class LaunchError(PansError):
    """The launcher's environment, the machine's GPUs and the number of processes do not fit."""


@dataclass(frozen=True)
class Process:
    """This process among all: `rank` in [0, world_size), `local_rank` counts on this machine."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files and reports."""
        return self.rank == 0


def launched() -> bool:
    """Whether torchrun, torch.distributed.launch or `launch` started this process."""
    return any(name in os.environ for name in _LAUNCHER_VARIABLES[:2])


def default_nproc() -> int:
    """One process per visible GPU, one on a machine without."""
    return torch.cuda.device_count() or 1


def _read_number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise LaunchError(
            f"the environment variable {name} should be a whole number, got {text!r}; "
            "start with torchrun, or unset " + ", ".join(_LAUNCHER_VARIABLES)
        )
    return int(text)


def _read_ranks(environment: Mapping[str, str], local_rank: int | None) -> tuple[int, int, int]:
    """(rank, local_rank, world_size) from a launcher's environment; LOCAL_RANK wins."""
    missing = [name for name in _LAUNCHER_VARIABLES if not environment.get(name)]
    if missing:
        raise LaunchError(
            f"the launcher's environment lacks {', '.join(missing)}; "
            "start with torchrun, or unset " + ", ".join(_LAUNCHER_VARIABLES)
        )
    rank, world_size = _read_number(environment, "RANK"), _read_number(environment, "WORLD_SIZE")
    if rank >= world_size:
        raise LaunchError(f"RANK {rank} should be below WORLD_SIZE {world_size}; use torchrun")
    if "LOCAL_RANK" in environment:
        local_rank = _read_number(environment, "LOCAL_RANK")
    if local_rank is None:
        raise LaunchError(
            "neither LOCAL_RANK nor --local_rank tells this process its GPU; use torchrun"
        )
    return rank, local_rank, world_size


def _refuse_missing_gpu(needed: int) -> None:
    gpus = torch.cuda.device_count()
    if needed > gpus:
        raise LaunchError(
            f"{needed} processes on this machine want a GPU each and {gpus} can be seen; "
            f"start at most {gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on CPUs"
        )


def start_process(local_rank: int | None = None) -> Process:
    """Join the other processes, if there are any: NCCL on GPUs, gloo on CPUs.

    Args:
        local_rank: what the launcher passed as --local_rank; the variable LOCAL_RANK wins over it.

    Raises:
        LaunchError: the environment is incomplete, or there are fewer GPUs than processes.
    """
    if launched():
        rank, local_rank, world_size = _read_ranks(os.environ, local_rank)
    else:
        rank, local_rank, world_size = 0, local_rank or 0, 1
    device = torch.device("cpu")
    if torch.cuda.is_available():
        _refuse_missing_gpu(local_rank + 1)
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if world_size > 1:
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            rank=rank,
            world_size=world_size,
            device_id=device if on_gpu else None,
        )
    return Process(rank, local_rank, world_size, device)


def end_process() -> None:
    """Leave the other processes; call it only where all of them do."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, of any shape; a new tensor, the same on all of them."""
    total = tensor.clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


@contextmanager
def first_on_each_machine(process: Process) -> Iterator[None]:
    """Run the body on each machine's first process, then on all others; all of them enter."""
    is_first = process.local_rank == 0
    if dist.is_initialized() and not is_first:
        dist.barrier()
    yield
    if dist.is_initialized() and is_first:
        dist.barrier()


def gather_objects(value: T) -> list[T]:
    """Every process's value, in the order of ranks, on all of them; values must be picklable."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _is_first_to_fail() -> bool:
    """Whether no other process of this launch and machine has claimed the report before.

    A fault that all processes share would otherwise be told once a process, and a process that
    merely lost its connection to the failed one would bury the cause under its own traceback.
    """
    reply_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not reply_file:
        return True
    attempt_folder = Path(reply_file).parent.parent
    claim = attempt_folder / f"reported-{os.environ.get('MASTER_PORT')}"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def run_reporting(work: Callable[[], None]) -> int:
    """Run this process's work and return its exit code: 0, 1 for a bug, 2 for a user's error.

    Of several processes that fail, the first one prints: a `PansError` as one line, anything else
    as its traceback. A process that fails among others leaves at once instead of returning.
    """
    try:
        work()
    except PansError as error:
        return _fail(USER_ERROR, f"error: {error}")
    except KeyboardInterrupt:
        return _fail(_SIGNAL_BASE + signal.SIGINT, "error: stopped by SIGINT")
    except Exception as error:
        if launched():
            error.add_note(f"in process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}")
        return _fail(1, traceback.format_exc())
    return 0


def _fail(exit_code: int, report: str) -> int:
    if _is_first_to_fail():
        print(report.rstrip(), file=sys.stderr)
    if dist.is_initialized():
        # A collective that never ended keeps a thread of gloo's, on which the interpreter's own
        # shutdown would hang or abort with another exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def _outcome(error: ChildFailedError) -> tuple[int, str | None]:
    """Exit code of a failed launch, and what is left to say after the processes' own reports."""
    exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    if USER_ERROR in exit_codes.values():
        return USER_ERROR, None
    for rank, exit_code in exit_codes.items():
        # SIGTERM is how the launcher ends the others.
        if exit_code < 0 and exit_code != -signal.SIGTERM:
            return 1, f"error: process {rank} was ended by {signal.Signals(-exit_code).name}"
    return 1, "error: a process failed; see its report above"


def launch(command: Sequence[str], nproc: int) -> int:
    """Run `python COMMAND...` in `nproc` processes on this machine; returns the exit code.

    The work is torch's own launcher's: once a process fails, the others are ended. Each process
    is expected to end through `run_reporting`.

    Raises:
        LaunchError: there are GPUs, but fewer than processes.
    """
    if torch.cuda.is_available():
        _refuse_missing_gpu(nproc)
    # torch's launcher would give every process all cores, and torchrun a single one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // nproc)))
    with tempfile.TemporaryDirectory(prefix="pans_") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
        )
        return _run_to_end(config, command)


def _run_to_end(config: LaunchConfig, command: Sequence[str]) -> int:
    # The launcher's own log would wrap one line about a missing file into a page about ranks.
    logging.disable(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        exit_code, report = _outcome(error)
        if report is not None:
            print(report, file=sys.stderr)
        return exit_code
    except SignalException as caught:
        if caught.sigval != signal.SIGINT:  # which is passed on to the processes: they report it
            print(f"error: stopped by {caught.sigval.name}", file=sys.stderr)
        return _SIGNAL_BASE + caught.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0
