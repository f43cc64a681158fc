"""RoadAnomaly (Lis et al., Detecting the Unexpected via Image Resynthesis, ICCV 2019).

Layout, as it is published (from the authors' loading code; the archive itself could not be looked
at here, nor whether a label map holds other values than these):

    RoadAnomaly_jpg/frame_list.json                   a JSON array of the images' file names
    RoadAnomaly_jpg/frames/NAME.jpg
    RoadAnomaly_jpg/frames/NAME.labels/labels_semantic.png

Values: 0 normal, 2 anomaly. 60 images of various sizes; all are the test split.
"""

import json
from pathlib import Path, PurePosixPath

from dataset.base import SampleFiles, SegmentationDataset, find_first
from dataset.description import IGNORE_INDEX, NORMAL_INDEX, UNKNOWN_INDEX, Split
from dataset.pictures import BadSample
from dataset.readers.evaluation_only import evaluation_only
from dataset.readers.odgt import leaves_folder


class RoadAnomaly(SegmentationDataset):
    """The 60 images; the root is the folder of frame_list.json, or holds `RoadAnomaly_jpg/`."""

    published_info = evaluation_only(
        "road_anomaly",
        {0: NORMAL_INDEX, 2: UNKNOWN_INDEX, 255: IGNORE_INDEX},
        "0 normal, 2 anomaly, 255 ignored",
    )

    def find_files(self, root: Path, split: Split) -> SampleFiles:
        source = find_first(
            root, "RoadAnomaly_jpg", ["frame_list.json"], "fetch it as docs/data.md has it"
        )
        return SampleFiles(source, source.parent, [_pair(name) for name in read_frames(source)])


def read_frames(path: Path) -> list[str]:
    """The names in frame_list.json.

    Raises:
        BadSample: the file is no JSON array of names, is empty, or a name leaves the folder.
    """
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadSample(f"{path} cannot be read as JSON ({error}); restore it") from error
    if not isinstance(frames, list) or not frames:
        raise BadSample(f"{path} is no JSON array of file names; restore it from the archive")
    for number, name in enumerate(frames, start=1):
        if not isinstance(name, str) or not name or leaves_folder(name):
            raise BadSample(
                f"{path}: entry {number}, {name!r}, is no file name within the folder frames/; "
                "restore the file"
            )
    return frames


def _pair(name: str) -> tuple[str, str]:
    frame = PurePosixPath("frames", name)
    image = frame if frame.suffix else frame.with_suffix(".jpg")
    return str(image), str(image.with_suffix(".labels") / "labels_semantic.png")
