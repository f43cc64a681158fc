"""Validation and test: the loops and their reports."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from argparser import Options
from build import evaluation_loader_of, inference_settings
from dataset.description import IGNORE_INDEX, DatasetInfo, Split
from dataset.loaders import EvaluationSample
from dataset.skipping import SkippedFiles, reader_of
from metrics.evaluation import AnomalyEvaluation
from metrics.segmentation import ConfusionMatrix, segmentation_scores
from modules.inference.network import Inference
from modules.loss import segmentation_loss
from modules.scores.fitted import fitted_states
from modules.scores.network_output import upsample
from modules.scores.registry import DROPOUT_PASSES, SCORES
from modules.scores.scorer import Scorer
from modules.segmentation import SegmentationModel
from report.curves import log_anomaly_metrics, log_prototypes
from report.environment import environment
from report.extremes import Extremes
from report.panels import Panels
from report.results import log_segmentation, log_start, report_results
from report.visualize import sample_panel
from stored_flags import describe_tested, tested_checkpoint
from utils.background import Background, to_host
from utils.checkpoint import DEEP_SUPERVISION, load_checkpoint, load_model_state, model_state
from utils.distributed import Process, from_main, sum_over_processes, wait_for_all
from utils.files import sha256_of
from utils.logger import Logger
from utils.progress import ProgressBar

SHOWN_EXTREMES = 3
"""Number of worst and of best images of a test in TensorBoard, per metric."""


class Evaluator:
    """One network in one process of a run: `validate` measures its mean IoU, `test` its scores.

    Args:
        skipped: collects the loaders, for the list of skipped files.
    """

    def __init__(
        self,
        options: Options,
        process: Process,
        logger: Logger,
        info: DatasetInfo,
        model: SegmentationModel,
        skipped: SkippedFiles,
    ) -> None:
        self.options, self.process, self.logger = options, process, logger
        self.info, self.model, self.skipped = info, model, skipped

    @torch.inference_mode()
    def validate(
        self,
        step: int,
        between_images: Callable[[], None],
        interruptible: Callable[[Iterable[Any]], Iterable[Any]],
    ) -> float:
        """Loss, IoU and accuracy on whole validation images; returns the mean IoU.

        Args:
            step: the training step, for TensorBoard.
            between_images: called the same number of times in every process.
            interruptible: iterates over the samples, like `Interruption.interruptible`.
        """
        options, device = self.options, self.process.device
        loader = self._evaluation_loader("train" if options.val_on_trainset else "validation")
        scorer = self._scorer([options.shown_score])
        confusion = ConfusionMatrix(options.num_classes)
        panels = Panels(_images_of(loader), options.sample_num, self.info)
        loss_and_images = torch.zeros(2, dtype=torch.float64, device=device)
        # Every process polls the same number of times, though some have more images than others.
        polls = _images_of(loader) // self.process.world_size
        samples = _polling(interruptible(loader), between_images, polls)
        with Background() as background:
            for sample in self._progress(samples, "validation"):
                label, size = sample.label.to(device, non_blocking=True), sample.label.shape
                output = scorer.forward(sample.images, size, sample.picture, sample.index)
                full_logits = upsample(output.logits[0], size)
                loss_and_images[0] += segmentation_loss(full_logits, label[None])
                loss_and_images[1] += 1
                # Several times as fast as argmax.
                prediction = to_host(full_logits.max(dim=1).indices[0].to(torch.uint8))
                background.run(partial(confusion.update, prediction, sample.label))
                if panels.wants(sample.index):
                    (score,) = scorer.maps(output).values()
                    background.run(partial(panels.add, sample, prediction, to_host(score)))
        confusion.all_reduce()
        loss, images = sum_over_processes(loss_and_images).tolist()
        if not images:
            raise reader_of(loader).nothing_readable()
        scores: dict[str, Any] = {**segmentation_scores(confusion.matrix), "Loss": loss / images}
        log_segmentation(self.logger, "validation", scores, confusion.matrix, self.info, step)
        panels.log(self.logger, "validation", step)
        self._log_prototypes("validation", step)
        return scores["Mean IoU"]

    def _load_tested_weights(self) -> int:
        """Load the weights of --ckpt_test, or of the run's own checkpoint.

        Returns:
            The training step of the weights, 0 if the file does not store it.
        """
        wait_for_all(self.process)
        self.tested_path = from_main(self.process, lambda: tested_checkpoint(self.options))
        path = self.tested_path
        checkpoint = load_checkpoint(path)
        state = model_state(checkpoint)
        load_model_state(self.model, state, path, may_lack=DEEP_SUPERVISION)
        if self.process.is_main:
            for line in describe_tested(checkpoint, path, self.options):
                print(line)
        iteration = checkpoint.get("iteration")
        return iteration if type(iteration) is int else 0

    @torch.inference_mode()
    def test(self, step: int) -> dict[str, Any]:
        """Anomaly metrics and mean IoU on the test split, as in results.json.

        Args:
            step: the training step, for TensorBoard; by default the checkpoint's.
        """
        options, start = self.options, time.perf_counter()
        step = self._load_tested_weights() or step
        loader = self._evaluation_loader("test", options.multi_scala)
        if options.test:  # only now that weights and data are there
            log_start(self.logger, options.to_dict())
        scorer = self._scorer(options.scores)
        evaluation = self._empty_evaluation(scorer)
        pictures = options.log_folder / "pictures" if options.visualize else None
        panels = Panels(_images_of(loader), options.sample_num, self.info, pictures)
        extremes = Extremes(
            min(options.sample_num, SHOWN_EXTREMES),
            partial(sample_panel, info=self.info),
        )
        with Background() as background:
            for sample in self._progress(loader, "test"):
                size = sample.label.shape
                output = scorer.forward(sample.images, size, sample.picture, sample.index)
                prediction, parts = output.prediction.to(torch.uint8), scorer.parts(output)
                on_host = _to_host(scorer.maps_from(parts, size), parts)
                found = sample, to_host(prediction), *on_host
                background.run(partial(_measure, *found, evaluation, extremes, panels))
        evaluation.all_reduce()
        if not evaluation.records:
            raise reader_of(loader).nothing_readable()
        results = evaluation.results()
        results |= self._about_the_test(results["Class IoU"], time.perf_counter() - start)
        panels.log(self.logger, "test", step)
        extremes.log(self.logger, step)
        self._log_prototypes("test", step)
        if self.process.is_main:
            self._log_curves(results, evaluation, step)
            records, matrix = evaluation.records_of, evaluation.confusion.matrix
            folder = options.log_folder
            report_results(self.logger, folder, results, records, matrix, self.info, step)
        return results

    def _about_the_test(self, class_iou: Mapping[int, float], seconds: float) -> dict[str, Any]:
        """The entries of results.json beside the metrics; undefined IoUs are None."""
        process = self.process
        return {
            "class_iou_percent": {
                name: 100 * value if math.isfinite(value) else None
                for name, value in zip(self.info.class_names, class_iou.values(), strict=True)
            },
            "checkpoint": str(self.tested_path),
            "checkpoint_sha256": sha256_of(self.tested_path) if process.is_main else None,
            "skipped_files": self.skipped.gather("test"),
            "options": self.options.to_dict(),
            "environment": {
                **environment(process.device, self.options.precision, process.world_size),
                "seconds": round(seconds, 1),
            },
        }

    def _log_curves(
        self, results: dict[str, Any], evaluation: AnomalyEvaluation, step: int
    ) -> None:
        """Log metrics and curves of every score; those of the headline under the plain tag."""
        for name, pooled in evaluation.counts.items():
            tag = "test" if name == evaluation.headline else f"test {name}"
            figures = results | results["scores"][name]
            log_anomaly_metrics(self.logger, tag, figures, pooled, step)

    def _log_prototypes(self, tag: str, step: int) -> None:
        if self.process.is_main and self.options.classifier == "cosine":
            prototypes = self.model.state_dict()["cls.cls.weight"]
            names = self.info.class_names
            log_prototypes(self.logger, tag, prototypes, names, step)

    def _empty_evaluation(self, scorer: Scorer) -> AnomalyEvaluation:
        min_predicted_size, min_true_size = self.info.component_sizes
        return AnomalyEvaluation(
            self.options.num_classes,
            self.options.unk_class,
            IGNORE_INDEX,
            self.info.class_indices(self.options.ignore_classes),
            scores=scorer.names,
            class_names=self.info.class_names,
            min_predicted_size=min_predicted_size,
            min_true_size=min_true_size,
            at_input_size=self.options.at_input_size,
            map_of=lambda name, parts, size: scorer.maps_from({name: parts}, size)[name],
        )

    def _scorer(self, names: Sequence[str]) -> Scorer:
        """Create the scorer; fits the fitted scores to the training images first."""
        options, device, states = self.options, self.process.device, {}
        inference = Inference(self.model, device, options.precision, plain=options.plain)
        fitted = [name for name in names if SCORES[name].fitted]
        if fitted:
            states = fitted_states(
                fitted,
                inference,
                self._evaluation_loader("train", options.multi_scala),
                self.process,
                self.tested_path,
                inference_settings(options),
                options.random_seed,
            )
        passes = options.mc_dropout or DROPOUT_PASSES
        return Scorer(inference, names, states, passes=passes, seed=options.random_seed)

    def _evaluation_loader(
        self, split: Split, multi_scale: bool | None = None
    ) -> DataLoader[EvaluationSample]:
        """`evaluation_loader_of`, with skipped files registered for the final list."""
        loader = evaluation_loader_of(self.options, self.process, split, multi_scale)
        self.skipped.watch(split, loader)
        return loader

    def _progress(self, items: Iterable[Any], name: str) -> ProgressBar:
        return ProgressBar(items, name, shown=self.process.is_main)


def _polling(
    samples: Iterable[EvaluationSample], poll: Callable[[], None], polls: int
) -> Iterator[EvaluationSample]:
    """Yield the samples; call `poll` `polls` times, before the first samples or after the last."""
    left = iter(range(polls))
    for sample in samples:
        if next(left, None) is not None:
            poll()
        yield sample
    for _ in left:
        poll()


def _to_host(
    maps: Mapping[str, Tensor], parts: Mapping[str, Sequence[Tensor]]
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """The maps and their parts on the CPU, with one wait for all of them."""
    tensors = [*maps.values(), *(part for own in parts.values() for part in own)]
    joined = to_host(torch.cat([tensor.flatten() for tensor in tensors]))
    pieces = joined.split([tensor.numel() for tensor in tensors])
    copies = iter([piece.view_as(one) for piece, one in zip(pieces, tensors, strict=True)])
    maps = {name: next(copies) for name in maps}
    return maps, {name: [next(copies) for _ in own] for name, own in parts.items()}


def _measure(
    sample: EvaluationSample,
    prediction: Tensor,
    maps: Mapping[str, Tensor],
    parts: Mapping[str, Sequence[Tensor]],
    evaluation: AnomalyEvaluation,
    extremes: Extremes,
    panels: Panels,
) -> None:
    """Add an image's (H, W) prediction and scores, on the CPU, to a test's metrics and pictures."""
    evaluation.update(sample.index, sample.name, maps, prediction, sample.label, parts)
    score = maps[evaluation.headline]
    extremes.offer(sample, prediction, score, evaluation.records[-1].metrics)
    if panels.wants(sample.index):
        panels.add(sample, prediction, score)


def _images_of(loader: DataLoader[EvaluationSample]) -> int:
    """Number of images of the split, over all processes."""
    return len(loader.dataset)  # type: ignore[arg-type]
