"""CTranslate2 or Hugging Face decoding our weights. Run in the peers' environment.

The job's `peer` selects one: CTranslate2 is loaded with every split of threads and batch size, and
must be run with and without CT2_USE_MKL=1; Hugging Face with several batch sizes.
"""

from __future__ import annotations

import time

STARTED = time.time()

import logging  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
logging.disable(logging.WARNING)

import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from serving import Tokens, serve  # noqa: E402

SPECIAL = ["<blank>", "<s>", "</s>", "<unk>"]


def source_embedding(w: dict[str, np.ndarray]) -> np.ndarray:
    return w.get("source_embedding.weight", w["target_embedding.weight"])


def ctranslate2_model(w: dict[str, np.ndarray], job: dict[str, Any], folder: Path) -> None:
    """Our weights as a CTranslate2 model: a pre-norm Transformer with its own position table."""
    from ctranslate2.specs import transformer_spec

    config = job["config"]
    layers, heads = config["layers"], config["heads"]
    spec = transformer_spec.TransformerSpec.from_config(layers, heads, pre_norm=True)
    table = w["positions"]

    def norm(target: Any, name: str) -> None:
        target.gamma, target.beta = w[f"{name}.weight"], w[f"{name}.bias"]

    def linear(target: Any, *names: str) -> None:
        target.weight = np.concatenate([w[f"{name}.weight"] for name in names])
        target.bias = np.concatenate([w[f"{name}.bias"] for name in names])

    def feed_forward(target: Any, name: str) -> None:
        norm(target.layer_norm, f"{name}.feed_forward_norm")
        linear(target.linear_0, f"{name}.feed_forward.expand")
        linear(target.linear_1, f"{name}.feed_forward.contract")

    spec.encoder.embeddings[0].weight = source_embedding(w)
    spec.decoder.embeddings.weight = w["target_embedding.weight"]
    for side in (spec.encoder, spec.decoder):
        side.position_encodings.encodings = table
    norm(spec.encoder.layer_norm, "encoder_norm")
    norm(spec.decoder.layer_norm, "decoder_norm")
    spec.decoder.projection.weight = w["target_embedding.weight"]
    spec.decoder.projection.bias = w["output_bias"]
    for n in range(layers):
        layer, name = spec.encoder.layer[n], f"encoder.{n}"
        norm(layer.self_attention.layer_norm, f"{name}.attention_norm")
        own = f"{name}.attention"
        linear(layer.self_attention.linear[0], f"{own}.query", f"{own}.key", f"{own}.value")
        linear(layer.self_attention.linear[1], f"{own}.output")
        feed_forward(layer.ffn, name)
        layer, name = spec.decoder.layer[n], f"decoder.{n}"
        own, cross = f"{name}.self_attention", f"{name}.cross_attention"
        norm(layer.self_attention.layer_norm, f"{name}.self_norm")
        linear(layer.self_attention.linear[0], f"{own}.query", f"{own}.key", f"{own}.value")
        linear(layer.self_attention.linear[1], f"{own}.output")
        norm(layer.attention.layer_norm, f"{name}.cross_norm")
        linear(layer.attention.linear[0], f"{cross}.query")
        linear(layer.attention.linear[1], f"{cross}.key", f"{cross}.value")
        linear(layer.attention.linear[2], f"{cross}.output")
        feed_forward(layer.ffn, name)
    for register, size in (
        (spec.register_source_vocabulary, len(source_embedding(w))),
        (spec.register_target_vocabulary, len(w["target_embedding.weight"])),
    ):
        register(SPECIAL + [f"t{index}" for index in range(4, size)])
    spec.validate()
    spec.save(str(folder))


def ctranslate2_contenders(
    w: dict[str, np.ndarray], job: dict[str, Any]
) -> dict[str, Callable[[], Tokens]]:
    import ctranslate2

    folder = Path(tempfile.mkdtemp())
    ctranslate2_model(w, job, folder)
    words = [[SPECIAL[i] if i < 4 else f"t{i}" for i in row] for row in job["source"]]

    def contender(inter: int, intra: int, batch: int) -> Callable[[], Tokens]:
        translator = ctranslate2.Translator(
            str(folder), compute_type=job["compute"], inter_threads=inter, intra_threads=intra
        )

        def run() -> Tokens:
            # With scores, which ours returns too; CTranslate2 would omit them in greedy search.
            results = translator.translate_batch(
                words, beam_size=job["beam"], max_batch_size=batch, batch_type="tokens",
                max_decoding_length=job["longest"], return_scores=True,
            )  # fmt: skip
            return [
                [SPECIAL.index(t) if t in SPECIAL else int(t[1:]) for t in result.hypotheses[0]]
                for result in results
            ]

        return run

    threads, kind = job["threads"], "MKL" if os.environ.get("CT2_USE_MKL") == "1" else "default"
    return {
        f"CTranslate2 ({kind}), {inter}×{intra} threads, {batch} tokens": contender(
            inter, intra, batch
        )
        for inter, intra in sorted({(1, threads), (threads, 1)})
        for batch in job["batch_tokens"]
    }


