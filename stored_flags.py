"""The checkpoint of --test, --predict and --export, and the flags stored in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from argparser import (
    RECIPE,
    OptionError,
    Options,
    as_words,
    beneath,
    flags_that_affect,
    network_flags,
    parse_options,
    typed_flags,
)
from dataset.registry import DATASETS, TRAINING_SETS
from modules.weights.pretrained import CHECKPOINT, identify
from utils.checkpoint import find_checkpoint
from utils.errors import PansError
from utils.weight_files import (
    DamagedCheckpoint,
    MissingCheckpoint,
    WeightsError,
    load_checkpoint,
    peek,
)

# Options that describe a checkpoint's network and how its test is measured. Not --test_weights,
# which has already selected the file.
_CLASSES = {"dataset", "trained_on", "num_classes"}
_STORED_FLAGS = _CLASSES | network_flags() | (flags_that_affect("test") - {"test_weights"})
_SHOWN = 3


def with_stored_flags(argv: Sequence[str]) -> tuple[Options, str | None]:
    """The options of a command line, with unset ones taken from the checkpoint.

    Flags passed, and in a test those of --default if passed, override the checkpoint's. This
    depends only on files, so every process of a run decides alike.

    Returns:
        The options, and a sentence that names those taken from the checkpoint, if any.
    """
    typed = typed_flags(argv)
    path, found = _checkpoint_of(typed)
    if path is None:
        options = parse_options(argv)
        if typed.get("test"):
            _refuse_no_checkpoint(options)
        return options, None
    given = {**RECIPE, **typed} if typed.get("test") and typed.get("default") else typed
    try:
        stored = _flags_in(path, given)
    except WeightsError:
        if not typed.get("test"):
            raise
        stored = {}  # loading it will report how it differs from the flags
    stored |= found
    taken = {name: value for name, value in stored.items() if value != getattr(Options, name)}
    words = " ".join(as_words(taken))
    return parse_options(argv, stored), f"taken from {path}: {words}" if words else None


def _checkpoint_of(typed: Mapping[str, Any]) -> tuple[Path | None, dict[str, str]]:
    """The checkpoint of --test, --predict or --export; None if there is none that can be read.

    Returns:
        The file, and flags that lead to it where those that were typed do not.
    """
    if not any(typed.get(job) for job in ("test", "predict", "export")):
        return None, {}
    places = ("name", "checkpoints", "dataset", "test_weights", "ckpt_test")
    run = Options(**{name: typed[name] for name in places if name in typed})
    if run.ckpt_test is not None:
        return tested_checkpoint(run), {}
    if not typed.get("test"):
        return None, {}
    candidates = _candidates(run)
    if candidates or typed.get("dataset") in TRAINING_SETS:
        return next((path for path in candidates if peek(path)), None), {}
    return _of_another_data_set(run, typed)


def _candidates(run: Options) -> list[Path]:
    """The files that a test of a run may take: it falls back from the best to the newest."""
    return [path for path in (run.tested_checkpoint_path, run.checkpoint_path) if path.is_file()]


def _of_another_data_set(
    run: Options, typed: Mapping[str, Any]
) -> tuple[Path | None, dict[str, str]]:
    """As `_checkpoint_of`, of the only run of this name, whatever it was trained on.

    Raises:
        PansError: there are several.
    """
    runs = [replace(run, dataset=name) for name in DATASETS]
    found = [one for one in runs if _candidates(one)]
    if len(found) > 1:
        files = " and ".join(str(_candidates(one)[0]) for one in found)
        raise PansError(f"--name {run.name} is the name of {files}; add --ckpt_test FILE")
    if not found:
        return None, {}
    path = _candidates(found[0])[0]
    is_typed = "dataset" in typed
    return path, {"ckpt_test": str(path)} if is_typed else {"dataset": found[0].dataset}


def _refuse_no_checkpoint(options: Options) -> None:
    """Raise where a test has no file to test, not even a damaged one.

    Raises:
        MissingCheckpoint: it names those that are there.
    """
    if _candidates(options):
        return
    there = sorted(map(str, Path(options.checkpoints).glob("*/*.pth")))
    others = f"; there are {', '.join(there[:_SHOWN])}" if there else ""
    raise MissingCheckpoint(
        f"there is no checkpoint {options.tested_checkpoint_path}; check --name, name a file with "
        f"--ckpt_test, or train first{others}"
    )


def _flags_in(path: Path, typed: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint's network, inferred from its tensors if none are stored.

    Args:
        typed: the flags passed; stored options that contradict them are left out, such as a stored
            score beside a passed one.

    Raises:
        CheckpointError, WeightsError: the file is missing, damaged or of another network.
    """
    stored = _own_options(peek(path).get("options"))
    if not stored:
        content = load_checkpoint(path)
        stored = _own_options(content.get("options")) or _flags_of_tensors(content, path)
    return beneath(stored, typed) | _trained_on(stored, typed)


