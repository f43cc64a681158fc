"""A trained network on the user's own pictures, and as an ONNX file."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from argparser import OptionError, Options
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
from dataset.skipping import SkippedFiles, reader_of
from metrics.pooled import PooledCounts, sharpened
from modules.export import check_export_support, export_onnx
from modules.inference.network import Inference
from modules.normalisation import MEAN, STD
from modules.scores.fitted import kept_state
from modules.scores.formulas import bounds_of
from modules.scores.network_output import State
from modules.scores.registry import DROPOUT_PASSES, SCORES
from modules.scores.scorer import Scorer
from modules.segmentation import SegmentationModel
from report.predictions import PredictionFolder
from report.video import NoVideo
from report.visualize import HeatScale
from stored_flags import tested_checkpoint
from utils.checkpoint import DEEP_SUPERVISION, load_checkpoint, load_model_state, model_state
from utils.distributed import Process, from_main, gather_objects, sum_over_processes
from utils.errors import PansError
from utils.files import sha256_of
from utils.interruption import stop_at_once
from utils.pictures import upright
from utils.progress import ProgressBar


def load_network(options: Options) -> SegmentationModel:
    """Load the network of --ckpt_test on the CPU."""
    path, model = tested_checkpoint(options), model_of(options)
    state = model_state(load_checkpoint(path))
    load_model_state(model, state, path, may_lack=DEEP_SUPERVISION)
    return model


def _kept_state(name: str, options: Options) -> State | None:
    """The fitted state of a score, from the file beside the checkpoint; None if it needs none.

    Raises:
        OptionError: the state is missing, or belongs to other weights or settings.
    """
    if not SCORES[name].fitted:
        return None
    settings, seed = inference_settings(options), options.random_seed
    state = kept_state(name, tested_checkpoint(options), settings, seed)
    if state is None:
        raise OptionError(
            f"argument --score: {name} needs a data set's training images; run --test --score "
            f"{name} on this checkpoint with the same flags first"
        )
    return state


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
        self.class_names = options.describe_data().class_names
        network = load_network(options).to(process.device)
        inference = Inference(network, process.device, options.precision, plain=options.plain)
        passes = options.mc_dropout or DROPOUT_PASSES
        headline = options.scores[0]
        state = from_main(process, lambda: _kept_state(headline, options))
        states = {} if state is None else {headline: state}
        self.scorer = Scorer(inference, [headline], states, passes=passes, seed=options.random_seed)
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
        # Without its index, so that MC dropout does not depend on the other pictures.
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

    def heading(self, labels: Sequence[Source]) -> dict[str, Any]:
        """What predictions.json says of all pictures; `labels` are the label maps left out."""
        options = self.options
        checkpoint = tested_checkpoint(options)
        return {
            "checkpoint": str(checkpoint),
            "checkpoint_sha256": from_main(self.process, lambda: sha256_of(checkpoint)),
            "score": options.scores[0],
            "multi_scale": options.multi_scala,
            "classes": list(self.class_names),
            "threshold": self.threshold,
            "calibrated_fpr": options.calibrate_fpr,
            "label_maps": [str(label.path) for label in labels],
        }

    def write_share(
        self, sources: Sequence[Source], folder: PredictionFolder
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Run this process's share; returns a summary per picture, and what cannot be read."""
        pictures: list[dict[str, Any]] = []
        problems: list[str] = []
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
                problems.append(str(sample))
                folder.tell(problems[-1])
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
    sources, labels, problems = _find_inputs(options.predict, out)
    folder = PredictionFolder(out, options.describe_data(), process.rank)
    folder.check(sources, overwrite=options.overwrite)
    predictor = Predictor(options, process)
    gather_objects(None)  # every process has checked before one of them writes
    if process.is_main and labels:
        print(_note_on(labels))
    from_main(process, folder.begin)
    heading = predictor.heading(labels)
    with folder.predicting(sources, heading):
        with stop_at_once():  # a signal shall not end one of several processes untold
            share = predictor.write_share(sources, folder)
        shares = gather_objects(share)
        if not process.is_main:
            return
        done = [picture for pictures, _ in shares for picture in pictures]
        unread = [*map(str, problems), *sorted({one for _, own in shares for one in own})]
        no_video = _write_videos(sources, done, folder, options.frame_step)
        folder.finish(heading, done, unread)
    _report(predictor, out, len(done), unread, no_video)


def _find_inputs(
    paths: Sequence[str], out: Path
) -> tuple[list[Source], list[Source], list[Unreadable]]:
    """The pictures and videos of --predict, the label maps left out, and what cannot be read."""
    sources, problems = find_sources(paths, out)
    sources, labels = without_label_maps(sources, paths)
    if unsupported := without_support(sources):
        sources = [source for source in sources if not source.is_video]
        problems += unsupported
    if not sources:
        raise PansError(f"--predict found nothing to read: {'; '.join(map(str, problems))}")
    return sources, labels, problems


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


def _note_on(labels: Sequence[Source]) -> str:
    shown = ", ".join(str(label.path) for label in labels[:2])
    return (
        f"note: left out as label maps: {len(labels)} files, such as {shown}; to predict one, "
        "name the file itself"
    )


def _report(
    predictor: Predictor, out: Path, done: int, unread: Sequence[str], no_video: Sequence[str]
) -> None:
    """Print how many pictures are done; raise PansError if some, or their videos, are not."""
    words = f"{done} pictures in {out}, score {predictor.options.scores[0]}"
    if predictor.threshold is not None:
        words += f", anomalous where score >= {predictor.threshold:.6g}"
    print(words)
    if unread:
        raise PansError(
            f"{len(unread)} could not be processed, the other {done} are done: "
            + "; ".join([*unread, *no_video])
        )
    if no_video:
        raise PansError(f"all pictures are done, but {'; '.join(no_video)}")


# Export


def export(options: Options) -> None:
    """Export the network of --ckpt_test and its score to --out.

    Raises:
        PansError: a package is missing, or the file cannot be written.
    """
    check_export_support()
    path = Path(options.out or "")
    metadata = {
        "input": "image: float32 (batch, 3, height, width), RGB, any batch, sides of 8 or more",
        "preprocessing": "RGB / 255, then (value - mean) / std of each channel; the test of this "
        "network resizes pictures to 1000/1280 of their sides (bilinear, antialiased), each "
        "rounded up to a multiple of 8",
        "mean": " ".join(map(str, MEAN)),
        "std": " ".join(map(str, STD)),
        "logits": "(batch, classes, height / stride, width / stride), rounded up",
        "score": f"{options.scores[0]}, (batch, height, width), higher = more anomalous, one scale",
        "classes": ", ".join(options.describe_data().class_names),
        "output_stride": str(options.output_stride),
    }
    export_onnx(load_network(options), SCORES[options.scores[0]], path, metadata)
    print(
        f"{path}: score {options.scores[0]}, any batch and size; see docs/predict.md for its input"
    )
