"""The byte-level BPE tokenizer of the embedded models, trained on the text that ships with the package."""

from __future__ import annotations

import json
import re
from importlib import resources

VOCAB_SIZE = 2048
END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)  # their ids are 0, 1, 2, 3

# Qwen2's pieces of text before merging: words with the one character before them, single digits, runs of punctuation,
# white space. Transformers 5 gives every Qwen2 model this pattern and NFC, and ignores those of the tokenizer's file.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def corpus() -> str:
    """Return the training text, with the same line ends in every checkout."""
    raw = resources.files("muai_lab.models").joinpath("corpus.txt").read_bytes()
    return raw.decode("utf-8").replace("\r\n", "\n")


def words() -> frozenset[str]:
    """Return every word of the training text."""
    return frozenset(re.findall(r"[^\W\d_]+", corpus()))


def train(text: str) -> dict[str, object]:
    """Train on `text`. Returns the content of `tokenizer.json`.

    The layout is written here, not by the library, so that the file does not change with the library's version.
    Training has no random part: ties are broken by token ids.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.normalizers import NFC
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_PIECES), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,  # the text is short: words that stand in it once complete the vocabulary
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "type": "ByteLevel", "use_regex": False}
    split = {"behavior": "Isolated", "invert": False, "pattern": {"Regex": _PIECES}, "type": "Split"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, content in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"pretokenizers": [split, byte_level], "type": "Sequence"},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": model["vocab"],
            "merges": model["merges"],
        },
    }


def token_bytes(tokenizer_json: dict[str, object]) -> list[bytes]:
    """Return the bytes of every token by id; special tokens are empty."""
    model = tokenizer_json["model"]
    assert isinstance(model, dict)
    by_character = _bytes_by_character()
    found = [b""] * VOCAB_SIZE
    for token, index in model["vocab"].items():
        if token not in SPECIAL_TOKENS:
            found[index] = bytes(by_character[character] for character in token)
    return found


def _bytes_by_character() -> dict[str, int]:
    """Return the byte that each printable character of a byte-level vocabulary represents (the scheme of GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    table.update({chr(256 + offset): byte for offset, byte in enumerate(others)})
    return table
