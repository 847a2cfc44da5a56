"""What growing the vocabulary does to the loss, by how the rows of new ids start.

A tiny GPT-2 of transformers learns the ASCII characters of this repository's own documentation,
and then gets as many ids again that no text uses. Printed is the loss before and after, over all
ids, on text that was held out, with what the new ids take of the softmax, and how often one is
likeliest.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

from flmgrow.formats.opening import open_checkpoint
from flmgrow.operators.choices import FreshRows
from flmgrow.operators.target import Target
from flmgrow.surgery.execute import Executor
from flmgrow.surgery.execution import Execution
from flmgrow.surgery.layout_request import LayoutRequest
from flmgrow.surgery.plan import make_plan

IDS = 128
LENGTH = 64
ROOT = Path(__file__).parents[1]


def text() -> Tensor:
    """Return the characters of all pages of documentation, as ids."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    content = b"".join(page.read_bytes() for page in pages)
    return torch.tensor([byte for byte in content if byte < IDS])


def batch(ids: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Return random stretches (rows, LENGTH) of the text."""
    starts = torch.randint(len(ids) - LENGTH, (rows,), generator=generator)
    return torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])


def trained(folder: Path, ids: Tensor, steps: int, tied: bool) -> None:
    """Train a tiny model and save it in ``folder``."""
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "vocab_size": IDS}
    config = transformers.GPT2Config(**sizes, tie_word_embeddings=tied)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = batch(ids, 16, generator)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def told(folder: Path, tokens: Tensor) -> tuple[float, float, float]:
    """Return loss, mean share of the new ids, and how often one of them is likeliest."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        scores = model(tokens).logits
    loss = cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    share = scores.softmax(-1)[..., IDS:].sum(-1).mean()
    picked = (scores.argmax(-1) >= IDS).double().mean()
    return float(loss), float(share), float(picked)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    ids = text()
    cut = len(ids) * 9 // 10
    held_out = batch(ids[cut:], 32, torch.Generator().manual_seed(2))
    print("| head | rows of new ids | loss | share of new ids | one is likeliest |")
    print("|---|---|---|---|---|")
    for tied in (True, False):
        with tempfile.TemporaryDirectory() as place:
            source = Path(place, "source")
            trained(source, ids[:cut], steps, tied)
            found = {"(before)": told(source, held_out)}
            for rows in (FreshRows.DRAWN, FreshRows.MEAN):
                with open_checkpoint(source) as opened:
                    plan = make_plan(
                        opened, Target(vocab=2 * IDS, fresh_rows=rows), LayoutRequest()
                    )
                    Executor(plan, Execution()).run(Path(place, rows))
                found[rows] = told(Path(place, rows), held_out)
        for name, (loss, share, picked) in found.items():
            head = "tied" if tied else "separate"
            print(f"| {head} | {name} | {loss:.4f} | {share:.2%} | {picked:.1%} |", flush=True)


if __name__ == "__main__":
    main()
