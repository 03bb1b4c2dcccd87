"""The future head: what each next token would make of the finished text.

For every value a of a wish and every next token v it gives p(a | prefix, v), the probability that
the finished text will have the value (FUDGE: Yang and Klein, 2021), for all tokens in one product,
because the score is bilinear: σ((P_a h)ᵀ E_v + b_a,v) of the decoder's state h.

Why logits + λ·log p(a | prefix, v) is the gradient step towards a wish, solved exactly. A step of
steepest ascent on a wish changes the distribution p of the next token to the q that has most of the
wish without going far from p:

    max over q of  λ·E_q[log p(a | prefix, v)] − KL(q ‖ p).

The Lagrangian's derivative for q_v (with multiplier μ for Σ q = 1) is
λ·log p(a | prefix, v) − log q_v + log p_v − 1 + μ = 0, so q_v ∝ p_v · p(a | prefix, v)^λ: what
several gradient steps on a hidden state (PPLM: Dathathri et al., 2020) only come near to, needs no
gradient. With λ = 1 it is Bayes' rule. Several wishes add up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.vocabulary import EOS
from model.wishes import Wishes

RANK = 32
"""Width of the product of a state and a token."""


def log_sigmoid(x: Tensor) -> Tensor:
    """log σ(x) = min(x, 0) − log(1 + exp(−|x|)), in operators that ONNX has in 16 bits too, which
    Softplus is not."""
    magnitude = torch.abs(x)
    return 0.5 * (x - magnitude) - torch.log(1 + torch.exp(-magnitude))


class FutureHead(nn.Module):
    """See the module. Shapes: B sources, K hypotheses, W width, A values of all wishes, G wishes,
    R rank, V vocabulary."""

    groups: Tensor

    def __init__(self, wishes: Wishes, width: int, vocabulary: int) -> None:
        super().__init__()
        self.wishes = wishes
        self.project = nn.Linear(width, wishes.count * RANK)
        self.tokens = nn.Parameter(torch.randn(vocabulary, RANK) * RANK**-0.5)
        self.bias = nn.Parameter(torch.zeros(wishes.count, vocabulary))
        belongs = torch.zeros(len(wishes.values), wishes.count)
        for row, (_, numbers) in enumerate(wishes.groups):
            belongs[row, list(numbers)] = 1
        self.register_buffer("groups", belongs, persistent=False)

    def scores(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Log-odds (N, A) that the finished texts will have the values, after states (N, W) and
        the tokens (N,) that follow them."""
        asked = self.project(states).reshape(len(states), -1, RANK)
        return (asked @ self.tokens[tokens][:, :, None])[:, :, 0] + self.bias[:, tokens].T

    def chances(self, states: Tensor, wish: Tensor) -> Tensor:
        """log p(a | prefix, v), (B, K, G, V), of each wish's wanted value; for a wish that nobody
        has, log ½.

        Args:
            states: (B, K, W).
            wish: (B, A), see `model.wishes`.
        """
        batch, hypotheses, _ = states.shape
        wanted = (wish > 0).to(states.dtype)[:, None] * self.groups  # (B, G, A)
        asked = self.project(states).reshape(batch, hypotheses, -1, RANK)
        asked = torch.matmul(wanted[:, None], asked)  # (B, K, G, R)
        scores = torch.matmul(asked, self.tokens.T)
        scores = scores + torch.matmul(wanted, self.bias)[:, None]
        return log_sigmoid(scores)

    def forward(self, states: Tensor, wish: Tensor) -> tuple[Tensor, Tensor]:
        """What wishes add to logits, (B, K, V), exactly zero where there is no wish; and the
        logarithm of the probability that a text which ends here meets its wishes, (B, K)."""
        strength = torch.matmul(wish, self.groups.T)[:, None, None]  # (B, 1, 1, G)
        chances = self.chances(states, wish)
        wished = (strength > 0).to(chances.dtype)
        met = torch.matmul(wished, chances[:, :, :, EOS : EOS + 1])
        return torch.matmul(strength, chances)[:, :, 0], met[:, :, 0, 0]
