"""Draws tokens and the latent variable, each row by its own key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.modalities.media import seeded


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens and the latent variable; by default greedy, the latent at its mean."""

    temperature: float = 0.0
    """Logits are divided by it before a token is drawn; 0 takes the most probable."""
    top_k: int = 0
    """Draw from this many most probable tokens (Fan et al., 2018, section 5.1); 0 for all."""
    top_p: float = 1.0
    """Draw from the smallest set of most probable tokens that together reach this probability
    (Holtzman et al., 2020, section 3.1), after `top_k`."""
    latent_temperature: float = 0.0
    """Factor of the prior's deviation; 0 takes the prior's mean."""
    seed: int = 0


def draws(sampling: Sampling, keys: Sequence[str], latent: int, longest: int) -> Any:
    """Standard normal noise (batch, latent) and uniform numbers (batch, longest), for each
    row a function of only the seed and its key, so the other rows in a batch do not matter."""
    generators = [seeded(sampling.seed, key) for key in keys]
    noise = np.stack([g.standard_normal(latent) for g in generators]) * sampling.latent_temperature
    return noise, np.stack([g.random(longest) for g in generators])


def draw_tokens(logits: np.ndarray, sampling: Sampling, uniform: np.ndarray) -> np.ndarray:
    """Tokens (batch,) drawn from softmax(logits / temperature), cut off as `sampling` says, by
    inverting the distribution at `uniform` (batch,)."""
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    if sampling.top_k or sampling.top_p < 1:
        order = np.argsort(-weights, axis=1, kind="stable")
        ranked = np.take_along_axis(weights, order, axis=1)
        if sampling.top_k:
            ranked[:, sampling.top_k :] = 0
        before = ranked.cumsum(axis=1) - ranked
        ranked[before >= sampling.top_p * ranked.sum(axis=1, keepdims=True)] = 0
        np.put_along_axis(weights, order, ranked, axis=1)
    reached = weights.cumsum(axis=1)
    chosen = (reached <= uniform[:, None] * reached[:, -1:]).sum(axis=1)
    return np.minimum(chosen, logits.shape[1] - 1)
