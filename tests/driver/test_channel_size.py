"""How much a report costs on the way to the driver, which may be a thin one between hosts."""

from __future__ import annotations

import pickle
from collections import defaultdict

import pytest

import minitrain
from minitrain import RunConfig, ScalingConfig
from minitrain._wire.channel import Channel
from minitrain._wire.messages import FromWorker, Reported
from minitrain.trainer import DataParallelTrainer

MOST_BYTES = 1000
HEADER_BYTES = 8


@pytest.mark.campaign
def test_a_report_of_five_scalars_is_small(monkeypatch, tmp_path):
    """However large the configuration is, which stands in every row on disk."""
    sizes: dict[int, list[float]] = defaultdict(list)
    receive = Channel.receive

    def measuring(channel):
        messages = receive(channel)
        for message in messages:
            if isinstance(message, FromWorker):
                news = [pickle.loads(data) for data in message.news]
                num_reports = sum(isinstance(one, Reported) for one in news)
                if num_reports == len(news):
                    num_bytes = len(pickle.dumps(message, pickle.HIGHEST_PROTOCOL)) + HEADER_BYTES
                    sizes[message.rank].append(num_bytes / num_reports)
        return messages

    def train(config):
        for step in range(10):
            names = ("loss", "accuracy", "learning_rate", "grad_norm")
            minitrain.report({"step": step} | dict.fromkeys(names, 1 / (step + 1)))

    monkeypatch.setattr(Channel, "receive", measuring)
    DataParallelTrainer(
        train,
        train_loop_config={"words": "x" * 10_000},
        scaling_config=ScalingConfig(num_workers=3),
        # With a stop condition every report waits for an answer, so that it travels alone.
        run_config=RunConfig(storage_path=tmp_path, stop={"step": 100}),
    ).fit()

    assert set(sizes) == {0, 1, 2}
    assert 100 < max(sizes[0]) <= MOST_BYTES
    for rank in (1, 2):
        assert max(sizes[rank]) < min(sizes[0]) / 2
