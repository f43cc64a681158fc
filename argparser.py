"""The command line: every flag, its default, its range and its help, as one frozen dataclass.

`parse_options` is the only reader of the command line. A flag is one field of `Options`, made by
the function of its group; parser, help, range checks and checkpoints' copies follow from them.
"""

import argparse
import difflib
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from dataset.description import UNKNOWN_INDEX, DatasetInfo, UnknownClass
from dataset.registry import DATASETS, TRAINING_SETS, describe
from foreign_flags import advice_on
from modules.backbones import BACKBONES
from modules.scores.registry import ALL, DROPOUT_PASSES, SCORES, Score, resolve
from utils.errors import PansError
from utils.flag_files import read_config

RECIPE: dict[str, Any] = {
    "dataset": "streethazards",
    "multi_scala": True,
    "crop_size": 450,
    "backbone": "resnet50",
    "output_stride": 8,
    "norm_act": "iabn_sync",
    "head": "PPM",
    "classifier": "cosine",
    "cosine_scores": True,
    "batch_size": 2,
    "epochs": 40,
    "lr": 0.007,
}
"""What --default sets: the published recipe for StreetHazards."""

_ALIASES = {"--multi_scale": "--multi_scala", "--no_multi_scale": "--no_multi_scala"}
_PRECISION_OF_OPT_LEVEL = {"O0": "fp32", "O1": "bf16"}
_METAVARS = {int: "N", float: "X", str: "NAME", tuple: "NAMES"}
_GROUPS = (
    *("run", "data", "model", "training", "validation and test", "pictures and export", "speed"),
    *("launch", "old flags, kept for published commands"),
)
_COMMON = (
    *("name", "default", "config", "data_root", "dataset", "backbone", "classifier", "epochs"),
    *("batch_size", "lr", "random_seed", "precision", "nproc", "ckpt", "restart", "test"),
    *("ckpt_test", "score", "multi_scala", "visualize", "out", "threshold"),
)
"""The flags in --help, beside those of its examples; --help_all lists every flag."""

_JOBS = {
    "train": "--name pans --default",
    "test": "--test --ckpt_test FILE",
    "predict": "--predict PATH... --ckpt_test FILE --out DIR",
    "export": "--export onnx --ckpt_test FILE --out pans.onnx",
    "ablate": "--ablate docs/ablation.toml --name paper",
}
"""What run.py does, each with an example."""

_REPLACED_TOGETHER = (
    {"score", "cosine_scores", "msp"},
    {"precision", "opt_level"},
    {"pretrained", "no_pretrained"},
    {"threshold", "calibrate_fpr"},
    {"test", "predict", "export"},
)
_OF_A_DATA_SET = {"num_classes", "unk_class", "trained_on", "ignore_classes", "eval_size"}

BearsOn = Literal["weights", "start", "test", "nothing"]


class OptionError(PansError):
    """A flag is unknown, out of its range or contradicts another one."""


def _refusal(name: str, reason: str) -> OptionError:
    return OptionError(f"argument --{name}: {reason}; see --help")


@dataclass(frozen=True)
class _Range:
    """The values that a flag takes, in words and as a predicate."""

    words: str
    holds: Callable[[Any], bool]


def _one_of(*choices: object) -> _Range:
    return _Range(f"one of {', '.join(map(str, choices))}", lambda value: value in choices)


def _at_least(least: int) -> _Range:
    return _Range(f"{least} or more", lambda value: value >= least)


_OWN_ENDINGS = re.compile(r".*_(best|previous|damaged|old\d+)")
_LONGEST_NAME = 200  # bytes: disks take 255, of which endings and temporary names need some


def _is_name_of_a_run(name: str) -> bool:
    is_plain = name not in {"", ".", ".."} and name.isprintable() and not set(name) & set("/\\")
    return is_plain and len(name.encode()) <= _LONGEST_NAME and not _OWN_ENDINGS.fullmatch(name)


