"""Training, in order of execution: set-up, epochs, steps, checkpoints."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from argparser import OptionError, Options
from build import model_of, training_loader_of
from dataset.contents import Files, changes, files_of, packed
from dataset.description import Split
from dataset.loaders import EpochSampler
from dataset.registry import open_dataset
from dataset.skipping import SkippedFiles
from dataset.transforms import Sample
from evaluate import Evaluator
from modules.abn import describe_norm
from modules.loss import training_loss
from modules.normalisation import normalised
from modules.weights.pretrained import backbone_weights, load_backbone
from modules.weights.published import from_published, is_published
from report.results import log_start
from resume import (
    Progress,
    RunSize,
    best_score_of,
    describe_start,
    is_continued,
    load_training_state,
    options_to_record,
    own_files,
    position_in,
    random_state,
    starting_checkpoint,
)
from utils.checkpoint import (
    link_checkpoint,
    load_checkpoint,
    load_model_state,
    model_state,
    require_room,
    save_checkpoint,
)
from utils.distributed import (
    Process,
    first_on_each_machine,
    from_main,
    gather_objects,
    wait_for_all,
)
from utils.files import remove_leftovers
from utils.gpu import tf32_in, timed_convolutions
from utils.interruption import (
    Interrupted,
    Interruption,
    command_to_continue,
    handling_interrupted_waits,
)
from utils.logger import Logger
from utils.lr import learning_rate
from utils.progress import Countdown, ProgressBar
from utils.step_guard import StepGuard, check_row
from utils.torch_settings import compiled

BACKBONES = Path("pretrained")


class Trainer:
    """One model in one process of a run: `fit` trains and validates it, `test` scores it."""

    def __init__(self, options: Options, process: Process, logger: Logger) -> None:
        self.options, self.process, self.logger = options, process, logger
        self.info = options.describe_data()
        self.skipped = SkippedFiles()
        self.epoch = self.iteration = 0  # completed
        self.best_score = -1.0  # validation mIoU
        self.last_report: dict[str, float] = {}  # of the last step, if it had one
        self.latest_report: dict[str, float] = {}  # of the last step that had one
        self.interruption = Interruption(options.ckpt_minutes, process.host_group)
        torch.manual_seed(options.random_seed)  # the same initial weights in every process
        self.model = model_of(options).to(process.device).to(memory_format=self.memory_format)
        torch.manual_seed(options.random_seed + process.rank)  # but not the same dropout
        self.evaluator = Evaluator(options, process, logger, self.info, self.model, self.skipped)

    def describe(self) -> str:
        """One line: precision, implementation of the norm, memory layout."""
        options, device, precision = self.options, self.process.device, self.options.precision
        norm = describe_norm(options.norm_act, device, precision, learns=not options.fix_bn)
        layout = "channels_last" if self.memory_format is torch.channels_last else "contiguous"
        return f"{precision}{tf32_in(precision, device)}, {norm}, {layout}"

    # Set-up

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of weights and maps; GPU tensor cores need channels-last data."""
        on_gpu = self.process.device.type == "cuda"
        return torch.channels_last if on_gpu and not self.options.plain else torch.contiguous_format

    def _prepare_training(self) -> None:
        """Loader and optimizer; weights from --ckpt, from ImageNet or at random."""
        options, process = self.options, self.process
        self._require_statistics()
        self.loader = training_loader_of(options, process)
        self.skipped.watch("train", self.loader)
        self.shape = RunSize(len(self.loader) // options.accumulate, process.world_size)
        if options.fix_bn:
            self.model.freeze_norms()
        self.optimizer = self._make_optimizer()
        self.guard = StepGuard(self.optimizer, self.model, options.clip_grad_norm)
        self.recorded_options = options.to_dict()
        self._check_places()
        path = from_main(process, lambda: starting_checkpoint(options))
        if path is not None:
            self._start_from(path)
        elif not options.no_pretrained:
            self._load_backbone()
        self.guard.keep_statistics_of_now()  # restored if the first step is skipped
        self._set_learning_rate()
        self._start_log()
        self.network = self._parallel(compiled(self.model) if options.compile else self.model)

    def _require_statistics(self) -> None:
        """Batch statistics need two values, and the pyramid's single cell has one per image."""
        options, processes = self.options, self.process.world_size
        if options.batch_size * (processes if options.norm_act == "iabn_sync" else 1) < 2:
            raise OptionError(
                "argument --batch_size: one image has no batch statistics; pass 2 or more, or 1 "
                "on each of several processes with --norm_act iabn_sync"
            )

    def _make_optimizer(self) -> torch.optim.SGD:
        options = self.options
        return torch.optim.SGD(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.momentum > 0,
            fused=True,
        )

    def _check_places(self) -> None:
        """Check at the start what is needed later: all splits, and space for checkpoints."""
        options = self.options
        splits: list[Split] = ["train"] if options.val_on_trainset else ["train", "validation"]
        pictures = {
            split: open_dataset(options.dataset, options.data_root, split) for split in splits
        }
        open_dataset(options.dataset, options.data_root, "test")
        self.files: dict[str, Files] = from_main(
            self.process, lambda: {split: files_of(pictures[split]) for split in splits}
        )
        paths = own_files(options)[::-1]  # an error names the newest
        if self.process.is_main:
            for path in paths:
                remove_leftovers(path)
        room = from_main(self.process, lambda: require_room(paths, self._checkpoint_bytes()))
        if self.process.is_main:
            print(room)

    def _checkpoint_bytes(self) -> int:
        """Bytes of weights, running statistics and momentum; the rest is small."""
        momentum = self.model.parameters() if self.options.momentum else ()
        tensors = [*self.model.state_dict().values(), *momentum]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _start_from(self, path: Path) -> None:
        """Resume a checkpoint, or start with its weights."""
        options, checkpoint = self.options, load_checkpoint(path)
        position = None
        if is_continued(checkpoint, path, options):
            if is_published(checkpoint):
                steps = self.shape.steps_per_epoch
                checkpoint = from_published(checkpoint, self.model, steps, str(path))
            data = changes(checkpoint.get("data"), self.files)
            position = position_in(checkpoint, path, options, self.shape, data)
        load_model_state(self.model, model_state(checkpoint), path)
        if position is not None:
            self.epoch, self.iteration = position.epoch, position.iteration
            score = load_training_state(checkpoint, path, self.optimizer, self.guard, self.process)
            self.best_score = from_main(self.process, lambda: best_score_of(score, path, options))
            self.last_report = checkpoint.get("last_report", {})
            self.recorded_options = options_to_record(checkpoint, path, options)
        if self.process.is_main:
            print(describe_start(path, position, options, self.shape))

    def _load_backbone(self) -> None:
        """Load ImageNet weights according to --pretrained."""
        options = self.options
        with first_on_each_machine(self.process):  # a download is for one process
            weights = backbone_weights(options.pretrained or "auto", options.backbone, BACKBONES)
        plain_norms = options.norm_act in ("abn", "std")
        load_backbone(self.model.body, weights, plain_norms=plain_norms)

    def _set_learning_rate(self) -> None:
        """Set the next step's learning rate, a function of the iteration."""
        options = self.options
        rate = learning_rate(
            self.iteration,
            lr=options.lr,
            policy=options.lr_policy,
            total_iterations=options.epochs * self.shape.steps_per_epoch,
            power=options.lr_power,
            decay_step=options.lr_decay_step,
            decay_factor=options.lr_decay_factor,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _start_log(self) -> None:
        position = Progress(self.epoch, self.iteration)
        self.logger.start_at(position.first_logged(self.shape))
        if position.first_logged(self.shape) == self.iteration > 0:
            self._log_report(self.last_report)  # which the line above has hidden
        if self.iteration == 0:
            log_start(self.logger, self.recorded_options)

    def _parallel(self, network: nn.Module) -> nn.Module:
        """The network, with its gradients averaged over all processes."""
        if not dist.is_initialized():
            return network
        return DistributedDataParallel(
            network,
            # Synchronised norms have the same running statistics on all processes.
            forward_sync_buffers=self.options.norm_act != "iabn_sync",
            gradient_as_bucket_view=True,
            static_graph=self.options.accumulate == 1,  # no_sync does not support it
        )

    # The loop

    def fit(self) -> None:
        """Train up to `epochs`, validating and saving as often as the options say."""
        options = self.options
        self._prepare_training()
        self.countdown = Countdown(self.iteration, options.epochs * self.shape.steps_per_epoch)
        with self.interruption, handling_interrupted_waits(self._save_or_stop_if_asked):
            # If another run's checkpoint has completed all epochs, this file is the one to test.
            own = options.checkpoint_path
            if self.epoch >= options.epochs and not from_main(self.process, own.is_file):
                self._save()
            while self.epoch < options.epochs:
                with timed_convolutions(self.process.device):
                    self.train_epoch()
                done = self.epoch + 1
                last = done == options.epochs
                validated = last or done % options.val_interval == 0
                score = self.validate() if validated else self.best_score
                self.epoch = done  # only now, so that an interrupted validation is repeated
                is_best = score > self.best_score
                if is_best:
                    self.best_score = score
                self._print_epoch(score if validated else None)
                self._save(newest=last or done % options.ckpt_interval == 0, best=is_best)

    def train_epoch(self) -> None:
        """Train the rest of an epoch; reports every `print_interval` steps."""
        self.model.train()
        assert isinstance(self.loader.sampler, EpochSampler)
        first = Progress(self.epoch, self.iteration).first_step(self.shape)
        self.loader.sampler.set_epoch(self.epoch, first * self.options.accumulate)
        batches = self.interruption.interruptible(self.loader)
        name = f"epoch {self.epoch + 1}/{self.options.epochs}"
        steps = range(first, self.shape.steps_per_epoch)
        bar = ProgressBar(steps, name, shown=self.process.is_main, reports=True)
        start, start_iteration = time.perf_counter(), self.iteration
        for _ in bar:
            self.last_report = {}
            self.train_step(batches)
            if self.iteration % self.options.print_interval == 0:
                speed = (self.iteration - start_iteration) / (time.perf_counter() - start)
                report = self._training_report(speed)
                self._log_report(report)
                values = "  ".join(f"{name} {value:.3g}" for name, value in report.items())
                bar.report(f"{values}  {self.countdown.left(self.iteration)} left")
                start, start_iteration = time.perf_counter(), self.iteration
            self._save_or_stop_if_asked()

    def train_step(self, batches: Iterator[Sample]) -> Tensor:
        """One step of the optimizer on the next `accumulate` batches; returns their mean loss."""
        accumulate, device = self.options.accumulate, self.process.device
        bf16 = self.options.precision == "bf16"
        step_loss = torch.zeros((), device=device)
        for number in range(1, accumulate + 1):
            images, labels = (tensor.to(device, non_blocking=True) for tensor in next(batches))
            with self._exchanging_gradients(number == accumulate):
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    inputs = normalised(images).contiguous(memory_format=self.memory_format)
                    output = self.network(inputs)
                loss = training_loss(output, labels, self.options.deepsup) / accumulate
                loss.backward()
            step_loss += loss.detach()
        self.guard.step(step_loss)
        self.optimizer.zero_grad()
        self.iteration += 1
        self._set_learning_rate()
        return step_loss

    def _exchanging_gradients(self, exchange: bool) -> AbstractContextManager[None]:
        """With `exchange` False, backward does not all-reduce the gradients."""
        if exchange or not isinstance(self.network, DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def validate(self) -> float:
        """Loss, IoU and accuracy on whole validation images; returns the mean IoU."""
        return self.evaluator.validate(
            self.iteration, self._save_or_stop_if_asked, self.interruption.interruptible
        )

    def test(self) -> dict[str, Any]:
        """Anomaly metrics and mean IoU on the test split, as in results.json."""
        return self.evaluator.test(self.iteration)

    # Reports and checkpoints

    def _training_report(self, steps_per_second: float) -> dict[str, float]:
        """Means over the last `print_interval` steps of all processes; waits for the device.

        Args:
            steps_per_second: over those of these steps that are in this epoch.
        """
        options, processes = self.options, self.process.world_size
        tally = self.guard.read()
        advice = f"{options.checkpoint_path} is the last checkpoint, if one was written"
        check_row(tally, options.max_bad_steps, self.iteration, advice)
        report = {
            "loss": tally.loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": steps_per_second
            * (options.accumulate * options.batch_size * processes),
        }
        return report | ({"skipped_steps": tally.skipped} if tally.skipped else {})

    def _log_report(self, report: dict[str, float]) -> None:
        self.last_report = self.latest_report = report
        self.logger.scalars(
            {f"train/{name}": value for name, value in report.items()}, self.iteration
        )

    def _print_epoch(self, score: float | None) -> None:
        """Print one line per epoch; `score` is its validation's mean IoU, if there was one."""
        if not self.process.is_main:
            return
        words = [f"epoch {self.epoch}/{self.options.epochs}"]
        if "loss" in self.latest_report:
            words.append(f"loss {self.latest_report['loss']:.3f}")
        if score is not None:
            words.append(f"val mIoU {score:.3f} (best {self.best_score:.3f})")
        if self.epoch < self.options.epochs:
            words.append(f"{self.countdown.left(self.iteration)} left")
        print("  ".join(words), flush=True)

    def _save_or_stop_if_asked(self) -> None:
        """Save, and exit if asked to, when a signal or the timer requests it on any process."""
        request = self.interruption.poll()
        if request.save:
            self._save()
        if request.stop:
            wait_for_all(self.process)  # or the first to exit would end the one that saves
            done = f"step {self.iteration} is saved in {self.options.checkpoint_path}"
            raise Interrupted(request.stop, f"{done}; resume with: {command_to_continue()}")

    def _save(self, newest: bool = True, best: bool = False) -> None:
        """Write a checkpoint as the newest, the best or both; to be called by every process."""
        if not newest and not best:
            return
        own_state = {"random": random_state(self.process.device), "guard": self.guard.state_dict()}
        processes = gather_objects(own_state)
        if self.process.is_main:
            state = {
                "model_state": self.model.state_dict(),
                "optimizer_state": self.optimizer.state_dict(),
                "scheduler_state": {"last_epoch": self.iteration},
                "epoch": self.epoch,
                "iteration": self.iteration,
                "best_score": self.best_score,
                **self.shape._asdict(),
                "last_report": self.last_report,
                "processes": processes,
                "options": self.recorded_options,
                "classes": list(self.info.class_names),
                "data": {split: packed(files) for split, files in self.files.items()},
            }
            own, best_path = self.options.checkpoint_path, self.options.best_checkpoint_path
            # The best first: a run that is killed in between repeats the validation.
            if best:
                save_checkpoint(best_path, state)
                if newest:
                    link_checkpoint(best_path, own)
            else:
                save_checkpoint(own, state, keep_previous=True)
        if newest:
            self.interruption.saved()
