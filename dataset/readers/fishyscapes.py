"""Fishyscapes Lost & Found: label maps of Fishyscapes over the images of Lost and Found.

Layout of both publications (Blum et al., IJCV 2021, and Pinggera et al., IROS 2016), from the
archives as fetched and read by pytorch-ood, which uses the second folder of images:

    leftImg8bit/{train,test}/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
    lostandfound/leftImg8bit/{train,test}/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
    fishyscapes_lostandfound/NNNN_CITY_SEQUENCE_FRAME_labels.png

Values: 0 normal, 1 anomaly, 255 ignored. The 100 public label maps, of 2048x1024 pixels, are
Fishyscapes' validation set; here they are the test split. Copies in the layouts of other projects
are refused with a line on how to convert them: `laf_images/` (RbA),
`labels/val/*_fishy-labels.png` (the obstacle detection of Lis et al.) and
`ood/*_ood_segmentation.png` (DenseHybrid).
"""

from pathlib import Path

from dataset.base import DatasetNotFound, SampleFiles, SegmentationDataset, find_first
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, UNKNOWN_INDEX, Split
from dataset.readers.evaluation_only import evaluation_only
from utils.reading import Unreadable, is_hidden

FOLDER = "Fishyscapes"
LABELS, LABEL_ENDING = "fishyscapes_lostandfound", "_labels.png"
IMAGES = ("leftImg8bit", "lostandfound/leftImg8bit")
FLAT_IMAGES = "laf_images"
# Folder and suffix of other projects' label maps, and how to convert their values.
OTHER_LABELS = (
    ("labels", "_fishy-labels.png", ""),
    ("ood", "_ood_segmentation.png", " with 255 in place of 2, which is void there"),
)


class FishyscapesLostAndFound(SegmentationDataset):
    """The 100 public label maps; both folders are in the root or in `Fishyscapes/` below it."""

    published_info = evaluation_only(
        "fishyscapes_lostandfound",
        {0: NORMAL_INDEX, 1: UNKNOWN_INDEX, 255: IGNORE_INDEX},
        "0 normal, 1 anomaly, 255 ignored",
    )

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        remedy = f"run 'python -m dataset.prepare fishyscapes_lostandfound --root {root}'"
        if not any((base / LABELS).exists() for base in (root / FOLDER, root)):
            _refuse_other_labels(root, remedy)
        source = find_first(root, [FOLDER], [LABELS], remedy)
        labels = sorted(
            path.name for path in source.glob(f"*{LABEL_ENDING}") if not is_hidden(Path(path.name))
        )
        if not labels:
            raise DatasetNotFound(
                f"{source} holds no *{LABEL_ENDING}; unpack the labels there, or {remedy}"
            )
        folder = source.parent
        pairs = [(_image_of(folder, label, remedy), f"{LABELS}/{label}") for label in labels]
        return SampleFiles(source, folder, pairs)


def _image_of(folder: Path, label: str, remedy: str) -> str:
    """Image of 0000_04_Maurener_Weg_8_000000_000030_labels.png, relative to `folder`."""
    frame = label.removesuffix(LABEL_ENDING).partition("_")[2]
    city = frame.rsplit("_", 2)[0]
    name = f"{city}/{frame}_leftImg8bit.png"
    for images in IMAGES:
        for split in ("train", "test"):
            if (folder / images / split / name).exists():
                return f"{images}/{split}/{name}"
    remedy = f"unpack Lost and Found's leftImg8bit.zip beside the labels, or {remedy}"
    if (folder / FLAT_IMAGES).is_dir():
        remedy = (
            f"move every {folder / FLAT_IMAGES}/CITY_SEQUENCE_FRAME_leftImg8bit.png into "
            f"{folder / IMAGES[0]}/test/CITY, or {remedy}"
        )
    raise Unreadable(
        f"{folder / LABELS / label} has no image: neither {folder / IMAGES[0] / 'train' / name} "
        f"nor the same under test/ or in {IMAGES[1]} is there; {remedy}"
    )


def _refuse_other_labels(root: Path, remedy: str) -> None:
    for folder in (root / FOLDER, root):
        for name, ending, values in OTHER_LABELS:
            found = min((folder / name).rglob(f"*{ending}"), default=None)
            if found is not None:
                frame = found.name.removesuffix(ending)
                raise Unreadable(
                    f"{found} and others are another project's copies of Fishyscapes' labels; "
                    f"save each in {folder / LABELS}{values} under its published name, as "
                    f"NNNN_{frame}{LABEL_ENDING} with a number of four digits, or {remedy}"
                )
