"""SegmentMeIfYouCan (Chan et al., NeurIPS 2021 Datasets): RoadAnomaly21 and RoadObstacle21.

Layout, as it is published (from the benchmark's own description; the archives themselves could
not be looked at here):

    dataset_AnomalyTrack/images/NAME.{jpg,png,webp}      dataset_ObstacleTrack/ alike
    dataset_AnomalyTrack/labels_masks/NAME_labels_semantic.png

Values: 0 normal, 1 anomaly, 255 ignored (void, or off the road). The benchmark keeps the labels of
its test images to itself. The images with a public label, whose names begin with "validation",
make up the test split here; all others are left out.
"""

from dataclasses import replace
from pathlib import Path

from dataset.base import DatasetNotFound, SampleFiles, SegmentationDataset, find_first
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, UNKNOWN_INDEX, Split
from dataset.pictures import BadSample
from dataset.readers.evaluation_only import evaluation_only

SUFFIX = "_labels_semantic.png"
_INDEX_OF = {0: NORMAL_INDEX, 1: UNKNOWN_INDEX, 255: IGNORE_INDEX}
_MEANING = "0 normal, 1 anomaly, 255 ignored"


class _Track(SegmentationDataset):
    """The labelled images of one track; the root holds the track's folder, or is it."""

    track: str

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        remedy = "fetch it as docs/data.md has it"
        source = find_first(root, self.track, ["labels_masks"], remedy)
        folder = source.parent
        images = {path.stem: path.name for path in sorted(folder.glob("images/*"))}
        labelled = sorted(path.name.removesuffix(SUFFIX) for path in source.glob(f"*{SUFFIX}"))
        if not labelled:
            raise DatasetNotFound(
                f"{source} holds no *{SUFFIX}; {remedy} (only validation images have public labels)"
            )
        for name in labelled:
            if name not in images:
                raise BadSample(
                    f"{source / (name + SUFFIX)} has no image {folder / 'images' / name}.jpg, .png "
                    f"or .webp; {remedy}"
                )
        for name in sorted(images.keys() - set(labelled)):
            if name.startswith("validation"):
                raise BadSample(
                    f"{folder / 'images' / images[name]} has no label {source / (name + SUFFIX)}, "
                    f"though it is a validation image; {remedy}"
                )
        pairs = [(f"images/{images[name]}", f"labels_masks/{name}{SUFFIX}") for name in labelled]
        return SampleFiles(source, folder, pairs)


class RoadAnomaly21(_Track):
    """The anomaly track: objects of any kind anywhere in the picture."""

    track = "dataset_AnomalyTrack"
    published_info = evaluation_only("road_anomaly_21", _INDEX_OF, _MEANING)


class RoadObstacle21(_Track):
    """The obstacle track: things on the road, all else is ignored."""

    track = "dataset_ObstacleTrack"
    published_info = replace(
        evaluation_only("road_obstacle_21", _INDEX_OF, _MEANING), component_sizes=(50, 10)
    )
