"""Request fields that would change the answer and that this server does not support.

The names come from the request schemas of OpenAI, vLLM, SGLang, TGI and llama.cpp. A field counts as absent if its
value is neutral: a server that supports the field then answers like one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Neutral = tuple[Any, ...]

NOTHING: Neutral = (None, False)
_NO_VALUE: Neutral = (None, "", [], {})
_ZERO: Neutral = (None, 0, 0.0)
_ONE: Neutral = (None, 1, 1.0)
_YES: Neutral = (None, True)

_CONSTRAINED_OUTPUT = {
    "ebnf": _NO_VALUE,
    "grammar": _NO_VALUE,
    "guided_choice": _NO_VALUE,
    "guided_grammar": _NO_VALUE,
    "guided_json": _NO_VALUE,
    "guided_json_object": NOTHING,
    "guided_regex": _NO_VALUE,
    "json_schema": _NO_VALUE,
    "regex": _NO_VALUE,
    "response_format": (None, {"type": "text"}),
    "structural_tag": _NO_VALUE,
    "structured_outputs": _NO_VALUE,
}
_CHOICE_OF_TOKENS = {
    "allowed_token_ids": _NO_VALUE,
    "bad_words": _NO_VALUE,
    "custom_logit_processor": _NO_VALUE,
    "custom_params": _NO_VALUE,
    "dry_multiplier": _ZERO,
    "dynatemp_range": _ZERO,
    "early_stopping": NOTHING,
    "epsilon_cutoff": _ZERO,
    "eta_cutoff": _ZERO,
    "frequency_penalty": _ZERO,
    "length_penalty": _ONE,
    "logit_bias": _NO_VALUE,
    "logits_processors": _NO_VALUE,
    "min_new_tokens": _ZERO,
    "min_p": _ZERO,
    "min_tokens": _ZERO,
    "mirostat": _ZERO,
    "no_repeat_ngram_size": _ZERO,
    "presence_penalty": _ZERO,
    "repeat_penalty": _ONE,
    "repetition_penalty": _ONE,
    "tfs_z": _ONE,
    "top_a": _ZERO,
    "typical_p": _ONE,
    "use_beam_search": NOTHING,
    "vllm_xargs": _NO_VALUE,
    "watermark": NOTHING,
    "watermarking": NOTHING,
    "xtc_probability": _ZERO,
}
_END_OF_OUTPUT = {
    "include_stop_str_in_output": NOTHING,
    "max_new_tokens": (None,),
    "n_predict": (None, -1),
    "no_stop_trim": NOTHING,
    "num_predict": (None, -1),
    "repetition_detection": _NO_VALUE,
    "stop_regex": _NO_VALUE,
    "stop_token_ids": _NO_VALUE,
    "thinking_token_budget": (None,),
}
_PROMPT = {
    "add_generation_prompt": _YES,
    "chat_template": _NO_VALUE,
    "chat_template_kwargs": _NO_VALUE,
    "continue_final_message": NOTHING,
    "documents": _NO_VALUE,
    "ec_transfer_params": _NO_VALUE,
    "enable_thinking": (None,),
    "function_call": (None, "none"),
    "functions": _NO_VALUE,
    "input_ids": _NO_VALUE,
    "kv_transfer_params": _NO_VALUE,
    "lora_path": _NO_VALUE,
    "prompt_embeds": _NO_VALUE,
    "reasoning": _NO_VALUE,
    "reasoning_effort": (None,),
    "session_params": _NO_VALUE,
    "suffix": _NO_VALUE,
    "thinking": _NO_VALUE,
    "tool_choice": (None, "none", "auto"),
    "tools": _NO_VALUE,
    "truncate_prompt_tokens": (None,),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
_FORM_OF_ANSWER = {
    "audio": (None,),
    "echo": NOTHING,
    "logprob_token_ids": _NO_VALUE,
    "logprobs": NOTHING,
    "modalities": (None, ["text"]),
    "n_probs": _ZERO,
    "prompt_logprobs": (None,),
    "return_cached_tokens_details": NOTHING,
    "return_hidden_states": NOTHING,
    "return_meta_info": NOTHING,
    "return_prompt_text": NOTHING,
    "return_prompt_token_ids": NOTHING,
    "return_routed_experts": NOTHING,
    "return_token_offsets": NOTHING,
    "return_tokens_as_token_ids": NOTHING,
    "skip_special_tokens": _YES,
    "stream_interval": _ONE,
    "top_logprobs": _ZERO,
}
# Containers of fields that only client libraries and other servers unpack.
_WRAPPERS = {"extra_body": _NO_VALUE, "options": _NO_VALUE, "parameters": _NO_VALUE, "sampling_params": _NO_VALUE}

_BOTH: Mapping[str, Neutral] = {
    **_CONSTRAINED_OUTPUT,
    **_CHOICE_OF_TOKENS,
    **_END_OF_OUTPUT,
    **_PROMPT,
    **_FORM_OF_ANSWER,
    **_WRAPPERS,
}
# Each endpoint refuses the fields of the other one: ignored, they would change the prompt or the length of the answer.
COMPLETION_FIELDS: Mapping[str, Neutral] = {
    **_BOTH,
    "add_special_tokens": _YES,
    "max_completion_tokens": (None,),
    "messages": _NO_VALUE,
}
"""Of `/v1/completions`: the tokenizer adds the special tokens that the model expects around a prompt."""

CHAT_FIELDS: Mapping[str, Neutral] = {**_BOTH, "add_special_tokens": NOTHING, "prompt": _NO_VALUE}
"""Of `/v1/chat/completions`: the chat template has written the special tokens."""


def first_unsupported(given: Mapping[str, Any], fields: Mapping[str, Neutral]) -> str | None:
    """Return the first of the given fields that `fields` lists as unsupported and whose value is not neutral."""
    for name, value in given.items():
        neutral = fields.get(name)
        if neutral is not None and not is_neutral(value, neutral):
            return name
    return None


def is_neutral(value: Any, neutral: Neutral) -> bool:
    """True if the value is one of the neutral ones; 0 and false are different values."""
    return any(type(value) is type(item) and value == item for item in neutral)
