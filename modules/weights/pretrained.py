"""Weight files: identify and check them, and convert their weights to this network.

`python -m modules.pretrained FILE` describes a file; `--out` writes it in the form that run.py
accepts everywhere, or with `--published` for the published code.
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.abn import EPS, norm_factory
from modules.backbones import BACKBONES
from modules.resnet import ResNet
from modules.segmentation import build_model
from modules.weights import torchvision
from modules.weights.published import to_published
from utils.checkpoint import (
    DEEP_SUPERVISION,
    CheckpointError,
    WeightsError,
    load_checkpoint,
    model_state,
)
from utils.files import replacing

IMAGENET = "ImageNet weights with in-place ABN"
TORCHVISION = "torchvision's ImageNet weights"
CHECKPOINT = "PAnS checkpoint"

KNOWN_MD5 = {"2522ca639f7fdfd7c0089ba1f5f6c2e8": "the published resnet50.pth.tar"}
_MARKS = {  # a tensor that only this kind of file has
    CHECKPOINT: "body.mod1.conv1.weight",
    IMAGENET: "mod1.conv1.weight",
    TORCHVISION: "conv1.weight",
}
# Parts of the names of tensors that may be absent; deep supervision is only needed in training.
_OPTIONAL = ("num_batches_tracked", DEEP_SUPERVISION)


@dataclass(frozen=True)
class Weights:
    """The weights of a file, under this network's names, with norms in the form of in-place ABN.

    Attributes:
        kind: IMAGENET, TORCHVISION or CHECKPOINT.
        source: the file, for messages.
        state: state dict of a body, or of a whole network for a checkpoint.
        tensors: number of tensors in the file.
        classifier, num_classes: None except for a checkpoint.
        epoch: the epoch stored in the file, if any.
    """

    kind: str
    source: str
    backbone: str
    state: dict[str, Tensor]
    tensors: int
    classifier: str | None = None
    num_classes: int | None = None
    epoch: int | None = None


def identify(content: Mapping[str, Any], source: str) -> Weights:
    """Identify and check the content of a weight file, and convert it to this network's names.

    Accepts the ImageNet file with in-place ABN ({"state_dict": {"module.mod1...": ...}}), PAnS
    checkpoints of this and of the published code, and torchvision's ResNet-50 and -101, each with
    or without `module.` and ImageNet classifier; `num_batches_tracked` may be absent.

    Raises:
        WeightsError: none of these; or a tensor is missing, has another shape, or is not finite.
    """
    try:
        given = model_state(content)
    except CheckpointError as error:
        raise WeightsError(f"{source}: {error}") from error
    kind = next((kind for kind, mark in _MARKS.items() if mark in given), None)
    if kind is None:
        raise WeightsError(
            f"{source} is none of {', '.join(_MARKS)}: it starts with {next(iter(given))}; "
            "docs/weights.md lists the files that are known"
        )
    state = {name: value for name, value in given.items() if not name.startswith("classifier.")}
    if kind == TORCHVISION:
        state = torchvision.rename(state)
    backbone = _backbone_of(state, source)
    classifier, num_classes = classifier_of(state) if kind == CHECKPOINT else (None, None)
    _check(state, _expected_shapes(backbone, classifier, num_classes), source)
    if kind == TORCHVISION:
        state = torchvision.to_inplace_norms(state)
    epoch = content["epoch"] if isinstance(content.get("epoch"), int) else None
    return Weights(kind, source, backbone, state, len(given), classifier, num_classes, epoch)


def _backbone_of(state: Mapping[str, Tensor], source: str) -> str:
    last_blocks = {
        f"mod4.block{own.blocks[2]}.convs.conv3.weight": name for name, own in BACKBONES.items()
    }
    found = [name for key, name in last_blocks.items() if key in state or f"body.{key}" in state]
    if not found:
        raise WeightsError(
            f"{source} is none of {', '.join(BACKBONES)}; use the weights of one of them"
        )
    return max(found, key=lambda name: BACKBONES[name].blocks)


def classifier_of(state: Mapping[str, Tensor]) -> tuple[str, int | None]:
    """The kind of classifier in a network's state dict and its number of classes, or None."""
    kind = "standard" if "cls.cls.bias" in state else "cosine"
    shape = state["cls.cls.weight"].shape if "cls.cls.weight" in state else ()
    return kind, next(iter(shape), None)


