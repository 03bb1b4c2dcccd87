"""Which training rows are told what their targets are, for wishes that the model learns with
everything else: see `model.wish_embedding`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.contract import EncoderDecoder
from model.names import LATENT, WISH
from model.vocabulary import BOS
from model.wish_embedding import WishEmbedding
from model.wishes import UNKNOWN, Wishes

BEGUN = torch.full((1, 1), BOS)
NOT_TOLD = (
    "wishes: this model does not add them to its decoder's input, with self.told(…) in forward and "
    "in step; with tell_wishes: 0 a head learns them"
)


@dataclass(frozen=True)
class Told:
    """What rows can be told, and how often they are."""

    wishes: Wishes
    labels: np.ndarray
    """(rows, wishes) numbers of values, or `UNKNOWN`."""
    share: float
    """How often a row is told each of its labels, from 0 to 1."""

    def draw(self, rows: np.ndarray) -> Tensor:
        """(batch, values + wishes), from PyTorch's current random state."""
        count, wishes = self.wishes.count, len(self.wishes.values)
        labels = self.labels[rows]
        columns = np.where(labels == UNKNOWN, count + np.arange(wishes), labels)
        wish = torch.zeros(len(rows), count + wishes)
        told = (torch.rand(columns.shape) < self.share).to(wish.dtype)
        return wish.scatter_(1, torch.from_numpy(columns), told)


@torch.no_grad()
def decoder_width(model: EncoderDecoder) -> int:
    """Raises `ValueError` if a network does not return the states of its decoder, which the head of
    wishes needs, and which say how wide its input is."""
    states = model.eval()(model.example_source(1, 2), BEGUN).states
    if states is None:
        raise ValueError("wishes: this model does not return the states of its decoder")
    return int(states.shape[2])


@torch.no_grad()
def prepare(model: EncoderDecoder, wishes: Wishes) -> None:
    """Gives the model an embedding of the wishes, with what it has learnt of them already. Raises
    `ValueError` if it does not add it to its decoder's input."""
    known, width = model.wish_embedding, decoder_width(model)
    embedding = model.wish_embedding = WishEmbedding(wishes, width)
    torch.nn.init.normal_(embedding.weight)
    none, asked = torch.zeros(1, wishes.count), torch.ones(1, wishes.count)
    try:
        listens = not any(map(torch.equal, _first(model, none), _first(model, asked)))
    except RuntimeError as error:  # another width than that of the states
        raise ValueError(f"{NOT_TOLD} ({error})") from error
    if not listens:
        raise ValueError(NOT_TOLD)
    torch.nn.init.zeros_(embedding.weight)
    if known is not None:
        before = _names(known.wishes)
        for number, name in enumerate(_names(wishes)):
            if name in before:
                embedding.weight[number] = known.weight[before.index(name)]


def _names(wishes: Wishes) -> list[tuple[str, str | None]]:
    """What each vector is for; after all values, for targets that have none of a wish."""
    values = [(wish, value) for wish, known in wishes.values.items() for value in known]
    return [*values, *((wish, None) for wish in wishes.values)]


def _first(model: EncoderDecoder, wish: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the first token, by `forward` and by `step`."""
    source = model.example_source(1, 2)
    forward = model({**source, WISH: wish}, BEGUN).logits
    memory = {**model.encode(source), LATENT: torch.zeros(1, model.latent), WISH: wish}
    seen, position = torch.zeros(1, 1, 1), torch.tensor(0)
    step, _ = model.step(BEGUN, position, seen, memory, model.empty_cache(1))
    return forward, step