def _own_options(options: Any) -> dict[str, Any]:
    """The options of a checkpoint that describe its network, if a run of this code wrote it."""
    if not isinstance(options, Mapping) or "classifier" not in options:
        return {}
    stored = {name: options[name] for name in _STORED_FLAGS if name in options}
    try:
        own = Options.from_dict(stored)
    except (OptionError, TypeError):
        return {}
    return {name: value for name, value in vars(own).items() if name in stored}


def _flags_of_tensors(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    weights = identify(content, str(path))
    if weights.kind != CHECKPOINT:
        raise PansError(f"{path} holds {weights.kind}; name a {CHECKPOINT} with --ckpt_test")
    flags = {
        "backbone": weights.backbone,
        "classifier": weights.classifier,
        "num_classes": weights.num_classes,
        "cosine_scores": weights.classifier == "cosine",
    }
    alike = [
        name
        for name in TRAINING_SETS
        if DATASETS[name].published_info.num_classes == weights.num_classes
    ]
    return flags | ({"dataset": alike[0]} if len(alike) == 1 else {})


def _trained_on(stored: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """--trained_on for a test on another data set than the network's, for evaluation only."""
    source = stored.get("trained_on") or stored.get("dataset")
    reader = DATASETS.get(typed.get("dataset", ""))
    info = getattr(reader, "published_info", None)  # the user's own folder has none
    if info is None or info.has_class_labels or source not in TRAINING_SETS:
        return {}
    return {} if "trained_on" in typed else {"trained_on": source}


def tested_checkpoint(options: Options) -> Path:
    """The weights to test: --ckpt_test, or the run's own; the newest if the best are lost.

    Raises:
        CheckpointError: none of them can be used.
    """
    best, newest = options.best_checkpoint_path, options.checkpoint_path
    if options.ckpt_test is not None:
        return find_checkpoint(options.ckpt_test, newest.parent)
    if options.test_weights != "best":
        return newest
    try:
        load_checkpoint(best)
    except DamagedCheckpoint as damage:
        if not newest.is_file():
            raise
        print(f"WARNING: {damage}; {newest}, the newest checkpoint, is tested instead")
        return newest
    return best


def describe_tested(checkpoint: Mapping[str, Any], path: Path, options: Options) -> Iterator[str]:
    """The lines of a test about its weights: after how many epochs, and trained with what.

    Only flags that differ from training and cannot be seen from the weights are named.
    """
    saved = checkpoint.get("options")
    if not isinstance(saved, Mapping):
        yield f"tests {path}"
        return
    epochs = f", after {checkpoint.get('epoch')} of {saved.get('epochs')} epochs"
    yield f"tests {path}{epochs * ('iteration' in checkpoint)}"
    for name in ("output_stride", "norm_act"):
        there, here = saved.get(name), getattr(options, name)
        if there not in (None, here):
            yield f"note: {path} was trained with --{name} {there}, and is tested with {here}"
