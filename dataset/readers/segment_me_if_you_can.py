"""SegmentMeIfYouCan (Chan et al., NeurIPS 2021 Datasets): RoadAnomaly21 and RoadObstacle21.

Published layout (from the archives as fetched and read by pytorch-ood, and from the benchmark's
own code, github.com/SegmentMeIfYouCan/road-anomaly-benchmark):

    dataset_AnomalyTrack/images/NAME.jpg         dataset_ObstacleTrack/images/NAME.webp
    dataset_AnomalyTrack/labels_masks/NAME_labels_semantic.png            likewise

The copy distributed with Mask2Anomaly has the folders RoadAnomaly21/ and RoadObstacle21/ (or
RoadObsticle21/), with labels_masks/NAME.png without the suffixes.

Values: 0 normal, 1 anomaly, 255 ignored (void, or off the road). The labels of the benchmark's 100
and 327 test images are not public. The 10 and 30 images with public labels, whose names begin
with "validation", form the test split here. validation_19 and validation_21 to validation_29 of
the obstacle track are left out, as in the benchmark.
"""

from dataclasses import replace
from pathlib import Path

from dataset.base import DatasetNotFound, SampleFiles, SegmentationDataset, find_first, images_in
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, UNKNOWN_INDEX, Split
from dataset.readers.evaluation_only import evaluation_only
from utils.reading import Unreadable, is_hidden

LABELS = "labels_masks"
SUFFIX = "_labels_semantic.png"
_INDEX_OF = {0: NORMAL_INDEX, 1: UNKNOWN_INDEX, 255: IGNORE_INDEX}
_MEANING = "0 normal, 1 anomaly, 255 ignored"


class _Track(SegmentationDataset):
    """The labelled images of one track; the root is the track's folder or contains it."""

    folders: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        remedy = f"run 'python -m dataset.prepare {self.info.name} --root {root}'"
        source = find_first(root, self.folders, [LABELS], remedy)
        folder = source.parent
        images = images_in(folder / "images")
        labels = {
            name: label
            for name, label in _labels_in(source).items()
            if not name.startswith(self.left_out)
        }
        if not labels:
            raise DatasetNotFound(
                f"{source} has no *{SUFFIX}; {remedy} (only validation images have public labels)"
            )
        for name, label in labels.items():
            if name not in images:
                raise Unreadable(
                    f"{source / label} has no image {folder / 'images' / name}.jpg, .png or "
                    f".webp; {remedy}"
                )
        for name in images.keys() - labels.keys():
            if name.startswith("validation") and not name.startswith(self.left_out):
                raise Unreadable(
                    f"{folder / 'images' / images[name]} has no label {source / (name + SUFFIX)}, "
                    f"though it is a validation image; {remedy}"
                )
        pairs = [(f"images/{images[name]}", f"{LABELS}/{label}") for name, label in labels.items()]
        return SampleFiles(source, folder, pairs)


def _labels_in(folder: Path) -> dict[str, str]:
    """Name of the label map by stem of the image, sorted."""
    names = sorted(path.name for path in folder.glob("*.png") if not is_hidden(Path(path.name)))
    ending = SUFFIX if any(name.endswith(SUFFIX) for name in names) else ".png"
    return {name.removesuffix(ending): name for name in names if name.endswith(ending)}


class RoadAnomaly21(_Track):
    """The anomaly track: objects of any kind anywhere in the picture."""

    folders = ("dataset_AnomalyTrack", "RoadAnomaly21")
    published_info = evaluation_only("road_anomaly_21", _INDEX_OF, _MEANING)


class RoadObstacle21(_Track):
    """The obstacle track: objects on the road; pixels off the road are ignored."""

    folders = ("dataset_ObstacleTrack", "RoadObstacle21", "RoadObsticle21")
    left_out = tuple(f"validation_{number}" for number in (19, *range(21, 30)))
    published_info = replace(
        evaluation_only("road_obstacle_21", _INDEX_OF, _MEANING), component_sizes=(50, 10)
    )