def pegasus(w: dict[str, np.ndarray], job: dict[str, Any]) -> Any:
    """Our weights in Hugging Face's pre-norm Transformer."""
    import torch
    from transformers import PegasusConfig, PegasusForConditionalGeneration

    config = job["config"]
    layers, width = config["layers"], config["width"]
    half = {
        "layers": layers,
        "attention_heads": config["heads"],
        "ffn_dim": config["feed_forward"] or 4 * width,
    }
    sizes = {f"{side}_{k}": value for side in ("encoder", "decoder") for k, value in half.items()}
    vocabulary = len(w["target_embedding.weight"])
    settings = PegasusConfig(
        vocab_size=vocabulary, d_model=width, activation_function="relu", scale_embedding=True,
        max_position_embeddings=config["max_length"], tie_word_embeddings=False, pad_token_id=0,
        eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None, **sizes,
    )  # fmt: skip
    model = PegasusForConditionalGeneration(settings).eval()
    inner = model.model
    inner.encoder.embed_tokens = torch.nn.Embedding(len(source_embedding(w)), width)
    inner.decoder.embed_tokens = torch.nn.Embedding(vocabulary, width)

    def put(module: Any, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        module.weight.data = torch.from_numpy(weight.copy())
        if bias is not None:
            module.bias.data = torch.from_numpy(bias.copy())

    def named(module: Any, name: str) -> None:
        put(module, w[f"{name}.weight"], w[f"{name}.bias"])

    def attention(module: Any, name: str) -> None:
        named(module.q_proj, f"{name}.query")
        named(module.k_proj, f"{name}.key")
        named(module.v_proj, f"{name}.value")
        named(module.out_proj, f"{name}.output")

    put(inner.encoder.embed_tokens, source_embedding(w))
    put(inner.decoder.embed_tokens, w["target_embedding.weight"])
    for side, name in ((inner.encoder, "encoder"), (inner.decoder, "decoder")):
        put(side.embed_positions, w["positions"])
        named(side.layer_norm, f"{name}_norm")
        for n, layer in enumerate(side.layers):
            own = "attention" if name == "encoder" else "self_attention"
            first = "attention_norm" if name == "encoder" else "self_norm"
            attention(layer.self_attn, f"{name}.{n}.{own}")
            named(layer.self_attn_layer_norm, f"{name}.{n}.{first}")
            if name == "decoder":
                attention(layer.encoder_attn, f"{name}.{n}.cross_attention")
                named(layer.encoder_attn_layer_norm, f"{name}.{n}.cross_norm")
            named(layer.fc1, f"{name}.{n}.feed_forward.expand")
            named(layer.fc2, f"{name}.{n}.feed_forward.contract")
            named(layer.final_layer_norm, f"{name}.{n}.feed_forward_norm")
    put(model.lm_head, w["target_embedding.weight"])
    model.final_logits_bias = torch.from_numpy(w["output_bias"].copy())[None]
    return model


def hugging_face_contenders(
    w: dict[str, np.ndarray], job: dict[str, Any]
) -> dict[str, Callable[[], Tokens]]:
    import torch

    torch.set_num_threads(job["threads"])
    model = pegasus(w, job)
    order = sorted(range(len(job["source"])), key=lambda row: -len(job["source"][row]))

    def contender(batch: int) -> Callable[[], Tokens]:
        @torch.inference_mode()
        def run() -> Tokens:
            results: Tokens = [[] for _ in order]
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                sources = [job["source"][row] for row in rows]
                width = max(len(row) for row in sources)
                ids = torch.tensor([row + [0] * (width - len(row)) for row in sources])
                generated = model.generate(
                    input_ids=ids, attention_mask=(ids != 0).long(), num_beams=job["beam"],
                    do_sample=False, early_stopping=job["beam"] > 1,
                    max_new_tokens=job["longest"],
                )  # fmt: skip
                for row, tokens in zip(rows, generated.tolist(), strict=True):
                    tokens = tokens[1:]
                    results[row] = tokens[: tokens.index(2)] if 2 in tokens else tokens
            return results

        return run

    return {f"Hugging Face, {size} sentences": contender(size) for size in (32, 128)}


def load(job: dict[str, Any]) -> dict[str, Callable[[], Tokens]]:
    w = load_file(job["weights"])
    peers = {"CTranslate2": ctranslate2_contenders, "Hugging Face": hugging_face_contenders}
    return peers[job["peer"]](w, job)


serve(STARTED, load)
