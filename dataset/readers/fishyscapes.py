"""Fishyscapes Lost & Found: label maps of Fishyscapes over the images of Lost and Found.

Layout, as both are published (from the descriptions of Blum et al., IJCV 2021, and Pinggera et
al., IROS 2016; the archives themselves could not be looked at here):

    leftImg8bit/{train,test}/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
    fishyscapes_lostandfound/NNNN_CITY_SEQUENCE_FRAME_labels.png

Values: 0 normal, 1 anomaly, 255 ignored. The 100 public label maps are Fishyscapes' validation
set; here they are the test split.
"""

from pathlib import Path

from dataset.base import DatasetNotFound, SampleFiles, SegmentationDataset, find_first
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, UNKNOWN_INDEX, Split
from dataset.pictures import BadSample
from dataset.readers.evaluation_only import evaluation_only

LABELS, IMAGES = "fishyscapes_lostandfound", "leftImg8bit"


class FishyscapesLostAndFound(SegmentationDataset):
    """The 100 public label maps; the root, or a folder `Fishyscapes/` in it, holds both folders."""

    published_info = evaluation_only(
        "fishyscapes_lostandfound",
        {0: NORMAL_INDEX, 1: UNKNOWN_INDEX, 255: IGNORE_INDEX},
        "0 normal, 1 anomaly, 255 ignored",
    )

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        source = find_first(root, "Fishyscapes", [LABELS], "fetch it as docs/data.md has it")
        labels = sorted(path.name for path in source.glob("*_labels.png"))
        if not labels:
            raise DatasetNotFound(f"{source} holds no *_labels.png; unpack the labels there")
        folder = source.parent
        return SampleFiles(
            source, folder, [(_image_of(folder, label), f"{LABELS}/{label}") for label in labels]
        )


def _image_of(folder: Path, label: str) -> str:
    """0000_04_Maurener_Weg_8_000000_000030_labels.png -> its image, relative to `folder`."""
    frame = label.removesuffix("_labels.png").partition("_")[2]
    city = frame.rsplit("_", 2)[0]
    name = f"{city}/{frame}_leftImg8bit.png"
    for split in ("train", "test"):
        if (folder / IMAGES / split / name).exists():
            return f"{IMAGES}/{split}/{name}"
    raise BadSample(
        f"{folder / LABELS / label} has no image: neither {folder / IMAGES / 'train' / name} nor "
        "the same under test/ is there; unpack Lost and Found's leftImg8bit.zip beside the labels"
    )
