"""Names of tensors that a model, its graphs and their sessions agree on. Imports no torch."""

PRIOR_MEAN, PRIOR_DEVIATION, LATENT = "prior_mean", "prior_deviation", "latent"
ATTENTION = "attention"
"""What a step also returns, on request; see `model.contract.EncoderDecoder.attentive`."""
WISH, MET = "wish", "met"
"""See `model.contract.EncoderDecoder.wishes` and `future`."""
