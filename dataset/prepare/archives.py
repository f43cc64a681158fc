"""The published archives of the data sets and their contents.

Addresses and md5 sums are those used by pytorch-ood, except StreetHazards'. BDD-Anomaly has 6280,
910 and 810 images by its publishers' rule, Lost and Found has 2239.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dataset.description import Split


@dataclass(frozen=True)
class Archive:
    """A published tar or zip file.

    Attributes:
        images: number of images in each split that the archive completes.
        size: (width, height) of every image; None if they differ.
        dataset: the data set's name.
        folder: folder of the archive, relative to the root of all data.
        into: folder it is unpacked into, relative to `folder`. A top folder of that name inside
            the archive is the same one.
        holds: for an archive that completes no split by itself: pattern and number of its files,
            relative to `folder`.
        megabytes: approximate size, for servers that do not report it.
    """

    url: str
    md5: str
    images: Mapping[Split, int] = field(default_factory=dict)
    size: tuple[int, int] | None = (1280, 720)
    dataset: str = "streethazards"
    folder: str = "StreetHazards"
    into: str = "."
    holds: tuple[str, int] | None = None
    megabytes: int | None = None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


ARCHIVES = (
    Archive(
        "https://people.eecs.berkeley.edu/~hendrycks/streethazards_train.tar",
        md5="cd2d1a8649848afb85b5059d227d2090",
        images={"train": 5125, "validation": 1031},
    ),
    Archive(
        "https://people.eecs.berkeley.edu/~hendrycks/streethazards_test.tar",
        md5="8c547c1346b00c21b2483887110bfea7",
        images={"test": 1500},
    ),
)
"""StreetHazards'."""

PUBLISHED = (
    *ARCHIVES,
    Archive(
        "http://robotics.ethz.ch/~asl-datasets/Fishyscapes/fishyscapes_lostandfound.zip",
        md5="0d3bf7c0ec38bd50b84f3d8aaa4b2e26",
        dataset="fishyscapes_lostandfound",
        folder="Fishyscapes",
        into="fishyscapes_lostandfound",
        holds=("fishyscapes_lostandfound/*_labels.png", 100),
    ),
    Archive(
        "http://wwwlehre.dhbw-stuttgart.de/~sgehrig/lostAndFoundDataset/leftImg8bit.zip",
        md5="08eaa79ce05126f6bd22a3ca563746d0",
        images={"test": 100},
        size=(2048, 1024),
        dataset="fishyscapes_lostandfound",
        folder="Fishyscapes",
        into="leftImg8bit",
        megabytes=5800,
    ),
    Archive(
        "https://datasets-cvlab.epfl.ch/2019-road-anomaly/RoadAnomaly_jpg.zip",
        md5="87a0908e5c72827824693913cf2e4fb0",
        images={"test": 60},
        dataset="road_anomaly",
        folder=".",
        into="RoadAnomaly_jpg",
        megabytes=25,
    ),
    Archive(
        "https://zenodo.org/record/5270237/files/dataset_AnomalyTrack.zip",
        md5="231bf79ed58924bcd33d9cbe22e61076",
        images={"test": 10},
        size=None,
        dataset="road_anomaly_21",
        folder=".",
        into="dataset_AnomalyTrack",
        megabytes=50,
    ),
    Archive(
        "https://zenodo.org/record/5281633/files/dataset_ObstacleTrack.zip",
        md5="895fb36d18765482cc291f69e63d6da6",
        images={"test": 30},
        size=None,
        dataset="road_obstacle_21",
        folder=".",
        into="dataset_ObstacleTrack",
        megabytes=198,
    ),
)
"""The archives of every data set with a public address."""


@dataclass(frozen=True)
class Published:
    """The published properties of a data set's files.

    Attributes:
        images: number of images in each split; None for a folder of the user's own.
        size: (width, height) of every image; None if they differ.
    """

    images: Mapping[Split, int | None]
    size: tuple[int, int] | None


BDD_ANOMALY = Published({"train": 6280, "validation": 910, "test": 810}, (1280, 720))
