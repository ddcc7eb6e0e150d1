"""Train `demo_model/` from a folder of public-domain books in a fixed time: `python -m scripts.train_demo_model`.

Knows the order of a training: steps, reviews, checkpoints. Does not know the books, the network or the folder's files.
On a machine that is busy with other work set `OMP_WAIT_POLICY=PASSIVE`: threads that wait actively for one
another took 15 seconds a step beside one busy process, and 1.4 seconds so.

Invariants:
1. No held-out passage is seen by the tokenizer or by the model.
2. The folder holds the weights with the best held-out loss so far; a run that stops early leaves a usable model.
3. Learning rates reach zero when `--minutes` are spent; `--resume` goes on with the time, steps and optimizers saved.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from scripts.demo_training.batches import END_ID, Sampler, train_tokenizer
from scripts.demo_training.corpus import EmptyCorpus, hold_out, load_corpus
from scripts.demo_training.export import Facts, export
from scripts.demo_training.network import build_model, build_optimizers, evaluate, loss_of, rate_factor

BATCH, SEQUENCE = 16, 256
REVIEW_SECONDS = 90.0


@dataclass(slots=True)
class Run:
    """How far a training is."""

    seconds: float = 0.0
    step: int = 0
    best_loss: float = math.inf


class Training:
    """One training: its data, network and optimizers, and where it leaves its results."""

    def __init__(self, corpus: Path, out: Path, checkpoint: Path, seed: int, vocab_size: int) -> None:
        torch.manual_seed(seed)
        self.out, self.checkpoint, self.run = out, checkpoint, Run()
        stories, passages = hold_out(load_corpus(corpus))
        self.num_characters = sum(len(story.text) for story in stories)
        self.tokenizer = train_tokenizer(stories, vocab_size)
        self.held_out = [torch.tensor(encoding.ids) for encoding in self.tokenizer.encode_batch(passages)]
        self.sampler = Sampler(stories, self.tokenizer, BATCH, SEQUENCE, seed)
        self.model = build_model(self.tokenizer.get_vocab_size(), END_ID)
        self.optimizers = build_optimizers(self.model)
        self.full_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    def train(self, minutes: float) -> None:
        """Step until the minutes are spent, reviewing on the way and at the end."""
        limit, reviewed, smooth = minutes * 60, self.run.seconds, math.nan
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            bar = progress.add_task("training", total=limit)
            while self.run.seconds < limit:
                loss = self.step(rate_factor(self.run.seconds / limit))
                smooth = loss if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss
                state = f"{self.run.step} steps, loss {smooth:.3f}"
                progress.update(bar, completed=self.run.seconds, description=state)
                if self.run.seconds - reviewed > REVIEW_SECONDS or self.run.seconds >= limit:
                    reviewed = self.run.seconds
                    progress.console.print(f"{state}, held-out {self.review():.3f}")

    def step(self, factor: float) -> float:
        """Do one optimizer step at this share of the full learning rates and return the loss."""
        started = time.perf_counter()
        loss = loss_of(self.model, self.sampler.batch())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rates in zip(self.optimizers, self.full_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.run.step += 1
        self.run.seconds += time.perf_counter() - started
        return float(loss.detach())

    def review(self) -> float:
        """Measure the held-out loss, export the weights if they are the best so far, and save the run."""
        loss = evaluate(self.model, self.held_out)
        if loss < self.run.best_loss:
            self.run.best_loss = loss
            export(self.out, self.model, self.tokenizer, self.facts())
        self.save()
        return loss

    def facts(self) -> Facts:
        """Say what the model card needs to know."""
        return Facts(
            characters=self.num_characters,
            tokens=self.sampler.num_tokens,
            held_out=sum(len(ids) - 1 for ids in self.held_out),
            batch=BATCH,
            sequence=SEQUENCE,
            steps=self.run.step,
            seconds=self.run.seconds,
            loss=self.run.best_loss,
        )

    def save(self) -> None:
        """Save all that `resume` needs."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "sampler": self.sampler.generator.get_state(),
            "run": asdict(self.run),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.checkpoint)

    def resume(self) -> None:
        """Go on from the saved run."""
        state = torch.load(self.checkpoint)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.sampler.generator.set_state(state["sampler"])
        self.run = Run(**state["run"])


def main(
    *,
    corpus: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of book texts, one .txt each.")],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("demo_model"),
    minutes: Annotated[float, typer.Option(min=0.01, help="Time to spend on training steps.")] = 48.0,
    checkpoint: Annotated[Path, typer.Option(help="Where the run is saved.")] = Path("build/demo_training.pt"),
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and dropout.")] = 7,
    vocab_size: Annotated[int, typer.Option(min=300, help="Tokens in the vocabulary.")] = 4096,
    threads: Annotated[int, typer.Option(min=1, help="Threads to compute with.")] = 2,
) -> None:
    """Train the demo model on a folder of books and write it as a Hugging Face folder."""
    torch.set_num_threads(threads)
    try:
        training = Training(corpus, out, checkpoint, seed, vocab_size)
    except EmptyCorpus as error:
        raise typer.BadParameter(str(error), param_hint="--corpus") from error
    if resume:
        training.resume()
    training.train(minutes)


if __name__ == "__main__":
    typer.run(main)
