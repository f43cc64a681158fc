"""A trained network on the user's own pictures, and as an ONNX file."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

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
from build import evaluation_loader_of, inference_settings, model_of
from dataset.loaders import EvaluationSample
from dataset.own_pictures import (
    PictureSample,
    Source,
    Unreadable,
    find_sources,
    frame_rate,
    picture_sample,
    samples_of,
    without_label_maps,
    without_support,
)
from dataset.registry import DATASETS, TRAINING_SETS, describe
from dataset.skipping import SkippedFiles, reader_of
from metrics.pooled import PooledCounts, sharpened
from modules import SegmentationModel
from modules.export import check_export_support, export_onnx
from modules.inference.network import Inference
from modules.normalisation import MEAN, STD
from modules.scores import DROPOUT_PASSES, SCORES, Scorer, kept_state
from modules.scores.bounds import bounds_of
from modules.scores.network_output import State
from modules.weights.pretrained import CHECKPOINT, identify
from report.predictions import PredictionFolder
from report.video import NoVideo
from report.visualize import HeatScale
from utils.checkpoint import (
    DEEP_SUPERVISION,
    MissingCheckpoint,
    find_checkpoint,
    load_model_state,
)
from utils.distributed import Process, from_main, gather_objects, sum_over_processes
from utils.errors import PansError
from utils.files import sha256_of
from utils.interruption import stop_at_once
from utils.pictures import upright
from utils.progress import ProgressBar
from utils.weight_files import WeightsError, load_checkpoint, model_state, peek

# Options that describe a checkpoint's network and how its test is measured. Not --test_weights,
# which has already selected the file.
_CLASSES = {"dataset", "trained_on", "num_classes"}
_STORED_FLAGS = _CLASSES | network_flags() | (flags_that_affect("test") - {"test_weights"})

_SHOWN = 3


def stored_flags(path: Path, typed: Mapping[str, Any]) -> dict[str, Any]:
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
        stored = stored_flags(path, given)
    except WeightsError:
        if not typed.get("test"):
            raise
        stored = {}  # loading it will report how it differs from the flags
    stored |= found
    taken = {name: value for name, value in stored.items() if value != _unset(name)}
    words = " ".join(as_words(taken))
    return parse_options(argv, stored), f"taken from {path}: {words}" if words else None


def _unset(name: str) -> Any:
    return next(flag.default for flag in fields(Options) if flag.name == name)


def _checkpoint_of(typed: Mapping[str, Any]) -> tuple[Path | None, dict[str, str]]:
    """The checkpoint of --test, --predict or --export; None if there is none that can be read.

    Returns:
        The file, and flags that lead to it where those that were typed do not.
    """
    if not any(typed.get(job) for job in ("test", "predict", "export")):
        return None, {}
    places = ("name", "checkpoints", "dataset", "test_weights")
    run = Options(**{name: typed[name] for name in places if name in typed})
    if "ckpt_test" in typed:
        return find_checkpoint(typed["ckpt_test"], run.checkpoint_path.parent), {}
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


def _own_options(options: Any) -> dict[str, Any]:
    """The options of a checkpoint that describe its network, if a run of this code wrote it."""
    if not isinstance(options, Mapping) or "classifier" not in options:
        return {}
    # Checkpoints have lists where options have tuples.
    stored: dict[str, Any] = {
        name: tuple(options[name]) if isinstance(options[name], list) else options[name]
        for name in _STORED_FLAGS
        if name in options
    }
    try:
        Options(**stored)
    except (OptionError, TypeError):
        return {}
    return stored


def load_network(options: Options) -> SegmentationModel:
    """Load the network of --ckpt_test on the CPU."""
    path, model = _weights_file(options), model_of(options)
    state = model_state(load_checkpoint(path))
    load_model_state(model, state, path, may_lack=DEEP_SUPERVISION)
    return model


def _weights_file(options: Options) -> Path:
    return find_checkpoint(options.ckpt_test or "", options.checkpoint_path.parent)


def _kept_states(names: Sequence[str], options: Options) -> dict[str, State]:
    """{score: fitted state} of the fitted scores, from the files beside the checkpoint.

    Raises:
        OptionError: a state is missing, or belongs to other weights or settings.
    """
    states: dict[str, State] = {}
    for name in names:
        if SCORES[name].fitted:
            settings, seed = inference_settings(options), options.random_seed
            state = kept_state(name, _weights_file(options), settings, seed)
            if state is None:
                raise OptionError(
                    f"argument --score: {name} needs a data set's training images; run --test "
                    f"--score {name} on this checkpoint with the same flags first"
                )
            states[name] = state
    return states


# Pictures


class Predictor:
    """One process's share of --predict.

    Attributes:
        class_names: names by class index.
        threshold: scores >= threshold are anomalies; None without a threshold.
        heat_scale: scale of the heat maps.
    """

    def __init__(self, options: Options, process: Process) -> None:
        self.options, self.process = options, process
        self.class_names = describe(
            options.dataset, options.data_root, options.trained_on
        ).class_names
        network = load_network(options).to(process.device)
        inference = Inference(network, process.device, options.precision, plain=options.plain)
        passes = options.mc_dropout or DROPOUT_PASSES
        headline = options.scores[:1]
        states = from_main(process, lambda: _kept_states(headline, options))
        self.scorer = Scorer(inference, headline, states, passes=passes, seed=options.random_seed)
        self.threshold = options.threshold
        if options.calibrate_fpr is not None:
            self.threshold = self._calibrated(options.calibrate_fpr)
        bounds = bounds_of(options.scores[0], len(self.class_names), options.classifier)
        self.heat_scale = HeatScale(bounds, self.threshold)

    def predict(self, picture: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Class indices and anomaly score of a picture, both (H, W) at its own size.

        Args:
            picture: any PIL picture; turned upright first, according to its EXIF data.

        Returns:
            Indices into `class_names`, and the score: higher = more anomalous.
        """
        rgb = upright(picture).convert("RGB")
        return self.maps(picture_sample("", rgb, multi_scale=self.options.multi_scala))

    def maps(
        self, sample: EvaluationSample | PictureSample
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(H, W) class indices and anomaly score of one picture, at the size of the file."""
        size = sample.picture.shape[:2]
        # The number seeds MC dropout, so that a picture's result does not depend on the others.
        output = self.scorer.forward(sample.images, size, sample.picture)
        (score,) = self.scorer.maps(output).values()
        prediction = output.prediction.to(torch.uint8)
        return prediction.cpu().numpy(), score.float().cpu().numpy()

    def _calibrated(self, fpr: float) -> float:
        """The threshold at false positive rate `fpr` on known pixels of the validation split."""
        options = self.options
        loader = evaluation_loader_of(options, self.process, "validation", options.multi_scala)
        skipped = SkippedFiles()
        skipped.watch("validation", loader)
        counts, samples = PooledCounts(), torch.zeros((), device=self.process.device)

        def known_scores() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
            for sample in self._progress(loader, "calibration"):
                _, score = self.maps(sample)
                yield score[:0].ravel(), score[sample.label.numpy() < options.num_classes]

        for scores in known_scores():
            samples += 1
            counts.update(*scores)
        counts.all_reduce()
        if not sum_over_processes(samples):
            raise reader_of(loader).nothing_readable()
        for line in skipped.report():
            if self.process.is_main:
                print(line, file=sys.stderr)
        # Scores close to the threshold get a further pass.
        threshold = sharpened(counts, known_scores, fpr=fpr).threshold_at_fpr(fpr)
        if threshold is None:
            raise PansError(
                f"--calibrate_fpr: no validation image below {options.data_root} has a known "
                "pixel; pass the data folder as --data_root, or pass --threshold"
            )
        return threshold

    def write_share(
        self, sources: Sequence[Source], folder: PredictionFolder
    ) -> tuple[list[dict[str, Any]], list[Unreadable]]:
        """Run this process's share; returns a summary per picture, and the unreadable files."""
        pictures: list[dict[str, Any]] = []
        problems: list[Unreadable] = []
        samples = samples_of(
            sources,
            multi_scale=self.options.multi_scala,
            frame_step=self.options.frame_step,
            num_workers=self.options.num_workers,
            timeout=self.options.timeout,
            rank=self.process.rank,
            world_size=self.process.world_size,
        )
        for sample in self._progress(samples, "pictures"):
            if isinstance(sample, Unreadable):
                problems.append(sample)
                folder.tell(str(sample))
            else:
                pictures.append(self._write(sample, folder))
                folder.tell(pictures[-1])
        return pictures, problems

    def _write(self, sample: PictureSample, folder: PredictionFolder) -> dict[str, Any]:
        picture = sample.picture.numpy()
        prediction, score = self.maps(sample)
        mask = None if self.threshold is None else score >= np.float32(self.threshold)
        limits = folder.write(sample.name, picture, prediction, score, mask, self.heat_scale)
        return {
            "name": sample.name,
            "size": [picture.shape[1], picture.shape[0]],
            "lowest_score": float(score.min()),
            "mean_score": float(score.mean(dtype=np.float64)),
            "highest_score": float(score.max()),
            "anomalous_share": None if mask is None else float(mask.mean()),
            "heat_limits": list(limits),
        }

    def _progress(self, items: Any, name: str) -> ProgressBar:
        return ProgressBar(items, name, shown=self.process.is_main)


def predict(options: Options, process: Process) -> None:
    """Write class maps, anomaly scores and pictures for all inputs of --predict to --out.

    Raises:
        PansError: some inputs could not be read (raised after the rest is done), or none was
            found; or --out contains files of the user's, or cannot be written to.
    """
    out = Path(options.out or "")
    sources, problems = find_sources(options.predict, out)
    sources, labels = without_label_maps(sources, options.predict)
    if unsupported := without_support(sources):
        sources = [source for source in sources if not source.is_video]
        problems += unsupported
    if not sources:
        raise PansError(f"--predict found nothing to read: {'; '.join(map(str, problems))}")
    info = describe(options.dataset, options.data_root, options.trained_on)
    folder = PredictionFolder(out, info, process.rank)
    folder.check(sources, overwrite=options.overwrite)
    predictor = Predictor(options, process)
    gather_objects(None)  # every process has checked before one of them writes
    if process.is_main and labels:
        print(_words_on_labels(labels))
    from_main(process, folder.begin)
    checkpoint = _weights_file(options)
    heading = {
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": from_main(process, lambda: sha256_of(checkpoint)),
        "score": options.scores[0],
        "multi_scale": options.multi_scala,
        "classes": list(info.class_names),
        "threshold": predictor.threshold,
        "calibrated_fpr": options.calibrate_fpr,
        "label_maps": [str(label.path) for label in labels],
    }
    with folder.predicting(sources, heading):
        with stop_at_once():  # a signal shall not end one of several processes untold
            pictures, unreadable = predictor.write_share(sources, folder)
        shares = gather_objects((pictures, unreadable))
        if not process.is_main:
            return
        done = list(chain.from_iterable(share[0] for share in shares))
        unread = [*map(str, problems), *sorted({str(one) for share in shares for one in share[1]})]
        no_video = _write_videos(sources, done, folder, options.frame_step)
        folder.finish(heading, done, unread)
    print(f"{len(done)} pictures in {out}, score {options.scores[0]}{_words(predictor.threshold)}")
    if unread:
        raise PansError(
            f"{len(unread)} could not be processed, the other {len(done)} are done: "
            + "; ".join(unread + no_video)
        )
    if no_video:
        raise PansError(f"all pictures are done, but {'; '.join(no_video)}")


def _write_videos(
    sources: Sequence[Source],
    pictures: Sequence[Mapping[str, Any]],
    folder: PredictionFolder,
    frame_step: int,
) -> list[str]:
    """Write an MP4 of each video's overlays; returns the errors."""
    names, problems = [picture["name"] for picture in pictures], []
    for source in sources:
        if source.is_video:
            try:
                folder.write_video(source.name, names, frame_rate(source.path) / frame_step)
            except NoVideo as error:
                problems.append(str(error))
    return problems


def _words_on_labels(labels: Sequence[Source]) -> str:
    shown = ", ".join(str(label.path) for label in labels[:2])
    return (
        f"note: left out as label maps: {len(labels)} files, such as {shown}; to predict one, "
        "name the file itself"
    )


def _words(threshold: float | None) -> str:
    return "" if threshold is None else f", anomalous where score >= {threshold:.6g}"


# Export


def export(options: Options) -> None:
    """Export the network of --ckpt_test and its score to --out.

    Raises:
        PansError: a package is missing, or the file cannot be written.
    """
    check_export_support()
    path = Path(options.out or "")
    info = describe(options.dataset, options.data_root, options.trained_on)
    metadata = {
        "input": "image: float32 (batch, 3, height, width), RGB, any batch, sides of 8 or more",
        "preprocessing": "RGB / 255, then (value - mean) / std of each channel; the test of this "
        "network resizes pictures to 1000/1280 of their sides (bilinear, antialiased), each "
        "rounded up to a multiple of 8",
        "mean": " ".join(map(str, MEAN)),
        "std": " ".join(map(str, STD)),
        "logits": "(batch, classes, height / stride, width / stride), rounded up",
        "score": f"{options.scores[0]}, (batch, height, width), higher = more anomalous, one scale",
        "classes": ", ".join(info.class_names),
        "output_stride": str(options.output_stride),
    }

    export_onnx(load_network(options), SCORES[options.scores[0]], path, metadata)
    print(
        f"{path}: score {options.scores[0]}, any batch and size; see docs/predict.md for its input"
    )
