"""Train a transformer whose parameters are divided among four workers, and go on with two.

    python examples/fsdp.py

A small language model learns, byte by byte, to write Python; it reads the sources of Python's own
standard library. `fully_shard` (FSDP2) gives each worker a part of every parameter, its gradient
and its Adam moments; `save_state` has each write just that part, and nothing is ever in one place.
A second trainer, of half as many workers, takes up the checkpoint: `load_state` divides it anew.
On the same bytes, held out, the loss after loading must be that before saving.
"""

import sys
import textwrap
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import minitrain
from minitrain import ScalingConfig
from minitrain.torch import TorchTrainer, load_state, prepare_model, save_state

FIRST_WORKERS, THEN_WORKERS = 4, 2
FIRST_STEPS, ALL_STEPS = 80, 120
REPORT_EVERY = 20
BATCH_SIZE = 16  # of all workers together
CONTEXT = 96  # bytes that are seen at once
WIDTH, HEADS, BLOCKS = 96, 4, 3
LEARNING_RATE = 3e-3
TEXT_BYTES = 400_000
TOLERATED_DIFFERENCE = 1e-4


# ---------------------------------------------------------------- the text
def load_text():
    """Return bytes to train with, and others to judge by."""
    library = Path(textwrap.__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(library.glob("[a-d]*.py")))[:TEXT_BYTES]
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return data[: -len(data) // 10], data[-len(data) // 10 :]


def batch(data, seed):
    """Return this worker's rows of a batch, which is the same for any number of workers."""
    context = minitrain.get_context()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - CONTEXT, (BATCH_SIZE,), generator=generator)
    mine = starts[context.get_world_rank() :: context.get_world_size()]
    rows = torch.stack([data[start : start + CONTEXT + 1] for start in mine])
    return rows[:, :-1], rows[:, 1:]


# ---------------------------------------------------------------- the model
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        rows, length, _ = x.shape
        split = self.qkv(self.attention_norm(x)).view(rows, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.byte = nn.Embedding(256, WIDTH)
        self.position = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, inputs, targets):
        x = self.byte(inputs) + self.position
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------- training
def mean_over_ranks(loss):
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


@torch.no_grad()
def held_out_loss(model, held_out):
    return mean_over_ranks(model(*batch(held_out, seed=0)))


def train(config):
    text, held_out = load_text()
    torch.manual_seed(0)
    # Every element of a ModuleList becomes a unit: only one block is whole at any time.
    model = prepare_model(Transformer(), parallel_strategy="fsdp")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, ALL_STEPS)
    state = {"model": model, "optimizer": optimizer, "schedule": schedule}

    first_step = 0
    checkpoint = minitrain.get_checkpoint()
    if checkpoint:
        first_step = load_state({**state, "steps": 0}, checkpoint)["steps"]
    world_size = minitrain.get_context().get_world_size()
    here = sum(parameter.to_local().numel() for parameter in model.parameters())
    print(f"{world_size} workers from step {first_step}, rank 0 with {here:,} parameters")
    at_start = held_out_loss(model, held_out)

    for step in range(first_step, config["last_step"]):
        loss = model(*batch(text, seed=step + 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

        done = step + 1
        if done % REPORT_EVERY:
            continue
        metrics = {
            "step": done,
            "loss": mean_over_ranks(loss),
            "held_out": held_out_loss(model, held_out),
            "held_out_at_start": at_start,
        }
        checkpoint = None
        if done == config["last_step"]:
            checkpoint = save_state({**state, "steps": done})  # on every rank, each its part
        minitrain.report(metrics, checkpoint=checkpoint)
        print(f"step {done:3}: loss {metrics['loss']:.3f}, held out {metrics['held_out']:.3f}")


def fit_until(step, num_workers, checkpoint=None):
    trainer = TorchTrainer(
        train,
        train_loop_config={"last_step": step},
        scaling_config=ScalingConfig(num_workers=num_workers),
        resume_from_checkpoint=checkpoint,
    )
    return trainer.fit()


def main():
    first = fit_until(FIRST_STEPS, FIRST_WORKERS)
    with first.checkpoint.as_directory() as folder:
        parts = [path.stat().st_size for path in sorted(Path(folder).glob("*.distcp"))]
    second = fit_until(ALL_STEPS, THEN_WORKERS, first.checkpoint)

    before, after = first.metrics["held_out"], second.metrics["held_out_at_start"]
    print(f"""
Loss on held-out text, in nats per byte:
  untrained                    {first.metrics["held_out_at_start"]:.6f}
  {FIRST_STEPS} steps, {FIRST_WORKERS} workers, saved    {before:.6f}
  loaded by {THEN_WORKERS} workers          {after:.6f}
  {ALL_STEPS} steps                    {second.metrics["held_out"]:.6f}
What each of the {FIRST_WORKERS} wrote: {", ".join(f"{size / 1e6:.2f} MB" for size in parts)}
checkpoint: {second.checkpoint.path}""")
    if abs(before - after) > TOLERATED_DIFFERENCE:
        sys.exit("The loss is not what it was when the state was saved.")
    if second.metrics["held_out"] >= before:
        sys.exit("The second training has learnt nothing.")


if __name__ == "__main__":
    main()
