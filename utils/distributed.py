"""Start processes under torch's own launcher, join them, and reduce over them.

Every function also works in a single process without a process group.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from utils.errors import USER_ERROR, PansError
from utils.faults import known_fault, signal_and_cause
from utils.gpu import refuse_old_gpu, usable_gpus
from utils.interruption import (
    COMMAND_VARIABLE,
    SAVING_SIGNAL,
    SIGNAL_BASE,
    Interrupted,
    handling,
    heeded_signals,
    stop_at_once,
    typed_command,
)
from utils.parent import as_parent, children, end_with_starter
from utils.progress import end_line_of_bars
from utils.slurm import launched

DEFAULT_TIMEOUT = 600.0
"""Default time-out of collectives, in seconds."""

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_host_group: Any = None
"""The gloo group of all processes, for small CPU messages; see `start_process`."""

_CLAIM = "reported-"
"""Prefix of the file by which a process claims to be the first to report."""

T = TypeVar("T")


class FailedElsewhere(PansError):
    """The main process's error, on another process."""


@dataclass(frozen=True)
class Process:
    """This process among all: `rank` in [0, world_size), `local_rank` on this machine.

    `host_group` is the gloo group of all processes, for small CPU messages; None for a single
    process.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0


def default_nproc() -> int:
    """One process per visible GPU, one on a machine without.

    Raises:
        PansError: torch cannot use this machine's GPUs.
    """
    return usable_gpus() or 1


def _read_number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise PansError(
            f"the environment variable {name} should be a whole number, got {text!r}; "
            "start with torchrun, or unset " + ", ".join(_LAUNCHER_VARIABLES)
        )
    return int(text)


def _read_ranks(environment: Mapping[str, str], local_rank: int | None) -> tuple[int, int, int]:
    """(rank, local_rank, world_size) from a launcher's environment; LOCAL_RANK overrides."""
    missing = [name for name in _LAUNCHER_VARIABLES if not environment.get(name)]
    if missing:
        raise PansError(
            f"the launcher's environment lacks {', '.join(missing)}; "
            "start with torchrun, or unset " + ", ".join(_LAUNCHER_VARIABLES)
        )
    rank, world_size = _read_number(environment, "RANK"), _read_number(environment, "WORLD_SIZE")
    if rank >= world_size:
        raise PansError(f"RANK {rank} should be below WORLD_SIZE {world_size}; use torchrun")
    if "LOCAL_RANK" in environment:
        local_rank = _read_number(environment, "LOCAL_RANK")
    if local_rank is None:
        raise PansError(
            "neither LOCAL_RANK nor --local_rank tells this process its GPU; use torchrun"
        )
    return rank, local_rank, world_size


def _refuse_missing_gpu(needed: int) -> None:
    gpus = torch.cuda.device_count()
    if needed > gpus:
        raise PansError(
            f"{needed} processes on this machine want a GPU each and {gpus} can be seen; "
            f"start at most {gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on CPUs"
        )


def start_process(
    local_rank: int | None = None, timeout_seconds: float = DEFAULT_TIMEOUT
) -> Process:
    """Join the other processes, if there are any: NCCL on GPUs, gloo on CPUs.

    Args:
        local_rank: the launcher's --local_rank; the variable LOCAL_RANK overrides it.
        timeout_seconds: how long a process waits for the others before it ends with an error.

    Raises:
        PansError: the environment is incomplete, there are fewer GPUs than processes, or torch
            cannot compute on this process's GPU.
    """
    if launched():
        rank, local_rank, world_size = _read_ranks(os.environ, local_rank)
        _refuse_stale_addresses(os.environ)
    else:
        rank, local_rank, world_size = 0, local_rank or 0, 1
    device = torch.device("cpu")
    if usable_gpus():
        _refuse_missing_gpu(local_rank + 1)
        device = torch.device("cuda", local_rank)
        refuse_old_gpu(device)
        torch.cuda.set_device(device)
    global _host_group
    if world_size > 1:
        for number in heeded_signals():
            # Otherwise a process that waits for a peer inside gloo would not end.
            signal.signal(number, signal.SIG_DFL)
        _host_group = _join(rank, world_size, device, timedelta(seconds=timeout_seconds))
    return Process(rank, local_rank, world_size, device, _host_group)


