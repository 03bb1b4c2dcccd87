"""CTranslate2 and Hugging Face decoding our weights. Run in the peers' environment.

Reads a job, loads every contender, then decodes once for each name read from standard input and
answers with a JSON line: seconds, and on request the tokens. So rounds can be interleaved.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
logging.disable(logging.WARNING)

import ctranslate2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ctranslate2.specs import transformer_spec  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers import PegasusConfig, PegasusForConditionalGeneration  # noqa: E402

Tokens = list[list[int]]
SPECIAL = ["<blank>", "<s>", "</s>", "<unk>"]


def sinusoids(positions: int, width: int) -> np.ndarray:
    rate = np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
    angle = np.arange(positions)[:, None] * rate
    table = np.zeros((positions, width), dtype=np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angle), np.cos(angle)
    return table


def source_embedding(w: dict[str, np.ndarray]) -> np.ndarray:
    return w.get("source_embedding.weight", w["target_embedding.weight"])


def ctranslate2_model(w: dict[str, np.ndarray], job: dict, folder: Path) -> None:
    """Our weights as a CTranslate2 model: a pre-norm Transformer with its own position table."""
    config = job["config"]
    layers, heads, width = config["layers"], config["heads"], config["width"]
    spec = transformer_spec.TransformerSpec.from_config(layers, heads, pre_norm=True)
    table = sinusoids(config["max_length"], width)

    def norm(target, name: str) -> None:
        target.gamma, target.beta = w[f"{name}.weight"], w[f"{name}.bias"]

    def linear(target, *names: str) -> None:
        target.weight = np.concatenate([w[f"{name}.weight"] for name in names])
        target.bias = np.concatenate([w[f"{name}.bias"] for name in names])

    def feed_forward(target, name: str) -> None:
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
        linear(
            layer.self_attention.linear[0], f"{name}.attention.query", f"{name}.attention.key_value"
        )
        linear(layer.self_attention.linear[1], f"{name}.attention.output")
        feed_forward(layer.ffn, name)
        layer, name = spec.decoder.layer[n], f"decoder.{n}"
        own, cross = f"{name}.self_attention", f"{name}.cross_attention"
        norm(layer.self_attention.layer_norm, f"{name}.self_norm")
        linear(layer.self_attention.linear[0], f"{own}.query", f"{own}.key_value")
        linear(layer.self_attention.linear[1], f"{own}.output")
        norm(layer.attention.layer_norm, f"{name}.cross_norm")
        linear(layer.attention.linear[0], f"{cross}.query")
        linear(layer.attention.linear[1], f"{cross}.key_value")
        linear(layer.attention.linear[2], f"{cross}.output")
        feed_forward(layer.ffn, name)
    for register, size in (
        (spec.register_source_vocabulary, len(source_embedding(w))),
        (spec.register_target_vocabulary, len(w["target_embedding.weight"])),
    ):
        register(SPECIAL + [f"t{index}" for index in range(4, size)])
    spec.validate()
    spec.save(str(folder))


def ctranslate2_contender(
    w: dict[str, np.ndarray], job: dict, threads: tuple[int, int], batch: int, folder: Path
) -> Callable[[], Tokens]:
    if not (folder / "model.bin").exists():
        ctranslate2_model(w, job, folder)
    inter, intra = threads
    translator = ctranslate2.Translator(
        str(folder), compute_type="float32", inter_threads=inter, intra_threads=intra
    )
    words = [[SPECIAL[i] if i < 4 else f"t{i}" for i in row] for row in job["source"]]

    def run() -> Tokens:
        found = translator.translate_batch(
            words, beam_size=1, max_batch_size=batch, batch_type="tokens",
            max_decoding_length=job["longest"],
        )  # fmt: skip
        return [
            [SPECIAL.index(t) if t in SPECIAL else int(t[1:]) for t in result.hypotheses[0]]
            for result in found
        ]

    return run


def pegasus(w: dict[str, np.ndarray], job: dict) -> PegasusForConditionalGeneration:
    """Our weights in Hugging Face's pre-norm Transformer."""
    config = job["config"]
    layers, width = config["layers"], config["width"]
    half = {"layers": layers, "attention_heads": config["heads"], "ffn_dim": 4 * width}
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

    def put(module: torch.nn.Module, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
        module.weight.data = torch.from_numpy(weight.copy())
        if bias is not None:
            module.bias.data = torch.from_numpy(bias.copy())

    def named(module: torch.nn.Module, name: str) -> None:
        put(module, w[f"{name}.weight"], w[f"{name}.bias"])

    def attention(module: torch.nn.Module, name: str) -> None:
        named(module.q_proj, f"{name}.query")
        named(module.out_proj, f"{name}.output")
        keys, values = np.split(w[f"{name}.key_value.weight"], 2)
        key_bias, value_bias = np.split(w[f"{name}.key_value.bias"], 2)
        put(module.k_proj, keys, key_bias)
        put(module.v_proj, values, value_bias)

    put(inner.encoder.embed_tokens, source_embedding(w))
    put(inner.decoder.embed_tokens, w["target_embedding.weight"])
    for side, name in ((inner.encoder, "encoder"), (inner.decoder, "decoder")):
        put(side.embed_positions, sinusoids(config["max_length"], width))
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


def hugging_face_contender(w: dict[str, np.ndarray], job: dict, batch: int) -> Callable[[], Tokens]:
    model = pegasus(w, job).to(job["device"])
    order = sorted(range(len(job["source"])), key=lambda row: -len(job["source"][row]))

    @torch.inference_mode()
    def run() -> Tokens:
        results: Tokens = [[] for _ in order]
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            sources = [job["source"][row] for row in rows]
            width = max(len(row) for row in sources)
            ids = torch.tensor([row + [0] * (width - len(row)) for row in sources])
            ids = ids.to(job["device"])
            found = model.generate(
                input_ids=ids, attention_mask=(ids != 0).long(), num_beams=1, do_sample=False,
                max_new_tokens=job["longest"],
            )  # fmt: skip
            for row, tokens in zip(rows, found.tolist(), strict=True):
                tokens = tokens[1:]
                results[row] = tokens[: tokens.index(2)] if 2 in tokens else tokens
        return results

    return run


def main() -> None:
    command = argparse.ArgumentParser()
    command.add_argument("job", type=Path)
    job = json.loads(command.parse_args().job.read_text())
    w = load_file(job["weights"])
    threads = job["threads"]
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders: dict[str, Callable[[], Tokens]] = {}
        splits = {(1, threads), (threads, 1)}
        for inter, intra in sorted(splits):
            for batch in (1024, 4096):
                label = f"CTranslate2, {inter}×{intra} threads, {batch} tokens"
                contenders[label] = ctranslate2_contender(w, job, (inter, intra), batch, folder)
        for batch in (32, 128):
            contenders[f"Hugging Face, {batch} sentences"] = hugging_face_contender(w, job, batch)
        print(json.dumps(list(contenders)), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            started = time.perf_counter()
            tokens = contenders[request["name"]]()
            seconds = time.perf_counter() - started
            answer = {"seconds": seconds, "tokens": tokens if request["tokens"] else None}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
