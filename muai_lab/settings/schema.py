"""The `optimization` section: every key with its default, range, options and meaning.

The specification's keys stand here in its order. Keys that are ours are marked `extension=True` and have defaults under
which every example of the specification stays valid. Short environment names are those that the specification prints.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from muai_lab.settings.section import (
    AnySequence,
    Name,
    Order,
    Section,
    Unique,
    setting,
)

EngineName = Literal["vllm", "deepspeed", "onnx", "pytorch"]
ENGINE_NAMES: tuple[EngineName, ...] = get_args(EngineName)
Dtype = Literal["auto", "fp16", "fp32", "bf16"]
ExecutionProvider = Literal[
    "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider", "OpenVINOExecutionProvider"
]


class VllmSettings(Section):
    """vLLM: continuous batching and PagedAttention; schedules its own steps."""

    enabled: bool = setting(True, "Offer the vLLM engine. Needs the extra `vllm`.")
    tensor_parallel_size: int = setting(
        1,
        "GPUs that one model is spread over (tensor parallelism).",
        unit="GPUs",
        env="MUAI_OPT_VLLM_TENSOR_PARALLEL",
        ge=1,
    )
    dtype: Dtype = setting("auto", "Data type of the weights; auto takes what suits the device.")
    max_model_len: int | None = setting(
        None, "Longest sequence, prompt and output together; null takes the model's own limit.", unit="tokens", ge=1
    )
    gpu_memory_utilization: float = setting(
        0.9, "Share of the GPU's memory that vLLM may use.", env="MUAI_OPT_VLLM_GPU_MEMORY", ge=0.0, le=1.0
    )
    swap_space: int = setting(
        4,
        "CPU memory that key/value blocks may move to when GPU memory runs short; 0 for none. "
        "Current vLLM calls it `kv_offloading_size`.",
        unit="GB",
        ge=0,
    )
    enforce_eager: bool | None = setting(
        None,
        "Run the model as it is written instead of compiling it first (and, on a GPU, capturing CUDA graphs). null is "
        "true on a CPU, where compiling makes the start several times as long, and false on a GPU.",
        extension=True,
    )


class DeepspeedSettings(Section):
    """DeepSpeed inference: large models, kernel injection where a policy exists for the model."""

    enabled: bool = setting(True, "Offer the DeepSpeed engine. Needs the extra `deepspeed`.")
    tensor_parallel: int = setting(1, "GPUs that each layer is spread over (tensor parallelism).", unit="GPUs", ge=1)
    pipeline_parallel: int = setting(
        1,
        "Stages that the layers are spread over. DeepSpeed inference has no pipeline parallelism: above 1 the engine "
        "is reported as unavailable.",
        unit="stages",
        ge=1,
    )
    dtype: Dtype = setting(
        "fp16",
        "Data type for inference. A device that cannot run it (fp16 on a CPU) makes the engine unavailable; auto is "
        "fp16 on a GPU and fp32 on a CPU.",
    )
    replace_with_kernel_inject: bool = setting(
        True,
        "Use DeepSpeed's own kernels where it has an injection policy for the model and the device has the kernels.",
    )


class OnnxSettings(Section):
    """ONNX Runtime: the exported graph on any execution provider."""

    enabled: bool = setting(True, "Offer the ONNX Runtime engine. Needs the extra `onnx` or `onnx-gpu`.")
    execution_providers: Annotated[tuple[ExecutionProvider, ...], AnySequence, Unique] = setting(
        ("CUDAExecutionProvider", "CPUExecutionProvider"),
        "Execution providers, most wanted first. Those that this build lacks are skipped with a warning.",
        min_length=1,
    )
    optimization_level: Literal["none", "basic", "extended", "all"] = setting("all", "Graph optimisation level.")
    enable_quantization: bool = setting(
        False, "Quantise the exported graph dynamically to int8: smaller and faster, perhaps less exact."
    )
    dtype: Dtype = setting("auto", "Data type of the graph; auto is fp32 on a CPU, fp16 on a GPU.", extension=True)
    threads: int | None = setting(
        None,
        "CPU threads for one operation; null takes the physical cores that the process may use.",
        unit="threads",
        extension=True,
        ge=1,
    )


class PytorchSettings(Section):
    """Plain PyTorch: always there, and what the other engines are measured against."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Where the model runs; auto takes CUDA when there is a GPU.", extension=True
    )
    dtype: Dtype = setting("auto", "Data type of the weights; auto takes what suits the device.", extension=True)
    threads: int | None = setting(
        None, "CPU threads for one operation; null leaves the choice to PyTorch.", unit="threads", extension=True, ge=1
    )
    max_model_len: int | None = setting(
        None,
        "Most positions (prompt and output) of one sequence; null is the model's own.",
        unit="tokens",
        extension=True,
        ge=2,
    )


