"""Messages of conversations, as chat APIs (`role`, `content`) and ShareGPT (`from`, `value`) write them."""

from __future__ import annotations

from typing import Any

from muai_lab.workload.reading import FileReading, shown
from muai_lab.workload.schedule import Message

_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant", "prompter": "user",
}  # fmt: skip
_ROLES |= {role: role for role in ("system", "developer", "user", "assistant", "tool", "function")}
_SPEAKER, _SPEECH = ("role", "from", "speaker"), ("content", "value", "text")
# Fields of a message that chat APIs accept. Other fields of a data set's messages are no part of the request.
_SENT = frozenset({"name", "tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "refusal"})


def message_of(value: Any, reading: FileReading, name: str) -> Message:
    """Return a message with `role` and `content`; other names of roles (human, gpt) become those of the chat API.

    The content is a text, or a list of parts, or null beside tool calls. name: of the field that holds the messages.
    Raises ValueError if the message has no role or no content.
    """
    if not isinstance(value, dict):
        raise ValueError(f"message {shown(value)} has no role or no text")
    speaker = next((key for key in _SPEAKER if isinstance(value.get(key), str) and value[key].strip()), None)
    speech = next((key for key in _SPEECH if isinstance(value.get(key), str | list)), None)
    calls = value.get("tool_calls") or value.get("function_call")
    if speaker is None or (speech is None and not calls):
        raise ValueError(f"message {shown(value)} has no role or no text")
    content = None if speech is None else value[speech]
    if isinstance(content, list):
        content = _content(content, value, reading)
    role = value[speaker].strip()
    message: dict[str, Any] = {"role": _ROLES.get(role.lower(), role), "content": content}
    for key, held in value.items():
        if key in _SENT and held is not None:
            message[key] = held
        elif key not in (speaker, speech) and held is not None:
            reading.ignore(f"{name}[].{key}")
    return message


def _content(parts: list[Any], message: Any, reading: FileReading) -> str | list[Any]:
    """Return the text if all parts are texts, else the parts."""
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"message {shown(message)} has no role or no text")
    if not all(isinstance(part.get("text"), str) for part in parts):
        reading.remark("with parts of messages that are no text: their tokens are not counted")
        return parts
    if all(part.keys() <= {"type", "text"} for part in parts):
        return "".join(part["text"] for part in parts)
    return parts