def _expected_shapes(
    backbone: str, classifier: str | None, num_classes: int | None
) -> dict[str, torch.Size]:
    """The shapes of a body, or of a whole network if there is a classifier."""
    with torch.device("meta"):
        network: nn.Module = (
            ResNet(backbone, 8, norm_factory("iabn"))
            if classifier is None
            else build_model(backbone, classifier, "iabn", num_classes or 1)
        )
    return {name: value.shape for name, value in network.state_dict().items()}


def _check(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> None:
    unfit = [name for name in state if name not in expected or state[name].shape != expected[name]]
    required = [name for name in expected if not any(part in name for part in _OPTIONAL)]
    missing = [name for name in required if name not in state]
    if unfit or missing:
        raise WeightsError(
            f"{source} does not hold this network: {len(missing)} tensors missing, {len(unfit)} "
            f"that do not fit, such as {(missing + unfit)[0]}; use one of docs/weights.md's files"
        )
    for name, value in state.items():
        if not value.isfinite().all():
            raise WeightsError(
                f"{source} is corrupt: {name} has infinite values or NaN; copy it again"
            )
        if name.endswith("running_var") and (value < 0).any():
            raise WeightsError(f"{source} is corrupt: {name} is negative; copy it again")


def read_weights(path: Path) -> Weights:
    """`identify` on a file.

    Raises:
        CheckpointError: the file is missing, damaged, or tries to run code.
        WeightsError: see `identify`.
    """
    return identify(load_checkpoint(path), str(path))


def find_backbone_file(folder: Path, backbone: str) -> Path:
    """Find the ImageNet file of `backbone` under either of its usual names.

    Raises:
        WeightsError: neither exists.
    """
    names = [f"{backbone}_iabn_sync.pth.tar", f"{backbone}.pth.tar"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder / names[0]} (or {names[1]}) is missing: put the ImageNet weights with in-place "
        "ABN there (pretrained/README.md), take torchvision's with --pretrained torchvision, or "
        "train from scratch with --no_pretrained"
    )


def backbone_weights(source: str, backbone: str, folder: Path) -> Weights:
    """ImageNet weights of `backbone`.

    Args:
        source: "auto" for the file in `folder`, "torchvision" to download its weights, or a path.

    Raises:
        WeightsError: the file does not exist, cannot be downloaded, has no ImageNet weights, or
            those of another backbone.
        CheckpointError: the file is missing, damaged, or tries to run code.
    """
    if source == "torchvision":
        return identify(*torchvision.download(backbone))
    weights = read_weights(
        find_backbone_file(folder, backbone) if source == "auto" else Path(source)
    )
    if weights.kind == CHECKPOINT:
        raise WeightsError(
            f"{weights.source} is a whole {CHECKPOINT}, not ImageNet weights; resume it with "
            "--ckpt, or test it with --ckpt_test"
        )
    if weights.backbone != backbone:
        raise WeightsError(
            f"{weights.source} holds the weights of {weights.backbone}, not of {backbone}; "
            "check --backbone"
        )
    return weights


def load_backbone(body: ResNet, weights: Weights, *, plain_norms: bool) -> None:
    """Fill `body` with the weights of its backbone.

    Args:
        plain_norms: the body's norms are BatchNorm2d (`abn`, `std`): convert the weights.
    """
    state = to_plain_norms(weights.state) if plain_norms else weights.state
    body.load_state_dict(state, strict=False)  # batch counters may be absent