class BatcherSettings(Section):
    """Dynamic batching: which requests run together, and how long the first of them waits for company."""

    enabled: bool = setting(True, "Batch requests; when off, one request runs at a time.")
    max_batch_size: int = setting(
        32, "Most sequences that run at once in one engine.", unit="sequences", env="MUAI_OPT_BATCHER_MAX_SIZE", ge=1
    )
    batch_timeout_ms: int = setting(
        50,
        "Longest that the oldest waiting request is held back to let a batch form. Sequences that are already decoding "
        "are never held.",
        unit="ms",
        env="MUAI_OPT_BATCHER_TIMEOUT",
        ge=0,
    )
    adaptive_batching: bool = setting(
        True, "Move the running limit between min_batch_size and max_batch_size by what is observed."
    )
    min_batch_size: int = setting(
        1, "A batch starts once this many wait, or the oldest has waited batch_timeout_ms.", unit="sequences", ge=1
    )
    latency_target_ms: float | None = setting(
        None,
        "Inter-token latency that adaptive_batching steers to; null keeps the best measured throughput instead.",
        unit="ms",
        extension=True,
        gt=0,
    )
    max_slots: int | None = setting(
        None,
        "Sequences that the engine is opened for, up to which max_batch_size can be raised while it runs; null is "
        "max_batch_size.",
        unit="sequences",
        extension=True,
        ge=1,
    )
    max_prefill_tokens: int = setting(
        512,
        "Prompt tokens computed in one step: a longer prompt is computed in pieces over several steps, so that it "
        "stalls running sequences no longer than that. Encoders read a prompt whole, whatever its length.",
        unit="tokens",
        extension=True,
        ge=1,
    )

    orders: ClassVar[tuple[Order, ...]] = (
        Order("min_batch_size", "max_batch_size"),
        Order("max_batch_size", "max_slots", "lower the one, raise the other, or leave max_slots at null"),
    )


class CacheSettings(Section):
    """Prefix cache: key/value tensors of prompt prefixes and earlier turns, kept for reuse."""

    enabled: bool = setting(True, "Reuse the key/value tensors of shared prompt prefixes and earlier turns.")
    max_memory_mb: int = setting(
        4096,
        "Budget of the cache, never exceeded; measured in real tensor bytes. With vLLM on a GPU the budget counts only "
        "when it is set; else gpu_memory_utilization rules.",
        unit="MB",
        env="MUAI_OPT_CACHE_MAX_MEMORY",
        unset_matters=True,
        ge=0,
    )
    eviction_policy: Literal["lru", "fifo"] = setting(
        "lru", "What goes first when the budget is used up: the least recently used, or the oldest."
    )


class TunerSettings(Section):
    """Online tuner: moves batcher and cache settings inside the running server, and reverts what does not help."""

    enabled: bool = setting(False, "Tune while serving. Try it out before turning it on in production.")
    observation_window_seconds: int = setting(300, "How much of the past a decision looks at.", unit="s", ge=1)
    tuning_interval_seconds: int = setting(60, "Time between two adjustments.", unit="s", ge=1)
    enable_batch_size_tuning: bool = setting(True, "The tuner may move the batch size.")
    enable_timeout_tuning: bool = setting(True, "The tuner may move the batch timeout.")
    enable_cache_size_tuning: bool = setting(True, "The tuner may move the cache size.")
    ttft_target_ms: float | None = setting(
        None,
        "Time to the first token, queueing included, that a good request meets. With a target the tuner looks for the "
        "most good requests per second (goodput), without any for the most output tokens per second.",
        unit="ms",
        extension=True,
        gt=0,
    )
    tpot_target_ms: float | None = setting(
        None, "Time per output token after the first that a good request meets.", unit="ms", extension=True, gt=0
    )
    cache_max_memory_mb: int | None = setting(
        None,
        "How far the tuner may raise cache.max_memory_mb; null is what is configured there.",
        unit="MB",
        extension=True,
        ge=0,
    )
    state_directory: Name | None = setting(
        None,
        "Directory in which the tuner keeps the last good values across restarts, one file for each model, engine and "
        "configuration; null is `tuner` in the user's cache directory.",
        extension=True,
    )

    orders: ClassVar[tuple[Order, ...]] = (
        Order(
            "tuning_interval_seconds",
            "observation_window_seconds",
            "a decision would not see the effect of the last one; lengthen the window or shorten the interval",
        ),
    )


class OptimizationSettings(Section):
    """How requests are served: engines, batching, cache, tuner."""

    enabled: bool = setting(
        True,
        "Master switch. Off means plain PyTorch inference: no batching across requests, no prefix cache, no tuner.",
    )
    engine_preference: Annotated[tuple[EngineName, ...], AnySequence, Unique] = setting(
        ENGINE_NAMES,
        "Engines, most wanted first; the first that is available and supports the model serves it.",
        min_length=1,
    )
    fallback_on_error: bool = setting(
        True, "Go on with the next engine when one fails; when off, the engine's own error reaches the caller."
    )
    step_timeout_s: float | None = setting(
        60.0,
        "Longest that one engine step may take. An engine whose step has not returned by then counts as dead: the next "
        "one takes over, or the server is no longer ready. null for no limit. vLLM watches its own steps.",
        unit="s",
        extension=True,
        gt=0,
    )
    models: dict[str, Name] = setting(
        {},
        "Checkpoint of each model name: a hub id or a local directory. Names that are not listed are embedded models.",
        extension=True,
    )
    vllm: VllmSettings = VllmSettings()
    deepspeed: DeepspeedSettings = DeepspeedSettings()
    onnx: OnnxSettings = OnnxSettings()
    pytorch: PytorchSettings = PytorchSettings()
    batcher: BatcherSettings = BatcherSettings()
    cache: CacheSettings = CacheSettings()
    tuner: TunerSettings = TunerSettings()

    orders: ClassVar[tuple[Order, ...]] = (
        Order(
            "cache.max_memory_mb",
            "tuner.cache_max_memory_mb",
            "lower the one, raise the other, or leave tuner.cache_max_memory_mb at null",
        ),
    )
