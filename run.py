"""PAnS from the command line: parse, launch, work. `python run.py --help` lists the flags."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate import GridError, ablate
from argparser import Options, parse_options, typed_flags
from modules.abn import describe_norm
from predict import export, predict, stored_flags
from report.logger import Logger
from report.results import log_start
from train import Trainer
from utils.checkpoint import find_checkpoint
from utils.determinism import make_deterministic
from utils.distributed import (
    USER_ERROR,
    default_nproc,
    end_process,
    launch,
    launched,
    run_reporting,
    start_process,
)
from utils.errors import PansError
from utils.memory import keep_freed_memory


def read_options(argv: Sequence[str]) -> Options:
    """The command line's; for pictures and export, over what the checkpoint says of itself."""
    typed = typed_flags(argv)
    if ("predict" in typed or "export" in typed) and "ckpt_test" in typed:
        flags = {"checkpoints": Options.checkpoints, "dataset": Options.dataset, **typed}
        folder = Path(flags["checkpoints"], flags["dataset"])
        path = find_checkpoint(typed["ckpt_test"], folder)
        return parse_options(argv, stored_flags(path, typed))
    return parse_options(argv)


def work(options: Options) -> None:
    """What one process does, from joining the others to leaving them."""
    if options.ablate:
        raise GridError("--ablate launches every run itself; give it --nproc N, not a launcher")
    if not options.plain:
        keep_freed_memory()
    if options.export:
        if os.environ.get("RANK", "0") == "0":  # one file needs one process
            export(options)
        return
    if options.deterministic:
        make_deterministic()
    process = start_process(options.local_rank, options.timeout)
    if options.predict:
        predict(options, process)
        end_process()
        return
    with Logger(options.log_folder if process.is_main else None) as logger:
        trainer = Trainer(options, process, logger)
        if process.is_main:
            print(f"{process.world_size} x {process.device.type}, {trainer.precision}")
            print(describe_norm(options.norm_act, process.device))
            for note in options.notes:
                print(f"note: {note}")
        if not options.test:
            trainer.fit()
        logger.start_test()
        if options.test:
            log_start(logger, options.to_dict())
        trainer.test()
        for line in trainer.skipped.report():
            if process.is_main:
                print(line, file=sys.stderr)
    end_process()


def main(argv: Sequence[str] | None = None) -> int:
    """Run PAnS; returns the exit code, see `run_reporting`."""
    argv = sys.argv[1:] if argv is None else argv
    if launched():
        return run_reporting(lambda: work(read_options(argv)))
    try:
        typed = typed_flags(argv)
        if "ablate" in typed:
            return run_reporting(lambda: ablate(typed, __file__))
        options = read_options(argv)
        nproc = 1 if options.export else options.nproc or default_nproc()
        if nproc > 1:
            return launch([__file__, *argv], nproc)
    except PansError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return run_reporting(lambda: work(options))


if __name__ == "__main__":
    sys.exit(main())