def to_plain_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In-place ABN weights -> BatchNorm2d weights: gamma = |weight| + eps; the rest unchanged."""
    norms = {key.removesuffix("running_mean") for key in state if key.endswith("running_mean")}
    weights = {f"{norm}weight" for norm in norms}
    return {key: v.abs() + EPS if key in weights else v for key, v in state.items()}


def converted(weights: Weights, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content for `--out`: plain names, no optimizer; a checkpoint keeps its options."""
    if weights.kind != CHECKPOINT:
        return {"arch": weights.backbone, "state_dict": weights.state}
    kept = {key: content[key] for key in ("epoch", "options", "classes") if key in content}
    return {"model_state": weights.state, **kept}


def published(weights: Weights, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content for `--out --published`: a checkpoint in the published code's structure.

    Raises:
        WeightsError: the file is not a checkpoint, or its training state is invalid.
    """
    if weights.kind != CHECKPOINT:
        raise WeightsError(f"{weights.source} holds {weights.kind}: --published takes a checkpoint")
    order = _expected_shapes(weights.backbone, weights.classifier, weights.num_classes)
    state = {name: weights.state[name] for name in order if name in weights.state}
    try:
        return to_published(content, state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{weights.source} holds a state of training that does not fit "
            f"({type(error).__name__}); leave out --published, or write its weights first"
        ) from error


def write_weights(path: Path, content: Mapping[str, Any]) -> None:
    """Write a weight file atomically.

    Raises:
        WeightsError: the folder cannot be written to, or the disk is full.
    """
    try:
        with replacing(path) as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{path} could not be written ({error}); name a file in a folder with space by --out"
        ) from error


def describe(weights: Weights, path: Path) -> dict[str, str]:
    """The rows that the command prints about a file."""
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    known = f" ({KNOWN_MD5[md5]})" if md5 in KNOWN_MD5 else ""
    return {
        "kind": weights.kind,
        "backbone": weights.backbone,
        "classifier": weights.classifier or "none",
        "classes": str(weights.num_classes or "none"),
        "epoch": "not told" if weights.epoch is None else str(weights.epoch),
        "tensors": f"{weights.tensors}, all whole",
        "md5": md5 + known,
        "use": usage(weights, path),
    }


def usage(weights: Weights, path: Path) -> str:
    """How to pass the file to run.py."""
    backbone = "" if weights.backbone == "resnet50" else f" --backbone {weights.backbone}"
    if weights.kind == CHECKPOINT:
        flags = f"--default --ckpt_test {path} --classifier {weights.classifier}{backbone}"
        return f"python run.py --test {flags}, or --predict PICTURES --ckpt_test {path} --out DIR"
    place = f"pretrained/{weights.backbone}_iabn_sync.pth.tar"
    put = f", or put it at {place}" if weights.kind == IMAGENET else ""
    return f"python run.py --default --pretrained {path}{backbone}{put}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Describe a weight file, and convert it if --out is passed.

    Raises:
        CheckpointError, WeightsError: see `read_weights` and `write_weights`.
    """
    parser = argparse.ArgumentParser("python -m modules.pretrained", description=__doc__)
    parser.add_argument(
        "file", type=Path, help="ImageNet weights, torchvision's .pth or a PAnS checkpoint"
    )
    parser.add_argument("--out", type=Path, help="write it there, converted to this network")
    parser.add_argument(
        "--published", action="store_true", help="write a checkpoint for the published code"
    )
    options = parser.parse_args(arguments)
    if options.published and options.out is None:
        raise WeightsError("--published writes a file: name it with --out")
    if options.out is not None and options.out.resolve() == options.file.resolve():
        raise WeightsError(f"--out {options.out} is the file to read; name another")
    content = load_checkpoint(options.file)
    weights = identify(content, str(options.file))
    for name, value in describe(weights, options.file).items():
        print(f"{name:12}{value}")
    if options.out is not None:
        write = published if options.published else converted
        write_weights(options.out, write(weights, content))
        print(f"{'written':12}{options.out}")
