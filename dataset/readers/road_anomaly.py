"""RoadAnomaly (Lis et al., Detecting the Unexpected via Image Resynthesis, ICCV 2019).

Published layout (from all frames of the archive RoadAnomaly_jpg.zip), and the earlier one with
WebP images (from the authors' loading code):

    RoadAnomaly_jpg/frame_list.json                   a JSON array of the images' file names
    RoadAnomaly_jpg/frames/NAME.jpg
    RoadAnomaly_jpg/frames/NAME.labels/labels_semantic.png

    RoadAnomaly/frame_list.json, frames/NAME.webp, frames/NAME.labels/labels_semantic.png

RoadAnomaly_jpg/ may also be in RoadAnomaly/, as in RbA and pytorch-ood. Values: 0 normal,
2 anomaly, mode L. All 60 images of 1280x720 form the test split.
"""

import json
from pathlib import Path, PurePosixPath

from dataset.base import IMAGE_SUFFIXES, SampleFiles, SegmentationDataset, find_first
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, UNKNOWN_INDEX, Split
from dataset.readers.evaluation_only import evaluation_only
from dataset.readers.odgt import leaves_folder
from utils.reading import Unreadable, read_text

FOLDERS = ("RoadAnomaly_jpg", "RoadAnomaly/RoadAnomaly_jpg", "RoadAnomaly")


class RoadAnomaly(SegmentationDataset):
    """The 60 images; frame_list.json is in the root or in one of the folders above."""

    published_info = evaluation_only(
        "road_anomaly",
        {0: NORMAL_INDEX, 2: UNKNOWN_INDEX, 255: IGNORE_INDEX},
        "0 normal, 2 anomaly, 255 ignored",
    )

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        remedy = f"run 'python -m dataset.prepare road_anomaly --root {root}'"
        source = find_first(root, FOLDERS, ["frame_list.json"], remedy)
        folder = source.parent
        return SampleFiles(source, folder, [_pair(folder, name) for name in read_frames(source)])


def read_frames(path: Path) -> list[str]:
    """The names in frame_list.json.

    Raises:
        Unreadable: the file is not a JSON array of names, is empty, or a name leaves the folder.
    """
    try:
        frames = json.loads(read_text(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path} cannot be read as JSON ({error}); restore it") from error
    if not isinstance(frames, list) or not frames:
        raise Unreadable(f"{path} is not a JSON array of file names; restore it from the archive")
    for number, name in enumerate(frames, start=1):
        if not isinstance(name, str) or not name or leaves_folder(name):
            raise Unreadable(
                f"{path}: entry {number}, {name!r}, is not a file name within the folder frames/; "
                "restore the file"
            )
    return frames


def _pair(folder: Path, name: str) -> tuple[str, str]:
    """The image and the label map of a frame; the image's format may differ from the list's."""
    frame = PurePosixPath("frames", name)
    if frame.suffix.lower() in IMAGE_SUFFIXES:
        listed, frame = frame, frame.with_suffix("")
    else:
        listed = PurePosixPath(f"{frame}.jpg")
    others = [PurePosixPath(f"{frame}{suffix}") for suffix in IMAGE_SUFFIXES]
    image = next((path for path in (listed, *others) if (folder / path).exists()), listed)
    return str(image), f"{frame}.labels/labels_semantic.png"