def _join(rank: int, world_size: int, device: torch.device, timeout: timedelta) -> Any:
    """Create the process groups; returns the one for CPU messages."""
    on_gpu = device.type == "cuda"
    try:
        store = _fresh_store(rank, world_size, timeout)
    except dist.DistError as error:
        reason = _why_not_met(str(error))
        if reason is None:
            raise
        raise PansError(reason) from error
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    return dist.new_group(backend="gloo", timeout=timeout)


def _why_not_met(message: str) -> str | None:
    """Explain torch's message if the processes have not found each other."""
    host, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if "EADDRINUSE" in message:
        return (
            f"port {port} (MASTER_PORT) is taken by another program, or by a run that has not "
            "ended; choose another one for all processes"
        )
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"the host {host} (MASTER_ADDR) is unknown here: {error.strerror}; give its address"
    return None


def _refuse_stale_addresses(environment: Mapping[str, str]) -> None:
    """With several nodes that torchrun may restart, each start needs a fresh store."""
    several_nodes = environment.get("GROUP_WORLD_SIZE", "1") != "1"
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if several_nodes and restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise PansError(
            "with --max-restarts on several nodes torchrun would hand new processes the addresses "
            "of old ones; start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every node, or "
            "with --max-restarts=0"
        )


def _fresh_store(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The rendezvous store, without entries from before a restart.

    torchrun keeps one store over its restarts, in which new processes would find the addresses of
    the old ones. Restart counts agree between processes only on a single node.
    """
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)


def end_process() -> None:
    """Destroy the process groups; to be called by all processes."""
    global _host_group
    _host_group = None
    if dist.is_initialized():
        dist.destroy_process_group()


def reduce_over_processes(tensor: Tensor, operation: str = "SUM") -> Tensor:
    """`tensor` reduced in place over all processes ("SUM", "MAX", ...).

    CPU tensors are reduced over the gloo group, because NCCL only supports CUDA tensors.
    """
    if dist.is_initialized():
        group = None if tensor.is_cuda else _host_group
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation), group)
    return tensor


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, of any shape; a new tensor, the same on all of them."""
    return reduce_over_processes(tensor.clone())


@contextmanager
def first_on_each_machine(process: Process) -> Iterator[None]:
    """Run the body on each machine's first process, then on the others; all processes enter."""
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
    dist.all_gather_object(values, value, group=_host_group)
    return values


def gather_lists(values: list[T]) -> list[T]:
    """The concatenated lists of all processes, on all of them."""
    return [value for part in gather_objects(values) for value in part]


def from_main(process: Process, compute: Callable[[], T]) -> T:
    """Call `compute` on the main process and return its result on all of them.

    Raises:
        PansError: from the main process; the others raise `FailedElsewhere`.
    """
    if not dist.is_initialized():
        return compute()
    outcome: list[Any] = [None, None]
    error = None
    if process.is_main:
        try:
            outcome[0] = compute()
        except PansError as raised:
            error, outcome[1] = raised, str(raised)
    dist.broadcast_object_list(outcome, group=process.host_group)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise FailedElsewhere(outcome[1])
    return outcome[0]


def wait_for_all(process: Process) -> None:
    """Barrier over all processes."""
    if dist.is_initialized():
        dist.barrier(group=process.host_group)


def _is_first_to_fail() -> bool:
    """Whether this is the first process of this launch and machine to report a failure.

    Otherwise a common fault would be reported once per process, and a process that merely lost its
    connection to the failed one would bury the cause under its own traceback.
    """
    reply_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not reply_file:
        return True
    attempt_folder = Path(reply_file).parent.parent
    claim = attempt_folder / f"{_CLAIM}{os.environ.get('MASTER_PORT')}"
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def run_reporting(work: Callable[[], int | None]) -> int:
    """Run this process's work and return its exit code.

    The exit code is the return value of `work` (0 for None), 1 for a bug or a fault of the machine,
    2 for a user error, 128 + n after signal n. If several processes fail, only the first one
    prints: a `PansError` or a known fault as one line, anything else as its traceback. With several
    processes, a failed one exits at once instead of returning.
    """
    end_with_starter()
    # A request for a checkpoint must not end a process that does not write any.
    signal.signal(SAVING_SIGNAL, signal.SIG_IGN)
    try:
        with stop_at_once():
            exit_code = work() or 0
    except (Interrupted, KeyboardInterrupt) as error:
        stop = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        return _fail(stop.exit_code, f"error: {stop}")
    except FailedElsewhere as error:
        # Under torchrun the first process reports; under srun the first one is unknown.
        is_told = "TORCHELASTIC_ERROR_FILE" not in os.environ
        return _fail(USER_ERROR, "" if is_told else f"error: {error}")
    except PansError as error:
        return _fail(USER_ERROR, f"error: {error}")
    except Exception as error:
        line = known_fault(error)
        if line is not None:
            return _fail(1, f"error: {line}")
        if launched():
            error.add_note(f"in process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}")
        return _fail(1, traceback.format_exc())
    _kill_loader_processes()
    return exit_code


def _kill_loader_processes() -> None:
    """Kill remaining loader processes, also stopped ones, for which Python would wait forever."""
    children = multiprocessing.active_children()
    # torch's handler would raise an error about killed workers.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in children:
        child.kill()
        child.join()
    signal.signal(signal.SIGCHLD, handler)


def _fail(exit_code: int, report: str) -> int:
    _kill_loader_processes()
    if report and _is_first_to_fail():
        end_line_of_bars()
        print(report.rstrip(), file=sys.stderr)
    if dist.is_initialized():
        # A collective that never ended keeps a thread of gloo's, on which the interpreter's own
        # shutdown would hang or abort with another exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def _outcome(error: ChildFailedError) -> tuple[int, str | None]:
    """Exit code of a failed launch, and a line for failures that no process has reported."""
    exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    if USER_ERROR in exit_codes.values():
        return USER_ERROR, None
    stopped = max(exit_codes.values())
    if stopped > SIGNAL_BASE:
        return stopped, None
    for rank, exit_code in exit_codes.items():
        # SIGTERM is how the launcher ends the others.
        if exit_code < 0 and exit_code != -signal.SIGTERM:
            return 1, f"error: process {rank} was ended by {signal_and_cause(-exit_code)}"
    return 1, "error: a process failed; see its report above"


def launch(command: Sequence[str], nproc: int) -> int:
    """Run `python COMMAND...` in `nproc` processes on this machine; returns the exit code.

    Uses torch's own launcher, which ends all processes once one fails. Each process is expected to
    end through `run_reporting`.

    Raises:
        PansError: there are GPUs, but fewer than processes, or torch cannot use them.
    """
    if usable_gpus():
        _refuse_missing_gpu(nproc)
    # torch's launcher would give every process all cores, and torchrun a single one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // nproc)))
    os.environ[COMMAND_VARIABLE] = typed_command(list(command))
    with as_parent(), tempfile.TemporaryDirectory(prefix="pans_") as folder:
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
            signals_to_handle=",".join(one.name for one in heeded_signals()),
        )
        return _run_to_end(config, command, Path(folder))


def _pass_on(number: int, frame: FrameType | None) -> None:
    for child in children():
        with suppress(ProcessLookupError):
            os.kill(child, number)


def _run_to_end(config: LaunchConfig, command: Sequence[str], folder: Path) -> int:
    # The launcher's log would wrap one line about a missing file into a page about ranks.
    logging.disable(logging.CRITICAL)
    try:
        with handling({SAVING_SIGNAL: _pass_on}):
            elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        exit_code, report = _outcome(error)
        if report is not None:
            # The current line may be the progress bar of a process that ended without output.
            print(f"\n{report}", file=sys.stderr)
        return exit_code
    except SignalException as caught:
        if not any(folder.rglob(f"{_CLAIM}*")):
            print(f"error: stopped by {caught.sigval.name}", file=sys.stderr)
        return SIGNAL_BASE + caught.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0
