"""PAnS from the command line: parse, launch, work. `python run.py --help` lists the flags."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from argparser import Options, require_purpose, typed_flags
from places import hold_at_once, places

if __name__ == "__main__":
    # Help, typing errors, a running run of the same name and Ctrl-C do not wait for torch's import.
    held, on_sigint = hold_at_once(sys.argv[1:]), signal.getsignal(signal.SIGINT)
    if on_sigint == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from ablate import ablate
from predict import export, predict
from stored_flags import with_stored_flags
from train import Trainer
from utils.determinism import make_deterministic
from utils.distributed import (
    Process,
    default_nproc,
    end_process,
    from_main,
    launch,
    run_reporting,
    start_process,
)
from utils.errors import PansError
from utils.gpu import describe_device
from utils.limits import require_limits
from utils.logger import Logger
from utils.memory import keep_freed_memory
from utils.output import lasting_output
from utils.parent import PARENT_VARIABLE
from utils.run_lock import holding
from utils.slurm import join_step, launched


@contextmanager
def _holding_among(process: Process, options: Options) -> Iterator[None]:
    """Lock the run's folders in the main process, unless its launcher has done so."""
    with ExitStack() as held:
        hold = holding(places(options), f"run {options.name}")
        from_main(process, lambda: held.enter_context(hold))
        yield


def work(options: Options, note: str | None = None) -> None:
    """The work of one process, from joining the process group to leaving it.

    Args:
        note: printed at start-up.
    """
    if options.ablate:
        raise PansError("--ablate launches every run itself; give it --nproc N, not a launcher")
    if not options.plain:
        keep_freed_memory()
    if options.export:
        if os.environ.get("RANK", "0") == "0":  # one file needs one process
            _say(note)
            export(options)
        return
    if options.deterministic:
        make_deterministic()
    process = start_process(options.local_rank, options.timeout)
    with _holding_among(process, options):
        if process.is_main:
            _say(note)
            _say(options.baseline_note)
        if options.predict:
            predict(options, process)
        else:
            _train_and_test(options, process)
    end_process()


def _say(note: str | None) -> None:
    if note:
        print(f"note: {note}")


def _train_and_test(options: Options, process: Process) -> None:
    with Logger(options.log_folder if process.is_main else None) as logger:
        trainer = Trainer(options, process, logger)
        if process.is_main:
            print(f"{process.world_size} x {describe_device(process.device)}: {trainer.describe()}")
            for note in (*options.notes, *filter(None, [trainer.info.note])):
                print(f"note: {note}")
        if not options.test:
            trainer.fit()
        with logger.replacing_test():
            trainer.test()
        for line in trainer.skipped.report():
            if process.is_main:
                print(line, file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run PAnS; returns the exit code, see `run_reporting`."""
    words = sys.argv[1:] if argv is None else argv
    with lasting_output():
        return run_reporting(lambda: _do(words))


def _do(argv: Sequence[str]) -> int:
    """Do the work in this process or launch others; returns the exit code."""
    require_limits()
    typed = typed_flags(argv)
    require_purpose(typed)
    if not launched():
        if "ablate" in typed:
            ablate(typed, __file__)
            return 0
        if _may_be_of_a_step(typed):
            join_step()
    options, note = with_stored_flags(argv)
    nproc = 1 if options.export or launched() else options.nproc or default_nproc()
    if nproc == 1:
        work(options, note)
        return 0
    with holding(places(options), f"run {options.name}"):
        return launch([__file__, *argv], nproc)


def _may_be_of_a_step(typed: Mapping[str, Any]) -> bool:
    """Whether SLURM's variables may be this process's own, so that it launches no others."""
    return "nproc" not in typed and PARENT_VARIABLE not in os.environ


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_sigint)
    with held:
        code = main()
    sys.exit(code)
