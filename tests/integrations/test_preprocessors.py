"""Preprocessors in training: fitted before it, used in it, found again in its checkpoints."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import minitrain
from minitrain import Checkpoint, ScalingConfig
from minitrain.data.preprocessors import Chain, Concatenator, Preprocessor, StandardScaler
from minitrain.trainer import DataParallelTrainer
from tests.data.tables import in_parts


@pytest.mark.campaign
def test_a_checkpoint_says_how_its_features_were_made(tmp_path):
    rows = np.random.default_rng(0).normal(5, 3, size=(40, 2))
    ds = in_parts(pa.table({"a": rows[:, 0], "b": rows[:, 1]}), 11, 30)
    chain = Chain(StandardScaler(["a", "b"]), Concatenator(["a", "b"], "x"))
    expected = (rows - rows.mean(axis=0)) / rows.std(axis=0)

    def train():
        shard = minitrain.get_dataset_shard("train")
        seen = np.concatenate([batch["x"] for batch in shard.iter_batches(batch_size=7)])
        checkpoint = Checkpoint.from_directory(str(tmp_path / "empty"))
        minitrain.report({"sum": float(seen.sum()), "rows": len(seen)}, checkpoint=checkpoint)

    (tmp_path / "empty").mkdir()
    result = DataParallelTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=1),
        datasets={"train": chain.fit_transform(ds)},
        metadata={"preprocessor": chain.serialize()},
    ).fit()
    assert result.metrics["rows"] == 40
    assert np.isclose(result.metrics["sum"], expected.sum(), atol=1e-9)
    again = Preprocessor.deserialize(result.checkpoint.get_metadata()["preprocessor"])
    assert again == chain
    served = again.transform_batch({"a": rows[:3, 0], "b": rows[:3, 1]})
    np.testing.assert_allclose(served["x"], expected[:3], rtol=1e-9)
