"""What depends on the target's language."""

from __future__ import annotations


def bleu_tokenizer(language: str | None) -> str:
    """sacreBLEU's tokenizer for a target language: `zh` for Chinese, `13a` otherwise.

    The same choice as the `sacrebleu` command makes from `-l`, for the languages that need no
    other package.
    """
    return "zh" if (language or "").lower().replace("_", "-").partition("-")[0] == "zh" else "13a"
