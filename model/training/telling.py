"""Which training rows are told what their targets are, for wishes that the model learns with
everything else: see `model.wish_embedding`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.contract import EncoderDecoder
from model.names import WISH
from model.vocabulary import BOS
from model.wish_embedding import WishEmbedding
from model.wishes import UNKNOWN, Wishes

BEGUN = torch.full((1, 1), BOS)


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
    """Gives the model an embedding of the wishes, unless it has one already. Raises `ValueError` if
    it does not add it to its decoder's input."""
    if model.wish_embedding is not None and model.wishes == wishes:
        return
    embedding = model.wish_embedding = WishEmbedding(wishes, decoder_width(model))
    torch.nn.init.normal_(embedding.weight)
    source = model.example_source(1, 2)
    plain = model(source, BEGUN).logits
    if torch.equal(model({**source, WISH: torch.ones(1, wishes.count)}, BEGUN).logits, plain):
        raise ValueError("wishes: this model does not add them to its decoder's input")
    torch.nn.init.zeros_(embedding.weight)