_COUNT = _at_least(1)
_ABOVE_ZERO = _Range("a number above 0", lambda value: 0 < value < math.inf)
_ZERO_OR_ABOVE = _Range("a number, 0 or above", lambda value: 0 <= value < math.inf)
_NAME_OF_A_RUN = _Range(
    f"a plain file name of {_LONGEST_NAME} bytes at most that does not end in _best, _previous, "
    "_damaged or _old1, as files of other runs do",
    _is_name_of_a_run,
)
_PATH = _Range("a path", lambda value: value != "")
_PATHS = _Range("paths", lambda values: "" not in values)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _flag(
    group: str,
    bears_on: BearsOn,
    default: Any,
    words: str,
    within: _Range | None = None,
    *,
    shown_default: str | None = None,
) -> Any:
    """One flag, a field of `Options`.

    Args:
        group: its heading in --help_all.
        bears_on: what the flag affects: the weights after training, the weights training starts
            from, a test of given weights, or nothing that is measured.
        shown_default: if it does not follow from the default.
    """
    if shown_default is None:
        value = ("off", "on")[default] if isinstance(default, bool) else default
        shown_default = "none" if value in (None, ()) else str(value)
    return field(
        default=default,
        metadata={
            "group": group,
            "help": f"{words} (default {shown_default})",
            "range": within,
            "bears_on": bears_on,
        },
    )


def _kind(flag: Field[Any]) -> Any:
    """Of a flag's values: str for a field of `str | None`, tuple for one of `tuple[str, ...]`."""
    kind = get_args(flag.type)[0] if isinstance(flag.type, UnionType) else flag.type
    return get_origin(kind) or kind


_run, _data, _model, _training, _evaluation, _prediction, _speed, _launch, _old = (
    partial(_flag, group) for group in _GROUPS
)


