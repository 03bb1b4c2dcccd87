"""Hugging Face: a Marian model of a given size under Seq2SeqTrainer. Run in the peers' environment.

Prints a JSON line with target tokens and seconds of the measured steps, and what the model then
translates, if the job says so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
logging.disable(logging.WARNING)

import torch  # noqa: E402
from transformers import (  # noqa: E402
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)


class Pairs(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = [
            {
                "input_ids": r["source"],
                "labels": r["target"],
                "attention_mask": [1] * len(r["source"]),
                "length": len(r["target"]),
            }
            for r in rows
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Pad:
    """What DataCollatorForSeq2Seq needs of a tokenizer."""

    padding_side = "right"

    def pad(self, features: list[dict[str, Any]], **_: object) -> dict[str, Any]:
        width = max(len(f["input_ids"]) for f in features)
        padded = {
            name: torch.tensor([f[name] + [0] * (width - len(f[name])) for f in features])
            for name in ("input_ids", "attention_mask")
        }
        return padded


class Clock(TrainerCallback):  # type: ignore[misc]
    def __init__(self, skip: int) -> None:
        self.skip, self.started = skip, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.skip:
            self.started = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.started


def translate(model: Any, sources: list[list[int]], beam: int) -> list[list[int]]:
    """Ids of the outputs, without special ones."""
    model.eval()
    outputs: list[list[int]] = [[]] * len(sources)
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    for first in range(0, len(order), 64):
        numbers = order[first : first + 64]
        batch = Pad().pad(
            [{"input_ids": sources[n], "attention_mask": [1] * len(sources[n])} for n in numbers]
        )
        made = model.generate(
            **batch, num_beams=beam, length_penalty=1.0, max_length=100, bad_words_ids=[[0], [1]]
        )
        for number, row in zip(numbers, made.tolist(), strict=True):
            outputs[number] = [token for token in row if token > 2]
    return outputs


def main() -> None:
    command = argparse.ArgumentParser()
    command.add_argument("job", help="JSON: rows, sizes, steps, batch, precision, threads")
    job = json.loads(Path(command.parse_args().job).read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(1)
    config = MarianConfig(
        vocab_size=job["source_vocabulary"],
        decoder_vocab_size=job["target_vocabulary"],
        share_encoder_decoder_embeddings=False,
        d_model=job["width"],
        encoder_layers=job["layers"], decoder_layers=job.get("decoder_layers", job["layers"]),
        encoder_attention_heads=job["heads"], decoder_attention_heads=job["heads"],
        encoder_ffn_dim=4 * job["width"], decoder_ffn_dim=4 * job["width"],
        dropout=job["dropout"], activation_dropout=job["dropout"], activation_function="relu",
        max_position_embeddings=512, scale_embedding=True, init_std=job.get("init_std", 0.02),
        pad_token_id=0, eos_token_id=2, bos_token_id=1, decoder_start_token_id=1,
        forced_eos_token_id=2,
    )  # fmt: skip
    model = MarianMTModel(config)
    counted = {"tokens": 0, "step": 0}

    def counting(features: list[dict[str, Any]]) -> dict[str, Any]:
        for feature in features:
            feature.pop("length", None)
        labels = [feature["labels"] for feature in features]
        width = max(len(row) for row in labels)
        batch = Pad().pad(features)
        batch["labels"] = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
        # Label smoothing takes the labels away from the model, so it needs its own inputs.
        batch["decoder_input_ids"] = torch.tensor(
            [[1, *row[:-1]] + [0] * (width - len(row)) for row in labels]
        )
        if counted["step"] >= job["skip"]:
            counted["tokens"] += sum(len(row) for row in labels)
        counted["step"] += 1
        return batch

    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder, max_steps=job["skip"] + job["steps"],
            per_device_train_batch_size=job["sentences"],
            learning_rate=job.get("learning_rate", 1e-3), warmup_steps=job.get("warmup", 0),
            lr_scheduler_type=job.get("schedule", "linear"),
            label_smoothing_factor=0.1, max_grad_norm=1.0, weight_decay=0.01,
            bf16=job["precision"] == "bf16", use_cpu=job["device"] == "cpu", save_strategy="no",
            logging_strategy="no", report_to=[], dataloader_num_workers=0, disable_tqdm=True,
            optim="adamw_torch_fused", train_sampling_strategy="group_by_length",
            length_column_name="length", remove_unused_columns=False,
        )  # fmt: skip
        clock = Clock(job["skip"])
        trainer = Seq2SeqTrainer(
            model=model, args=arguments, train_dataset=Pairs(job["rows"]), data_collator=counting,
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result = {"tokens": counted["tokens"], "seconds": clock.seconds, "parameters": parameters}
    result["translations"] = {
        name: translate(model, sources, job["beam"])
        for name, sources in job.get("translate", {}).items()
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
