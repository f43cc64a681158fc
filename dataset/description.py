"""Static description of a data set: classes, colours, label values, splits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from utils.errors import PansError

Split = Literal["train", "validation", "test"]
Colour = tuple[int, int, int]

IGNORE_INDEX = 255
# Labels of evaluation-only data sets, which have no classes. Both are above every class index,
# so that such pixels stay out of the confusion matrix for any number of classes.
NORMAL_INDEX, UNKNOWN_INDEX = 253, 254

_ANOMALY_COLOUR = (60, 250, 240)
_NORMAL_COLOUR = (200, 200, 200)


class UnknownClass(PansError):
    """A class name that the data set does not have."""


@dataclass(frozen=True)
class DatasetInfo:
    """A data set's description.

    Attributes:
        name: its name for --dataset.
        class_colours: class name to RGB, in the order of the class indices.
        anomaly_index: indices from here to 254 are anomalies.
        index_of: value in a label file to index; any other value is an error.
        label_meaning: meaning of the values in the files, for error messages.
        splits: its splits; without "train" it is evaluation-only.
        remedy: what to do if a file is missing.
        component_sizes: minimum size in pixels of predicted and of true components in its
            protocol; by default those of SegmentMeIfYouCan's anomaly track.
        note: a note about the labels, printed at start-up.
    """

    name: str
    class_colours: Mapping[str, Colour]
    anomaly_index: int
    index_of: Mapping[int, int]
    label_meaning: str
    splits: tuple[Split, ...]
    remedy: str
    component_sizes: tuple[int, int] = (500, 100)
    note: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index."""
        return tuple(self.class_colours)

    @property
    def num_classes(self) -> int:
        """Number of trained classes C; their indices are 0 to C - 1."""
        return len(self.class_colours)

    @property
    def has_class_labels(self) -> bool:
        """Whether its labels have classes, and not only normal and anomalous."""
        return any(index < self.num_classes for index in self.index_of.values())

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """Colour by index, (256, 3) uint8: classes, anomalies, and black for ignored pixels."""
        palette = np.full((256, 3), _ANOMALY_COLOUR, dtype=np.uint8)
        palette[: self.num_classes] = list(self.class_colours.values())
        palette[self.num_classes : self.anomaly_index] = _NORMAL_COLOUR
        palette[IGNORE_INDEX] = 0
        return palette

    @cached_property
    def lookup(self) -> tuple[int, ...]:
        """Index by value in a label file, 256 entries; other values map to the ignored index."""
        return tuple(self.index_of.get(value, IGNORE_INDEX) for value in range(256))

    @cached_property
    def test_values(self) -> tuple[int, ...]:
        """The values allowed in label files of the test split, sorted."""
        return tuple(sorted(self.index_of))

    @cached_property
    def training_values(self) -> tuple[int, ...]:
        """The values allowed in label files of other splits: no anomalies."""
        return tuple(
            value
            for value in self.test_values
            if self.index_of[value] < self.anomaly_index or self.index_of[value] == IGNORE_INDEX
        )

    def class_indices(self, names: Iterable[str]) -> tuple[int, ...]:
        """Map class names, such as "traffic sign", to their indices.

        Raises:
            UnknownClass: the data set has no class of that name.
        """
        names = list(names)
        for name in names:
            if name not in self.class_colours:
                raise UnknownClass(
                    f"there is no class {name!r}; the classes: {', '.join(self.class_names)}"
                )
        return tuple(self.class_names.index(name) for name in names)