@dataclass(frozen=True)
class Options:
    """The options of a run: one field per flag, checked on construction.

    Raises:
        OptionError: a value is out of its range, or two values contradict each other.
    """

    name: str = _run(
        "nothing", "Experiment", "name of the run, its logs and its checkpoints", _NAME_OF_A_RUN
    )
    default: bool = _run(
        "nothing", False, "PAnS as published, see --help_all; flags passed override it"
    )
    random_seed: int = _run(
        "weights",
        42,
        "seed of every random choice",
        _Range("0 or more and below 2**32", lambda value: 0 <= value < 2**32),
    )
    logdir: str = _run("nothing", "./logs", "logs go to LOGDIR/DATASET/NAME", _PATH)
    checkpoints: str = _run(
        "nothing", "./checkpoints", "checkpoints go to CHECKPOINTS/DATASET/NAME.pth", _PATH
    )
    ckpt: str | None = _run(
        "start", None, "checkpoint to continue from; with --restart, its weights alone", _PATH
    )
    restart: bool = _run(
        "nothing", False, "start from scratch or from --ckpt's weights, keeping older files"
    )
    accept_changes: bool = _run(
        "nothing", False, "continue a checkpoint with other flags or processes"
    )
    deterministic: bool = _run("weights", False, "same seed, same numbers, at the cost of speed")
    print_interval: int = _run("nothing", 10, "iterations between two reports of the loss", _COUNT)
    config: str | None = _run(
        "nothing", None, "flags from a TOML file or a results.json; flags passed override", _PATH
    )
    ablate: str | None = _run(
        "nothing", None, "run a grid of flags and seeds, see docs/ablation.md", _PATH
    )

    data_root: str = _data("nothing", "data", "folder of the data set", _PATH)
    dataset: str = _data(
        "weights", "streethazards", "data set, one of the names below", _one_of(*DATASETS)
    )
    trained_on: str | None = _data(
        "weights",
        None,
        "the network's data set, for evaluation-only sets",
        _one_of(*TRAINING_SETS),
        shown_default="streethazards",
    )
    num_classes: int = _data(
        "weights", 13, "number of trained classes; other data sets have their own", _COUNT
    )
    unk_class: int = _data(
        "test", 13, "class index of anomalies, up to 254; other data sets have their own"
    )
    skip_bad_files: bool = _data(
        "weights", False, "skip files that cannot be read, list them at the end"
    )
    num_workers: int = _data(
        "nothing", 16, "loader processes per training process, at most one per CPU", _at_least(0)
    )

    backbone: str = _model(
        "weights", "resnet50", f"the network's body: {', '.join(BACKBONES)}", _one_of(*BACKBONES)
    )
    output_stride: int = _model("weights", 8, "the backbone's stride: 8 or 16", _one_of(8, 16))
    no_pretrained: bool = _model("start", False, "start from random weights, not from ImageNet's")
    pretrained: str | None = _model(
        "start",
        None,
        "ImageNet weights: auto (in pretrained/), torchvision or a file",
        _PATH,
        shown_default="auto",
    )
    norm_act: str = _model(
        "weights",
        "iabn_sync",
        "norm and activation: iabn_sync, iabn, abn or std",
        _one_of("iabn_sync", "iabn", "abn", "std"),
    )
    pooling: int = _old("weights", 32, "no effect: only 32 is accepted")
    head: str = _old("weights", "PPM", "no effect: only PPM is accepted", _one_of("PPM"))
    classifier: str = _model(
        "weights", "standard", "standard or cosine (prototypes)", _one_of("standard", "cosine")
    )

    epochs: int = _training("weights", 40, "passes over the training set", _COUNT)
    batch_size: int = _training("weights", 2, "images per process and step", _COUNT)
    crop_size: int = _training("weights", 512, "side of the training crops in pixels", _at_least(8))
    fix_bn: bool = _training("weights", False, "freeze weight and bias of the norms")
    lr: float = _training("weights", 0.007, "learning rate at the start", _ABOVE_ZERO)
    momentum: float = _training(
        "weights",
        0.9,
        "Nesterov momentum",
        _Range("0 or more and below 1", lambda value: 0 <= value < 1),
    )
    weight_decay: float = _training("weights", 1e-4, "L2 penalty on all parameters", _ZERO_OR_ABOVE)
    lr_policy: str = _training(
        "weights", "poly", "learning rate schedule: poly or step", _one_of("poly", "step")
    )
    lr_decay_step: int = _training("weights", 5000, "step: iterations between two decays", _COUNT)
    lr_decay_factor: float = _training("weights", 0.1, "step: factor of a decay", _ABOVE_ZERO)
    lr_power: float = _training("weights", 0.9, "poly: exponent", _ZERO_OR_ABOVE)
    deepsup: float = _training(
        "weights", 0.4, "weight of the deep supervision's loss", _ZERO_OR_ABOVE
    )
    ckpt_interval: int = _training("nothing", 1, "epochs between two checkpoints", _COUNT)
    ckpt_minutes: float = _training(
        "nothing", 15.0, "minutes between two checkpoints inside an epoch", _ABOVE_ZERO
    )
    clip_grad_norm: float | None = _training(
        "weights", None, "largest L2 norm of all gradients", _ABOVE_ZERO
    )
    max_bad_steps: int = _training(
        "nothing", 10, "consecutive non-finite steps after which the run ends", _COUNT
    )

    test: bool = _evaluation("nothing", False, "test only, without training")
    ckpt_test: str | None = _evaluation(
        "nothing", None, "checkpoint that is tested", _PATH, shown_default="by --test_weights"
    )
    test_weights: str = _evaluation(
        "test", "last", "weights tested without --ckpt_test: last or best", _one_of("last", "best")
    )
    val_interval: int = _evaluation("nothing", 1, "epochs between two validations", _COUNT)
    val_on_trainset: bool = _evaluation("nothing", False, "validate on the training images instead")
    multi_scala: bool = _evaluation(
        "test", False, "test at five scales instead of one (also --multi_scale)"
    )
    eval_size: str | None = _evaluation(
        "test",
        None,
        "size at which a test is measured: label or input",
        _one_of("label", "input"),
        shown_default="see docs/evaluation.md",
    )
    cosine_scores: bool = _evaluation(
        "test", False, "anomaly score (1 - cosine) / 2; needs --classifier cosine"
    )
    msp: bool = _evaluation(
        "test", False, "anomaly score 1 - max softmax; overrides --cosine_scores"
    )
    score: tuple[str, ...] = _evaluation(
        "test",
        (),
        "NAME,NAME: anomaly scores, headline first",
        shown_default="by --msp, --cosine_scores",
    )
    mc_dropout: int | None = _evaluation(
        "test",
        None,
        "stochastic passes of the score mc_dropout",
        _at_least(2),
        shown_default=str(DROPOUT_PASSES),
    )
    ignore_classes: tuple[str, ...] = _evaluation(
        "test", (), "NAME,NAME: classes that the anomaly metrics leave out"
    )
    sample_num: int = _evaluation(
        "nothing", 6, "sample pictures shown in TensorBoard", _at_least(0)
    )
    visualize: bool = _evaluation(
        "nothing", False, "write every test image's pictures into the log folder"
    )

    predict: tuple[str, ...] = _prediction(
        "nothing", (), "run inference on pictures, folders and videos", _PATHS
    )
    out: str | None = _prediction("nothing", None, "folder of --predict, file of --export", _PATH)
    threshold: float | None = _prediction(
        "nothing", None, "--predict: scores >= X are anomalies", _Range("a number", math.isfinite)
    )
    calibrate_fpr: float | None = _prediction(
        "nothing",
        None,
        "--predict: threshold for this false positive rate on validation",
        _Range("a number between 0 and 1", lambda value: 0 < value < 1),
    )
    overwrite: bool = _prediction(
        "nothing", False, "--predict may write among other files in --out"
    )
    frame_step: int = _prediction(
        "nothing", 1, "--predict: run on every N-th frame of a video", _COUNT
    )
    export: str | None = _prediction(
        "nothing", None, "write the network of --ckpt_test as: onnx", _one_of("onnx")
    )

    precision: str = _speed("weights", "fp32", "fp32 or bf16", _one_of("fp32", "bf16"))
    opt_level: str | None = _old(
        "nothing",
        None,
        "old name of --precision: O0 = fp32, O1 = bf16",
        shown_default="--precision's",
    )
    plain: bool = _speed(
        "weights", False, "reference implementation: the published operations in fp32"
    )
    compile: bool = _speed(
        "weights", False, "torch.compile in training; not with --norm_act iabn_sync"
    )
    checkpoint_activations: bool = _speed(
        "nothing", False, "recompute blocks in backward: less memory, slower"
    )
    accumulate: int = _speed("weights", 1, "gradient accumulation: batches per step", _COUNT)

    nproc: int | None = _launch(
        "nothing",
        None,
        "processes on this machine",
        _COUNT,
        shown_default="one per GPU, one on a CPU",
    )
    local_rank: int | None = _old(
        "nothing",
        None,
        "set by old launchers; LOCAL_RANK overrides it",
        _at_least(0),
        shown_default="0",
    )
    timeout: float = _launch(
        "nothing", 600.0, "seconds to wait for another process or for a loader", _ABOVE_ZERO
    )

    def __post_init__(self) -> None:
        for flag in fields(self):
            _check_alone(flag, getattr(self, flag.name))
        _check_model(self)
        _check_pictures_and_export(self)
        _check_scores(self)
        _check_opt_level(self)
        _check_speed(self)

    @property
    def scores(self) -> tuple[str, ...]:
        """The anomaly scores, each once, headline score first."""
        return resolve(self.score or (self._published_score or "msp",), self.classifier)

    @property
    def shown_score(self) -> str:
        """The score in validation pictures: the headline score, or maxlogit if it is fitted."""
        headline = self.scores[0]
        return "maxlogit" if SCORES[headline].fitted else headline

    @property
    def _published_score(self) -> str | None:
        """What --msp and --cosine_scores ask for."""
        if self.msp:
            return "msp"
        return "prototype" if self.cosine_scores else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Start-up notes about choices that were not passed, one sentence each."""
        if ALL in self.score:
            missing = {name: SCORES[name].missing(self.classifier) for name in SCORES}
            left_out = [name for name in missing if missing[name] and name not in self.scores]
            return tuple(
                f"--score all leaves out {name}: needs {missing[name]}" for name in left_out
            )
        if self.score or self._published_score:
            return ()
        if self.default and self.classifier == "standard":
            return ("the anomaly score is msp: cosine scores need --classifier cosine",)
        return ("the anomaly score is msp: neither --score, --msp nor --cosine_scores was given",)

    @property
    def baseline_note(self) -> str | None:
        """The start-up note about a training of the baseline."""
        if self.classifier == "cosine" or self.test or self.predict or self.export:
            return None
        if self.default:
            return "--classifier standard: this trains the baseline, not PAnS"
        return (
            "without --default this trains the baseline (--classifier standard), not PAnS: "
            "add --default for PAnS"
        )

    @property
    def at_input_size(self) -> bool:
        """Whether a test is measured at the size of the network's input, as published."""
        if self.eval_size is None:
            return self.dataset == "streethazards" and not self.multi_scala
        return self.eval_size == "input"

    @property
    def log_folder(self) -> Path:
        """TensorBoard's events, results.json and pictures of this run."""
        return Path(self.logdir) / self.dataset / self.name

    @property
    def checkpoint_path(self) -> Path:
        """The run's newest checkpoint."""
        return Path(self.checkpoints) / self.dataset / f"{self.name}.pth"

    @property
    def best_checkpoint_path(self) -> Path:
        """The run's best checkpoint by validation mIoU."""
        return Path(self.checkpoints) / self.dataset / f"{self.name}_best.pth"

    @property
    def tested_checkpoint_path(self) -> Path:
        """The run's checkpoint that is tested without --ckpt_test."""
        return self.best_checkpoint_path if self.test_weights == "best" else self.checkpoint_path

    def describe_data(self) -> DatasetInfo:
        """The description of the data set, for --dataset folder from its files."""
        return describe(self.dataset, self.data_root, self.trained_on)

    def to_dict(self) -> dict[str, Any]:
        """Every flag's value, in types that JSON and `torch.load(weights_only=True)` support."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Options":
        """The inverse of `to_dict`; unknown flags are dropped, missing ones get their defaults."""
        known = {name: values[name] for name in FLAGS if name in values}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**{**known, **lists})


FLAGS = {flag.name: flag for flag in fields(Options)}
"""Every flag, by its name."""


def flags_that_affect(*words: BearsOn) -> frozenset[str]:
    """The names of the flags that affect any of `words`."""
    return frozenset(flag.name for flag in FLAGS.values() if flag.metadata["bears_on"] in words)


def network_flags() -> frozenset[str]:
    """The names of the flags that describe the network itself."""
    of_model = {flag.name for flag in FLAGS.values() if flag.metadata["group"] == "model"}
    return flags_that_affect("weights") & of_model


def _check_alone(flag: Field[Any], value: Any) -> None:
    if value is None and flag.default is None:
        return
    kind, within = _kind(flag), flag.metadata["range"]
    if not isinstance(value, (int, float) if kind is float else kind):
        raise _refusal(flag.name, f"invalid {kind.__name__} value: {value!r}")
    if within is not None and not within.holds(value):
        raise _refusal(flag.name, f"must be {within.words}, got {value!r}")


def _check_data(options: Options, info: DatasetInfo) -> None:
    """Compare with the description of the data set."""
    if options.num_classes != info.num_classes:
        whose = info.name if info.has_class_labels else options.trained_on or "streethazards"
        raise _refusal(
            "num_classes",
            f"{whose} has {info.num_classes} classes to train, got {options.num_classes}",
        )
    if not options.num_classes <= options.unk_class <= 254:
        raise _refusal(
            "unk_class",
            f"must lie from {options.num_classes}, the first label that is not trained, to 254, "
            f"the last before the ignored one, got {options.unk_class}",
        )
    if info.has_class_labels and options.trained_on is not None:
        raise _refusal("trained_on", f"{info.name} has labels of its own classes; leave it out")
    if not info.has_class_labels and options.unk_class != UNKNOWN_INDEX:
        raise _refusal("unk_class", f"anomalies of {info.name} are {UNKNOWN_INDEX}; leave it out")
    try:
        info.class_indices(options.ignore_classes)
    except UnknownClass as error:
        raise _refusal("ignore_classes", str(error)) from error
    _check_splits(options, info)


def _check_splits(options: Options, info: DatasetInfo) -> None:
    needed = {"test"} if options.test else {"train", "validation", "test"}
    if options.predict or options.export:
        needed = set() if options.calibrate_fpr is None else {"validation"}
    if options.val_on_trainset:
        needed.discard("validation")
    missing = sorted(needed - set(info.splits))
    if missing and info.has_class_labels:
        raise _refusal("dataset", f"{info.name} has no {', '.join(missing)} images")
    if missing:
        raise _refusal(
            "dataset",
            f"{info.name} is for evaluation only, its labels have no classes; pass --test and "
            "--ckpt_test FILE, a network trained on another data set",
        )


def _check_model(options: Options) -> None:
    if options.pooling != 32:
        raise _refusal(
            "pooling",
            f"{options.pooling} has no effect: it sizes the pooling of a DeepLab-v3 head, "
            "and --head PPM always pools to 1, 2, 3 and 6 cells; leave it at 32",
        )
    if options._published_score == "prototype" and options.classifier == "standard":
        raise _refusal(
            "cosine_scores",
            "needs --classifier cosine: the standard classifier's logits are unbounded, "
            "so (logit + 10) / 20 is not a score; use --msp",
        )
    if options.no_pretrained and options.pretrained is not None:
        raise _refusal("pretrained", "contradicts --no_pretrained; pass one of the two")
    if options.eval_size == "input" and options.multi_scala:
        raise _refusal("eval_size", "five scales have five input sizes; pass --no_multi_scala too")


def _check_pictures_and_export(options: Options) -> None:
    asked = [name for name in ("test", "predict", "export") if getattr(options, name)]
    if len(asked) > 1:
        raise _refusal(asked[1], f"is a job of its own; pass it without --{asked[0]}")
    job = asked[0] if asked and asked[0] != "test" else None
    if job is not None:
        for name in ("ckpt_test", "out"):
            if getattr(options, name) is None:
                raise _refusal(name, f"is needed by --{job}")
    for name in ("threshold", "calibrate_fpr"):
        if getattr(options, name) is not None and job != "predict":
            raise _refusal(name, "belongs to --predict")
    if options.out is not None and job is None:
        raise _refusal("out", "belongs to --predict or --export")
    if options.threshold is not None and options.calibrate_fpr is not None:
        raise _refusal("threshold", "contradicts --calibrate_fpr; pass one of the two")


def _check_scores(options: Options) -> None:
    unknown = [name for name in options.score if name not in (*SCORES, ALL)]
    if unknown:
        choices = ", ".join((*SCORES, ALL))
        raise _refusal("score", f"must be one or more of {choices}, got {unknown[0]!r}")
    published = options._published_score
    if options.score and published and options.score != (published,):
        flag = "msp" if options.msp else "cosine_scores"
        raise _refusal("score", f"contradicts --{flag}, which means {published}; give one of them")
    for name in options.scores:
        missing = SCORES[name].missing(options.classifier)
        if missing:
            raise _refusal("score", f"{name} needs {missing}")
    headline = SCORES[options.scores[0]]
    if options.export and not headline.of_logits:
        raise _refusal("score", f"{options.scores[0]} needs more than logits, and no file holds it")
    if options.mc_dropout is not None and not any(SCORES[name].samples for name in options.scores):
        raise _refusal("mc_dropout", "has no effect without --score mc_dropout (or all)")


def _check_opt_level(options: Options) -> None:
    level = options.opt_level
    if level in {"O2", "O3"}:
        raise _refusal(
            "opt_level",
            f"{level} keeps the weights in half precision through NVIDIA Apex, which is not used; "
            "O1 (--precision bf16) computes in bfloat16 on float32 weights",
        )
    if level is None or options.precision == _PRECISION_OF_OPT_LEVEL.get(level, ""):
        return
    if level not in _PRECISION_OF_OPT_LEVEL:
        raise _refusal("opt_level", f"must be one of O0, O1, got {level!r}")
    raise _refusal("opt_level", f"{level} contradicts --precision {options.precision}")


def _check_speed(options: Options) -> None:
    if options.plain and options.precision == "bf16":
        raise _refusal("plain", "is the reference implementation in fp32, without --precision bf16")
    if not options.compile:
        return
    if options.norm_act == "iabn_sync":
        raise _refusal(
            "compile",
            "the compiler breaks the sums of --norm_act iabn_sync over processes; "
            "use --norm_act iabn, abn or std",
        )
    for other in ("plain", "checkpoint_activations"):
        if getattr(options, other):
            raise _refusal("compile", f"does not go with --{other}")


class _Parser(argparse.ArgumentParser):
    """Raises `OptionError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}{_cure(message)}; see --help")


def _cure(message: str) -> str:
    """What to pass instead of an invalid value, where argparse only says what is wrong."""
    match = re.match(r"argument --(\w+): (.*)", message)
    if match is None:
        return ""
    name, fault = match.groups()
    flag = FLAGS.get(name)
    if flag is None and not name.startswith("no_"):
        return ""
    if fault.startswith("ignored explicit argument"):
        return f": {_on_or_off(f'--{name}')}"
    if fault == "expected one argument" and flag and flag.metadata["range"]:
        return f": {flag.metadata['range'].words}"
    if re.fullmatch(r"invalid float value: '-?\d*,\d+'", fault):
        return ", write a decimal point: " + fault.split("'")[1].replace(",", ".")
    return ", pass an integer" if fault.startswith("invalid int value") else ""


def _on_or_off(flag: str) -> str:
    """How to write an on/off flag that was passed a value."""
    opposite = f"--{flag[5:]}" if flag.startswith("--no_") else f"--no_{flag[2:]}"
    return f"{flag} takes no value, {opposite} is its opposite"


def _help_format(prog: str) -> argparse.HelpFormatter:
    # Not the terminal's width: a flag and its sentence stay on one line.
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110)


def _epilog() -> str:
    settings = " ".join(
        f"--{name}" if value is True else f"--{name} {value}" for name, value in RECIPE.items()
    )
    paragraphs = (
        f"Data sets: {', '.join(DATASETS)}.",
        f"--default sets {settings}.",
        "A flag passed beside --default overrides it, in either order; the published code "
        "silently overrides such a flag.",
        "--test, --predict and --export take flags that are not passed from the checkpoint.",
        "Every on/off flag --x has an opposite, --no_x, except --no_pretrained. "
        "Dashes may stand for underscores: --batch-size is --batch_size.",
    )
    return "\n\n".join([*map(_filled, paragraphs), _score_list()])


def _short_epilog() -> str:
    paragraphs = (
        f"data sets: {', '.join(DATASETS)}",
        f"scores: {', '.join((*SCORES, ALL))}",
        f"--help_all lists all {len(FLAGS)} flags and what --default sets.",
    )
    return "\n".join(_filled(text, indent="  ") for text in paragraphs)


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False, subsequent_indent=indent)


def _score_list() -> str:
    lines = [f"  {name:22} {_needs(score)}" for name, score in SCORES.items()]
    lines.append(f"  {ALL:22} every available score; alone or after the headline score")
    return "\n".join(["scores:", *lines])


def _needs(score: Score) -> str:
    """Describe a score and its requirements."""
    needs = {
        "--classifier cosine": score.cosine,
        "a pass over the training images": score.fitted,
        "pydensecrf2": score.crf,
    }
    named = ", ".join(name for name, needed in needs.items() if needed)
    return f"{score.words}{f' (needs {named})' * bool(named)}"


def _usage() -> str:
    lines = [f"  {job:8} python run.py {words}" for job, words in _JOBS.items()]
    return "\n".join(["run.py [flags]", *lines])


def _empty_parser(epilog: str) -> _Parser:
    return _Parser(
        prog="run.py",
        usage=_usage(),
        description="Train and test PAnS: anomaly segmentation with class prototypes.",
        epilog=epilog,
        formatter_class=_help_format,
        # Flags that were not passed stay out of the result, so that --default can set them.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )


def _make_parser() -> _Parser:
    """The parser of every flag; its help is that of --help_all."""
    parser = _empty_parser(_epilog())
    parser.add_argument("-h", "--help", action=_Help, help="the flags that most runs need")
    parser.add_argument("--help_all", action=_Help, help="this list of every flag")
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    for flag in FLAGS.values():
        _add_flag(groups[flag.metadata["group"]], flag)
    return parser


def _short_help() -> str:
    parser = _empty_parser(_short_epilog())
    group = parser.add_argument_group("flags")
    for name in _COMMON:
        _add_flag(group, FLAGS[name])
    return parser.format_help()


class _Help(argparse.Action):
    """Prints help and exits: all of it for --help_all, else what most runs need."""

    def __init__(self, option_strings: Sequence[str], dest: str, **words: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **words)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        print(parser.format_help() if option_string == "--help_all" else _short_help(), end="")
        parser.exit()


def _add_flag(group: argparse._ArgumentGroup, flag: Field[Any]) -> None:
    kind, words = _kind(flag), flag.metadata["help"]
    if kind is bool:
        group.add_argument(f"--{flag.name}", action="store_true", help=words)
        if not flag.name.startswith("no_"):
            group.add_argument(
                f"--no_{flag.name}", action="store_false", dest=flag.name, help=argparse.SUPPRESS
            )
    elif flag.metadata["range"] is _PATHS:
        group.add_argument(f"--{flag.name}", type=str, nargs="+", metavar="PATH", help=words)
    else:
        reader = _names if kind is tuple else kind
        metavar = "PATH" if flag.metadata["range"] is _PATH else _METAVARS[kind]
        group.add_argument(f"--{flag.name}", type=reader, metavar=metavar, help=words)


def _published_spelling(token: str) -> str:
    """--multi-scale=x -> --multi_scala=x; values and words without dashes are not changed."""
    if not token.startswith("--"):
        return token
    flag, equals, value = token.partition("=")
    flag = "--" + flag[2:].replace("-", "_")
    return _ALIASES.get(flag, flag) + equals + value


def _refuse_leftover(token: str, before: str, parser: _Parser) -> NoReturn:
    """Explain the first word of the command line that argparse did not recognise.

    Args:
        before: the word before it.
    """
    shown = repr(token.partition("=")[0])[1:-1]
    name = shown.lstrip("-").lower()
    if not token.startswith("-"):
        hint = f", did you mean --{name}?" if name in {*_JOBS, "help"} else ""
        if name == "train":  # what it does by itself
            hint = f"; to train, type {_JOBS[name]}"
        if before in ("--test", "--export", "--visualize") and name.endswith((".pth", ".tar")):
            hint = "; --ckpt_test FILE names a checkpoint"
        elif before in parser._option_string_actions and not hint:
            hint = f": {_on_or_off(before)}"
        raise OptionError(f"{shown!r} belongs to no flag{hint}; see --help")
    if advice := advice_on(name):
        raise OptionError(f"argument {shown}: no such flag; {advice}; see --help")
    near = difflib.get_close_matches(shown, parser._option_string_actions, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    raise OptionError(f"argument {shown}: no such flag{hint}; see --help")


def typed_flags(argv: Sequence[str]) -> dict[str, Any]:
    """The flags passed, which override those of --config, by name, without defaults.

    Passed values are unchecked; `argv`: see `parse_options`.

    Raises:
        OptionError: one line that names the flag and the reason.
        PansError: the file of --config cannot be read, or has an unknown flag.
        SystemExit: after --help.
    """
    parser = _make_parser()
    words = [_published_spelling(token) for token in argv]
    found, leftovers = parser.parse_known_args(words)
    if leftovers:
        _refuse_leftover(leftovers[0], words[max(words.index(leftovers[0]) - 1, 0)], parser)
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(found).items()
    }
    if "config" not in typed:
        return typed
    return beneath(_config_flags(Path(typed["config"])), typed) | typed


def _config_flags(path: Path) -> dict[str, Any]:
    """The checked flags of a file of --config."""
    aliases = {alias[2:]: name[2:] for alias, name in _ALIASES.items() if name[2:] in FLAGS}
    takes = FLAGS.keys() - {"config", "ablate"}
    return {
        aliases.get(name, name): _config_value(path, FLAGS[aliases.get(name, name)], value)
        for name, value in read_config(path, takes | aliases.keys()).items()
    }


def _config_value(path: Path, flag: Field[Any], value: Any) -> Any:
    kind = _kind(flag)
    if kind is tuple:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise OptionError(f"{path}: {flag.name} should be a list of words, got {value!r}")
        value = tuple(value)
    if isinstance(value, bool) != (kind is bool):
        raise OptionError(f"{path}: {flag.name}: invalid {kind.__name__} value: {value!r}")
    try:
        _check_alone(flag, value)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    return float(value) if kind is float else value


def beneath(values: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a file without those that passed ones replace: --msp also replaces a score."""
    replaced = set(typed)
    for together in _REPLACED_TOGETHER:
        if together & set(typed):
            replaced |= together
    if values.get("dataset") != typed.get("dataset", values.get("dataset")):
        replaced |= _OF_A_DATA_SET
    if typed.get("multi_scala") and values.get("eval_size") == "input":
        replaced.add("eval_size")
    if "score" in replaced and not {"mc_dropout", ALL} & set(typed.get("score", ())):
        replaced.add("mc_dropout")
    return {name: value for name, value in values.items() if name not in replaced}


def require_purpose(typed: Mapping[str, Any]) -> None:
    """Raise OptionError if the flags would train the baseline without having asked for it."""
    meant = {"default", "test", "predict", "export", "ablate"}
    if not typed.keys() & (meant | flags_that_affect("weights", "start", "test")):
        wanted = "--default" if "name" in typed else "--name NAME --default"
        raise OptionError(
            f"this would train the baseline, not PAnS: add {wanted}, or --classifier standard if "
            "the baseline is meant; see --help"
        )


def as_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags and their values as arguments of a command line."""
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            # --no_pretrained has no opposite: it is off unless passed.
            words += [f"--{name}"] if value else [f"--no_{name}"] * (name[:3] != "no_")
        elif isinstance(value, list | tuple):
            words.append(f"--{name}={','.join(map(str, value))}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


def parse_options(argv: Sequence[str], stored: Mapping[str, Any] | None = None) -> Options:
    """Read the command line: defaults, overridden by --default's values, then by flags passed.

    Args:
        argv: the arguments after the program's name.
        stored: values from a checkpoint; they override --default, and flags passed override them.

    Raises:
        OptionError: one line that names the flag and the reason.
        DatasetNotFound, Unreadable: the classes of --dataset folder cannot be read.
        SystemExit: after --help.
    """
    typed = typed_flags(argv)
    values = {**(RECIPE if typed.get("default") else {}), **(stored or {}), **typed}
    names_score = "score" in typed or values.get("classifier") == "standard"
    if names_score and "cosine_scores" not in typed:
        values["cosine_scores"] = False
    if "opt_level" in typed and "precision" not in typed:
        values["precision"] = _PRECISION_OF_OPT_LEVEL.get(typed["opt_level"], "fp32")
    options = Options(**values)
    info = options.describe_data()
    own_numbers = {"num_classes": info.num_classes, "unk_class": info.anomaly_index}
    options = replace(options, **(own_numbers | values))
    _check_data(options, info)
    return options
