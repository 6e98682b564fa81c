"""What the conformance suite compares: an engine behind the whole stack, and the model in plain transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from muai_lab.engines.catalogue import ENGINES
from muai_lab.models.registry import resolve_model
from muai_lab.settings.resolve import load_settings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.stack.events import CacheLookup, Event, Token
from muai_lab.stack.generation import Generation
from muai_lab.stack.request import GenerationRequest
from muai_lab.stack.stack import InferenceStack

T = TypeVar("T")

SLOTS = 16


class TokenLog:
    """An observer that keeps every request's tokens."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.lookups: dict[str, CacheLookup] = {}

    def observe(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Token):
                self.tokens.setdefault(event.request_id, []).append(event.token)
            elif isinstance(event, CacheLookup):
                assert event.request_id not in self.lookups, "looked up twice"
                self.lookups[event.request_id] = event


def in_fp32(engine: str, device: str) -> OptimizationSettings:
    """One engine alone, in fp32 on `cpu` or `cuda`. DeepSpeed and vLLM take a GPU wherever they see one."""
    return load_settings(
        environ={},
        overrides={
            "optimization.engine_preference": [engine],
            "optimization.pytorch.device": device,
            "optimization.pytorch.dtype": "fp32",
            "optimization.onnx.execution_providers": [f"{device.upper()}ExecutionProvider"],
            "optimization.onnx.dtype": "fp32",
            "optimization.deepspeed.dtype": "fp32",
            "optimization.vllm.dtype": "fp32",
            "optimization.batcher.max_batch_size": SLOTS,
        },
    ).settings.optimization


def missing_gpu(engine: str) -> str | None:
    """Why an engine cannot run its tests on a GPU here, None if it can."""
    if not torch.cuda.is_available():
        return "PyTorch sees none"
    found = ENGINES[engine].availability(in_fp32(engine, "cuda"))
    if found.reason is None and found.device == "cpu":
        return "this build is for CPUs"
    return found.reason


class Served:
    """An open stack, the loop it is spoken to on, and what it produced."""

    def __init__(self, engine: str, model: str, device: str) -> None:
        self.engine, self.model, self.device = engine, model, device
        self.log = TokenLog()
        self._runner = asyncio.Runner()
        self.asked = 0
        self.stack = InferenceStack.open(in_fp32(engine, device), model, observers=lambda _engine: [self.log])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self.stack.close())
        self._runner.close()

    def submit(self, prompt: Sequence[int], max_tokens: int, **more: Any) -> Generation:
        more.setdefault("ignore_eos", True)
        self.asked += 1
        return self.stack.submit(GenerationRequest(f"r{self.asked - 1}", prompt, max_tokens, **more))

    @property
    def caches(self) -> bool:
        """Whether prefixes are reused: by us, or by an engine of its own accord."""
        return self.model != "t5_summarizer"

    async def text(self, prompt: Sequence[int], max_tokens: int, **more: Any) -> str:
        return "".join([delta.text async for delta in self.submit(prompt, max_tokens, **more)])

    async def tokens(self, prompt: Sequence[int], max_tokens: int, **more: Any) -> list[int]:
        generation = self.submit(prompt, max_tokens, **more)
        counted = 0
        async for delta in generation:
            counted += delta.tokens
        tokens = self.log.tokens[generation.request_id]
        assert counted == len(tokens)
        return tokens


class Reference:
    """The model in plain transformers, which every engine is held against."""

    def __init__(self, name: str) -> None:
        import transformers

        source = resolve_model(name)
        self.encoder_decoder = source.encoder_decoder
        kind: Any = transformers.AutoModelForSeq2SeqLM if source.encoder_decoder else transformers.AutoModelForCausalLM
        self.model = kind.from_pretrained(source.path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        ids = torch.tensor([list(prompt)])
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            min_new_tokens=max_tokens,
            do_sample=False,
        )[0]
        return output[1:].tolist() if self.encoder_decoder else output[len(prompt) :].tolist()

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
        """Logits of the token that follows prompt and output `[vocabulary]`."""
        if self.encoder_decoder:
            start = self.model.config.decoder_start_token_id
            decoded = self.model(
                input_ids=torch.tensor([list(prompt)]), decoder_input_ids=torch.tensor([[start, *output]])
            )
            return decoded.logits[0, -1]
        return self.model(torch.tensor([[*prompt, *output]])).logits[0, -1]


def prompts(served: Served, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [served.stack.tokenizer.prompt_of(length, random)[1] for length in lengths]
