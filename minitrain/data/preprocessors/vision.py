"""Images, changed by functions of TorchVision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from minitrain.data.preprocessors.base import Preprocessor
from minitrain.data.values import numpy_from_table, table_from_batch
from minitrain.exceptions import TransformError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TorchVisionPreprocessor"]


class TorchVisionPreprocessor(Preprocessor):
    """Apply a function of tensors, such as a transform of TorchVision, to columns of images.

    Args:
        columns: Columns of images: arrays of the shape (height, width, channels).
        transform: The function. It is given a torch.Tensor, or, if it raises a TypeError for that,
            a numpy array, and returns either.
        output_columns: What to call the results; None: they replace the columns.
        batched: The function is given many images of one shape at once, not one after the other.
    """

    _is_fittable = False

    def __init__(
        self,
        columns: Sequence[str],
        transform: Callable[[Any], Any],
        output_columns: Sequence[str] | None = None,
        batched: bool = False,
    ) -> None:
        super().__init__(columns, output_columns)
        # Not `self.transform`: that is what is done to datasets.
        self.torchvision_transform = transform
        self.batched = batched

    def _compute(self, table: pa.Table) -> dict[str, pa.Array | pa.ChunkedArray]:
        images = pa.table({name: self._column(table, name) for name in self.columns})
        arrays = numpy_from_table(images)
        if not table.num_rows:  # what comes out for one image tells the type
            arrays = {name: _one_image(images.schema.field(name).type) for name in self.columns}
        changed = {output: self._changed(arrays[name]) for name, output in self._pairs()}
        result = table_from_batch(changed, type(self).__name__).slice(0, table.num_rows)
        return {output: result.column(output) for output in self.output_columns}

    def _changed(self, images: np.ndarray) -> Any:
        return self._apply(images) if self.batched else [self._apply(image) for image in images]

    def _apply(self, image: np.ndarray) -> np.ndarray:
        import torch

        try:
            result = self.torchvision_transform(torch.as_tensor(image))
        except TypeError:  # ToTensor, for one, takes only arrays
            result = self.torchvision_transform(image)
        if isinstance(result, torch.Tensor):
            result = result.numpy()
        if not isinstance(result, np.ndarray):
            raise TransformError(
                f"TorchVisionPreprocessor: the transform returned a {type(result).__name__}; it "
                "must return a torch.Tensor or a numpy.ndarray"
            )
        return result

    def _arguments(self) -> dict[str, Any]:
        arguments = {"columns": self.columns, "transform": self.torchvision_transform}
        if self.output_columns != self.columns:
            arguments["output_columns"] = self.output_columns
        return {**arguments, "batched": True} if self.batched else arguments


def _one_image(kind: pa.DataType) -> np.ndarray:
    """Return a black image like those of a column, if they are all of one shape; else none."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return np.empty((0,))
    return np.zeros((1, *kind.shape), kind.value_type.to_pandas_dtype())
