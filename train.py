"""Training, validation and test: the loops, from top to bottom."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from argparser import OptionError, Options
from dataset import (
    IGNORE_INDEX,
    EpochSampler,
    EvaluationSample,
    Sample,
    Split,
    describe,
    evaluation_loader,
    reader_of,
    training_loader,
)
from metrics.comparison import ScoreComparison
from metrics.evaluation import AnomalyEvaluation
from metrics.segmentation import ConfusionMatrix, segmentation_scores
from modules import SegmentationModel, build_model
from modules.inference import Inference
from modules.normalisation import normalised
from modules.pretrained import backbone_weights, load_backbone
from modules.scores import DROPOUT_PASSES, SCORES, Scorer, upsample
from utils.checkpoint import load_checkpoint, load_model_state, model_state, save_checkpoint
from utils.compilation import compiled
from utils.curves import log_anomaly_figures, log_prototypes
from utils.distributed import (
    Process,
    first_on_each_machine,
    from_main,
    gather_objects,
    sum_over_processes,
    wait_for_all,
)
from utils.extremes import Extremes
from utils.interruption import (
    Interrupted,
    Interruption,
    WaitBrokenOff,
    command_to_continue,
)
from utils.logger import Logger
from utils.max_logits import training_statistics
from utils.panels import Panels
from utils.progress import ProgressBar
from utils.results import log_segmentation, log_start, report_results
from utils.resume import (
    Position,
    Shape,
    describe_start,
    is_continued,
    load_training_state,
    notes_on_test,
    options_to_record,
    position_in,
    random_state,
    starting_checkpoint,
)
from utils.scheduler import go_to, make_scheduler
from utils.skipped import SkippedFiles
from utils.step_guard import StepGuard, check_row
from utils.visualize import sample_panel

BACKBONES = Path("pretrained")

SHOWN_EXTREMES = 3
"""Worst and best images of a test in TensorBoard, for each metric."""


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, mean over the pixels that are not ignored; 0 where all of them are.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W) uint8, class indices, 255 = ignore.
    """
    total = F.cross_entropy(
        logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (labels != IGNORE_INDEX).sum().clamp_min(1)


def default_precision(device: torch.device) -> str:
    """bf16 on a GPU that has it, else fp32."""
    # Without emulation, which torch takes for support too.
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_it else "fp32"


def model_of(options: Options) -> SegmentationModel:
    """The network that the options describe, with random weights."""
    return build_model(
        options.backbone,
        options.classifier,
        options.norm_act,
        options.num_classes,
        options.output_stride,
        plain=options.plain,
        checkpoint_activations=options.checkpoint_activations,
    )


def evaluation_loader_of(
    options: Options, process: Process, split: Split, multi_scale: bool | None
) -> DataLoader[EvaluationSample]:
    """Whole images: at full size for None, else at one or at five of the test scales."""
    return evaluation_loader(
        options.data_root,
        split,
        multi_scale=multi_scale,
        num_workers=options.num_workers,
        rank=process.rank,
        world_size=process.world_size,
        dataset=options.dataset,
        skip_bad_files=options.skip_bad_files,
        timeout=options.timeout,
    )


class Trainer:
    """One model in one process of a run: `fit` trains and validates it, `test` scores it."""

    def __init__(self, options: Options, process: Process, logger: Logger) -> None:
        self.options, self.process, self.logger = options, process, logger
        self.info = describe(options.dataset, options.data_root, options.trained_on)
        self.skipped = SkippedFiles()
        self.precision = options.precision or default_precision(process.device)
        self.epoch = self.iteration = 0  # done so far
        self.best_score = -1.0  # validation mIoU
        self.last_report: dict[str, float] = {}  # that of the step just done, if it had one
        self.interruption = Interruption(options.ckpt_minutes, process.host_group)
        torch.manual_seed(options.random_seed)  # the same initial weights in every process
        self.model = model_of(options).to(process.device)
        torch.manual_seed(options.random_seed + process.rank)  # but not the same dropout

    # Training

    def fit(self) -> None:
        """Train up to `epochs`, validating and saving as often as the options say."""
        options = self.options
        self._prepare_training()
        with self.interruption:
            try:
                while self.epoch < options.epochs:
                    self._fit_epoch()
            except WaitBrokenOff:
                self._answer_demands()

    def _fit_epoch(self) -> None:
        """Train, validate and save as far as an epoch goes."""
        options = self.options
        self.train_epoch()
        done = self.epoch + 1
        last = done == options.epochs
        validated = last or done % options.val_interval == 0
        score = self.validate() if validated else self.best_score
        self.epoch = done  # only now, so that a validation that was broken off is repeated
        if score > self.best_score:
            self.best_score = score
            self._save(options.best_checkpoint_path)
        if last or done % options.ckpt_interval == 0:
            self._save(options.checkpoint_path)

    def train_epoch(self) -> None:
        """What is left of a pass over the training set; a report every `print_interval` steps."""
        self.model.train()
        assert isinstance(self.loader.sampler, EpochSampler)
        first = Position(self.epoch, self.iteration).first_step(self.shape)
        self.loader.sampler.set_epoch(self.epoch, first * self.options.accumulate)
        batches = self.interruption.breaking_off(self.loader)
        bar = self._progress(range(first, self.shape.steps_per_epoch), f"epoch {self.epoch + 1}")
        start, start_iteration = time.perf_counter(), self.iteration
        for _ in bar:
            self.last_report = {}
            self.train_step(batches)
            if self.iteration % self.options.print_interval == 0:
                speed = (self.iteration - start_iteration) / (time.perf_counter() - start)
                report = self._training_report(speed)
                self._log_report(report)
                bar.set_postfix({name: f"{value:.3g}" for name, value in report.items()})
                start, start_iteration = time.perf_counter(), self.iteration
            self._answer_demands()

    def train_step(self, batches: Iterator[Sample]) -> Tensor:
        """One step of the optimizer on the next `accumulate` batches; returns their mean loss."""
        accumulate = self.options.accumulate
        step_loss = torch.zeros((), device=self.process.device)
        for number in range(1, accumulate + 1):
            images, labels = (self._to_device(tensor) for tensor in next(batches))
            with self._exchanging_gradients(number == accumulate):
                with self._autocast():
                    output = self.network(normalised(images))
                loss, deepsup_loss = (
                    segmentation_loss(upsample(logits, labels.shape[-2:]), labels)
                    for logits in output
                )
                loss = (loss + self.options.deepsup * deepsup_loss) / accumulate
                loss.backward()
            step_loss += loss.detach()
        self.guard.step(step_loss)
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.iteration += 1
        return step_loss

    def _training_report(self, steps_per_second: float) -> dict[str, float]:
        """Means over the last `print_interval` steps of all processes; waits for the device.

        Args:
            steps_per_second: over those of them that are in this epoch.
        """
        options, processes = self.options, self.process.world_size
        tally = self.guard.read()
        advice = f"{options.checkpoint_path} is the last checkpoint, if one was written"
        check_row(tally, options.max_bad_steps, self.iteration, advice)
        loss = torch.tensor(tally.loss, device=self.process.device)
        report = {
            "loss": sum_over_processes(loss).item() / processes,
            "lr": float(self.scheduler.get_last_lr()[0]),
            "images_per_second": steps_per_second
            * (options.accumulate * options.batch_size * processes),
        }
        return report | ({"skipped_steps": tally.skipped} if tally.skipped else {})

    def _log_report(self, report: dict[str, float]) -> None:
        self.last_report = report
        self.logger.scalars(
            {f"train/{name}": value for name, value in report.items()}, self.iteration
        )

    def _answer_demands(self) -> None:
        """Save and leave, if a signal or the clock demands it of any process."""
        demand = self.interruption.demand()
        if demand.save:
            self._save(self.options.checkpoint_path)
        if demand.stop:
            wait_for_all(self.process)  # or the first to leave would end the one that saves
            done = f"step {self.iteration} is saved in {self.options.checkpoint_path}"
            raise Interrupted(demand.stop, f"{done}; go on with: {command_to_continue()}")

    # Validation

    @torch.inference_mode()
    def validate(self) -> float:
        """Loss, IoU and accuracy on whole validation images; returns the mean IoU."""
        options, device = self.options, self.process.device
        loader = self._evaluation_loader("train" if options.val_on_trainset else "validation")
        scorer = self._scorer([options.shown_score])
        confusion = ConfusionMatrix(options.num_classes, device)
        panels = Panels(_images_of(loader), options.sample_num, self.info)
        loss_and_images = torch.zeros(2, dtype=torch.float64, device=device)
        # Every process answers equally often, though some have one image more or leave some out.
        answers = iter(range(_images_of(loader) // self.process.world_size))
        for sample in self._progress(self.interruption.breaking_off(loader), "validation"):
            if next(answers, None) is not None:
                self._answer_demands()
            label, size = self._to_device(sample.label), sample.label.shape
            evidence = scorer.look(sample.images, size, sample.picture, sample.index)
            full_logits = upsample(evidence.logits[0], size)
            prediction = full_logits.max(dim=1).indices[0]  # several times as fast as argmax
            confusion.update(prediction, label)
            loss_and_images[0] += segmentation_loss(full_logits, label[None])
            loss_and_images[1] += 1
            if panels.wants(sample.index):
                (score,) = scorer.maps(evidence).values()
                panels.add(sample, prediction, score)
        for _ in answers:
            self._answer_demands()
        confusion.all_reduce()
        loss, images = sum_over_processes(loss_and_images).tolist()
        if not images:
            raise reader_of(loader).nothing_readable()
        scores: dict[str, Any] = {**segmentation_scores(confusion.matrix), "Loss": loss / images}
        matrix = confusion.matrix
        log_segmentation(self.logger, "validation", scores, matrix, self.info, self.iteration)
        panels.log(self.logger, "validation", self.iteration)
        if self.process.is_main:
            self._log_prototypes()
        return scores["Mean IoU"]

    # Test

    @torch.inference_mode()
    def test(self) -> dict[str, Any]:
        """Anomaly metrics and mean IoU on the test split, as in results.json."""
        options = self.options
        self._load_tested_weights()
        loader = self._evaluation_loader("test", options.multi_scala)
        scorer = self._scorer(options.scores)
        comparison = ScoreComparison(options.scores, self._empty_evaluation)
        pictures = options.log_folder / "pictures" if options.visualize else None
        panels = Panels(_images_of(loader), options.sample_num, self.info, pictures)
        extremes = Extremes(
            min(options.sample_num, SHOWN_EXTREMES),
            partial(sample_panel, info=self.info, columns=2),
        )
        for sample in self._progress(loader, "test"):
            size = sample.label.shape
            evidence = scorer.look(sample.images, size, sample.picture, sample.index)
            prediction, maps = evidence.prediction, scorer.maps(evidence)
            comparison.update(sample.index, sample.name, maps, prediction, sample.label)
            headline_score = maps[options.scores[0]]
            metrics = comparison.headline.records[-1].metrics
            extremes.offer(sample, prediction, headline_score, metrics)
            if panels.wants(sample.index):
                panels.add(sample, prediction, headline_score)
        comparison.all_reduce()
        if not comparison.headline.records:
            raise reader_of(loader).nothing_readable()
        results = comparison.results() | {
            "skipped_files": self.skipped.gather("test"),
            "options": options.to_dict(),
        }
        panels.log(self.logger, "test", self.iteration)
        extremes.log(self.logger, "test", self.iteration)
        if self.process.is_main:
            self._log_curves(results, comparison)
            self._log_prototypes()
            matrix = comparison.headline.confusion.matrix
            folder = options.log_folder
            report_results(self.logger, folder, results, matrix, self.info, self.iteration)
        return results

    def _log_curves(self, results: dict[str, Any], comparison: ScoreComparison) -> None:
        """Figures and curves of every score, those of the headline under the plain tag."""
        for name, evaluation in comparison.evaluations.items():
            tag = "test" if evaluation is comparison.headline else f"test {name}"
            figures = results | results["scores"][name]
            log_anomaly_figures(self.logger, tag, figures, evaluation.pooled, self.iteration)

    def _log_prototypes(self) -> None:
        if self.options.classifier == "cosine":
            prototypes = self.model.state_dict()["cls.cls.weight"]
            names = self.info.class_names
            log_prototypes(self.logger, "prototypes", prototypes, names, self.iteration)

    def _empty_evaluation(self) -> AnomalyEvaluation:
        min_predicted_size, min_true_size = self.info.component_sizes
        return AnomalyEvaluation(
            self.options.num_classes,
            self.options.unk_class,
            IGNORE_INDEX,
            self.info.class_indices(self.options.ignore_classes),
            self.process.device,
            class_names=self.info.class_names,
            min_predicted_size=min_predicted_size,
            min_true_size=min_true_size,
        )

    def _scorer(self, names: Sequence[str]) -> Scorer:
        """Looks at the training images first if one of the scores needs that."""
        options, inference = self.options, self._inference()
        statistics = None
        if any(SCORES[name].statistics for name in names):
            loader = self._evaluation_loader("train", options.multi_scala)
            settings = [options.multi_scala, options.norm_act, options.output_stride]
            settings += [self.precision, options.plain]
            statistics = training_statistics(
                inference, loader, self.process, self._tested_path, settings
            )
        passes = options.mc_dropout or DROPOUT_PASSES
        return Scorer(inference, names, statistics, passes=passes, seed=options.random_seed)

    # Start and end

    def _prepare_training(self) -> None:
        """Loader, optimizer and scheduler; weights from --ckpt, from ImageNet or at random."""
        options, process = self.options, self.process
        self._require_statistics()
        self.loader = training_loader(
            options.data_root,
            batch_size=options.batch_size,
            crop_size=options.crop_size,
            seed=options.random_seed,
            num_workers=options.num_workers,
            rank=process.rank,
            world_size=process.world_size,
            accumulate=options.accumulate,
            dataset=options.dataset,
            skip_bad_files=options.skip_bad_files,
            timeout=options.timeout,
        )
        self.skipped.watch("train", self.loader)
        self.shape = Shape(len(self.loader) // options.accumulate, process.world_size)
        if options.fix_bn:
            self.model.freeze_norms()
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.momentum > 0,
            fused=True,
        )
        self.scheduler = make_scheduler(
            self.optimizer,
            options.lr_policy,
            total_iterations=options.epochs * self.shape.steps_per_epoch,
            power=options.lr_power,
            decay_step=options.lr_decay_step,
            decay_factor=options.lr_decay_factor,
        )
        self.guard = StepGuard(self.optimizer, self.model, options.clip_grad_norm)
        self.recorded_options = options.to_dict()
        path = from_main(process, lambda: starting_checkpoint(options))
        if path is not None:
            self._start_from(path)
        elif not options.no_pretrained:
            self._load_backbone()
        self.guard.keep_statistics_of_now()  # a first step that fails goes back to these
        position = Position(self.epoch, self.iteration)
        self.logger.start_at(position.first_logged(self.shape))
        if position.first_logged(self.shape) == self.iteration > 0:
            self._log_report(self.last_report)  # which the line above has hidden
        if self.iteration == 0:
            log_start(self.logger, self.recorded_options)
        self.network: nn.Module = compiled(self.model) if options.compile else self.model
        if dist.is_initialized():
            self.network = DistributedDataParallel(
                self.network,
                gradient_as_bucket_view=True,
                static_graph=options.accumulate == 1,  # no_sync does not go with it
            )

    def _require_statistics(self) -> None:
        """Batch statistics need two values, and the pyramid's one cell gives one an image."""
        options, processes = self.options, self.process.world_size
        if options.batch_size * (processes if options.norm_act == "iabn_sync" else 1) < 2:
            raise OptionError(
                "argument --batch_size: one image has no batch statistics; give 2 or more, or 1 "
                "on each of several processes with --norm_act iabn_sync"
            )

    def _load_backbone(self) -> None:
        """ImageNet's weights, by --pretrained."""
        options = self.options
        with first_on_each_machine(self.process):  # a download is for one process
            weights = backbone_weights(options.pretrained or "auto", options.backbone, BACKBONES)
        plain_norms = options.norm_act in ("abn", "std")
        load_backbone(self.model.body, weights, plain_norms=plain_norms)

    def _start_from(self, path: Path) -> None:
        """Go on where a checkpoint of a run stands, or begin with its weights alone."""
        options, checkpoint = self.options, load_checkpoint(path)
        position = None
        if is_continued(checkpoint, path, options):
            position = position_in(checkpoint, path, options, self.shape)
        load_model_state(self.model, model_state(checkpoint), path)
        if position is not None:
            self.epoch, self.iteration = position.epoch, position.iteration
            self.best_score = load_training_state(
                checkpoint, path, self.optimizer, self.guard, self.process
            )
            go_to(self.scheduler, self.iteration)
            self.last_report = checkpoint.get("last_report", {})
            self.recorded_options = options_to_record(checkpoint, path, options)
        if self.process.is_main:
            print(describe_start(path, position, options, self.shape))

    def _save(self, path: Path) -> None:
        """Write a checkpoint; every process calls this."""
        own_state = {"random": random_state(self.process.device), "guard": self.guard.state_dict()}
        processes = gather_objects(own_state)
        if self.process.is_main:
            state = {
                "model_state": self.model.state_dict(),
                "optimizer_state": self.optimizer.state_dict(),
                "scheduler_state": self.scheduler.state_dict(),
                "epoch": self.epoch,
                "iteration": self.iteration,
                "best_score": self.best_score,
                **self.shape._asdict(),
                "last_report": self.last_report,
                "processes": processes,
                "options": self.recorded_options,
                "classes": list(self.info.class_names),
            }
            save_checkpoint(path, state, keep_previous=path == self.options.checkpoint_path)
        if path == self.options.checkpoint_path:
            self.interruption.saved()

    def _load_tested_weights(self) -> None:
        """Those of --ckpt_test, or of the run's best checkpoint, once it is written."""
        wait_for_all(self.process)
        path = self._tested_path
        checkpoint = load_checkpoint(path)
        load_model_state(self.model, model_state(checkpoint), path)
        if self.process.is_main:
            for note in notes_on_test(checkpoint, path, self.options):
                print(note)

    @property
    def _tested_path(self) -> Path:
        return Path(self.options.ckpt_test or self.options.best_checkpoint_path)

    def _inference(self) -> Inference:
        return Inference(self.model, self.process.device, self.precision, plain=self.options.plain)

    def _evaluation_loader(
        self, split: Split, multi_scale: bool | None = None
    ) -> DataLoader[EvaluationSample]:
        """As `evaluation_loader_of`; what it leaves out is listed at the end."""
        loader = evaluation_loader_of(self.options, self.process, split, multi_scale)
        self.skipped.watch(split, loader)
        return loader

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.process.device.type, torch.bfloat16, enabled=self.precision == "bf16"
        )

    def _exchanging_gradients(self, exchange: bool) -> AbstractContextManager[None]:
        """With `exchange` False, backward keeps this process's gradients to itself."""
        if exchange or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.process.device, non_blocking=True)

    def _progress(self, items: Iterable[Any], name: str) -> ProgressBar:
        return ProgressBar(items, name, disable=not self.process.is_main, dynamic_ncols=True)


def _images_of(loader: DataLoader[EvaluationSample]) -> int:
    """How many images the split has, on all processes together."""
    return len(loader.dataset)  # type: ignore[arg-type]
