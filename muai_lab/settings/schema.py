"""The `optimization` section: every key with its default, range, options and meaning.

The specification's keys come in its order. Our own keys are marked `extension=True`; under their defaults every example
of the specification stays valid. Short environment names are those that the specification prints.
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
    """vLLM: continuous batching and PagedAttention. It schedules its own steps."""

    enabled: bool = setting(True, "Offer the vLLM engine. Needs the extra `vllm`.")
    tensor_parallel_size: int = setting(
        1,
        "Number of GPUs for one model (tensor parallelism).",
        unit="GPUs",
        env="MUAI_OPT_VLLM_TENSOR_PARALLEL",
        ge=1,
    )
    dtype: Dtype = setting("auto", "Data type of the weights; auto selects one that suits the device.")
    max_model_len: int | None = setting(
        None, "Longest sequence, prompt and output together; null is the model's own limit.", unit="tokens", ge=1
    )
    gpu_memory_utilization: float = setting(
        0.9, "Share of the GPU's memory that vLLM may use.", env="MUAI_OPT_VLLM_GPU_MEMORY", ge=0.0, le=1.0
    )
    swap_space: int = setting(
        4,
        "CPU memory for key/value blocks if GPU memory is full; 0 for none. Current vLLM calls it "
        "`kv_offloading_size`.",
        unit="GB",
        ge=0,
    )
    enforce_eager: bool | None = setting(
        None,
        "Run the model eagerly, without compilation and, on a GPU, without CUDA graphs. null is true on a CPU, on "
        "which compilation makes the start several times as long, and false on a GPU.",
        extension=True,
    )


class DeepspeedSettings(Section):
    """DeepSpeed inference: large models, and kernel injection if a policy exists for the model."""

    enabled: bool = setting(True, "Offer the DeepSpeed engine. Needs the extra `deepspeed`.")
    tensor_parallel: int = setting(1, "Number of GPUs for each layer (tensor parallelism).", unit="GPUs", ge=1)
    pipeline_parallel: int = setting(
        1,
        "Stages into which the layers are divided. DeepSpeed inference has no pipeline parallelism: above 1 the engine "
        "is unavailable.",
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
        "Use DeepSpeed's own kernels if it has an injection policy for the model and the device has the kernels.",
    )


class OnnxSettings(Section):
    """ONNX Runtime: runs the exported graph on any execution provider."""

    enabled: bool = setting(True, "Offer the ONNX Runtime engine. Needs the extra `onnx` or `onnx-gpu`.")
    execution_providers: Annotated[tuple[ExecutionProvider, ...], AnySequence, Unique] = setting(
        ("CUDAExecutionProvider", "CPUExecutionProvider"),
        "Execution providers in order of preference. Those that this build lacks are skipped with a warning.",
        min_length=1,
    )
    optimization_level: Literal["none", "basic", "extended", "all"] = setting("all", "Graph optimisation level.")
    enable_quantization: bool = setting(
        False, "Quantise the exported graph dynamically to int8: smaller and faster, possibly less accurate."
    )
    dtype: Dtype = setting("auto", "Data type of the graph; auto is fp32 on a CPU, fp16 on a GPU.", extension=True)
    threads: int | None = setting(
        None,
        "CPU threads for one operation; null uses all physical cores that the process may use.",
        unit="threads",
        extension=True,
        ge=1,
    )


class PytorchSettings(Section):
    """Plain PyTorch: always available, and the reference for the other engines."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Device of the model; auto selects CUDA if there is a GPU.", extension=True
    )
    dtype: Dtype = setting("auto", "Data type of the weights; auto selects one that suits the device.", extension=True)
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
    """Dynamic batching: the requests that run together, and the wait of the first for others."""

    enabled: bool = setting(True, "Batch requests; if off, one request runs at a time.")
    max_batch_size: int = setting(
        32,
        "Most sequences that run at the same time in one engine.",
        unit="sequences",
        env="MUAI_OPT_BATCHER_MAX_SIZE",
        ge=1,
    )
    batch_timeout_ms: int = setting(
        50,
        "Longest time that the oldest waiting request is held back to form a batch. Sequences that already decode are "
        "never held.",
        unit="ms",
        env="MUAI_OPT_BATCHER_TIMEOUT",
        ge=0,
    )
    adaptive_batching: bool = setting(
        True, "Move the running limit between min_batch_size and max_batch_size by observed latency or throughput."
    )
    min_batch_size: int = setting(
        1,
        "A batch starts when N requests wait, or when the oldest has waited batch_timeout_ms.",
        unit="sequences",
        ge=1,
    )
    latency_target_ms: float | None = setting(
        None,
        "Target of adaptive_batching for the inter-token latency; null keeps the best measured throughput instead.",
        unit="ms",
        extension=True,
        gt=0,
    )
    max_slots: int | None = setting(
        None,
        "Sequences for which the engine is opened: the limit to which max_batch_size can be raised while it runs. null "
        "is max_batch_size.",
        unit="sequences",
        extension=True,
        ge=1,
    )
    max_prefill_tokens: int = setting(
        512,
        "Most prompt tokens in one step. A longer prompt is split over several steps (chunked prefill), which bounds "
        "the stall of running sequences. Encoders always read a whole prompt in one step.",
        unit="tokens",
        extension=True,
        ge=1,
    )

    orders: ClassVar[tuple[Order, ...]] = (
        Order("min_batch_size", "max_batch_size"),
        Order("max_batch_size", "max_slots", "lower the one, raise the other, or leave max_slots at null"),
    )


class CacheSettings(Section):
    """Prefix cache: keeps the key/value tensors of prompt prefixes and earlier turns for reuse."""

    enabled: bool = setting(True, "Reuse the key/value tensors of shared prompt prefixes and earlier turns.")
    max_memory_mb: int = setting(
        4096,
        "Budget of the cache in real tensor bytes, never exceeded. With vLLM on a GPU it applies only if it is set; "
        "otherwise gpu_memory_utilization decides.",
        unit="MB",
        env="MUAI_OPT_CACHE_MAX_MEMORY",
        unset_matters=True,
        ge=0,
    )
    eviction_policy: Literal["lru", "fifo"] = setting(
        "lru", "Blocks that are evicted first if the budget is full: the least recently used, or the oldest."
    )


class TunerSettings(Section):
    """Online tuner: changes batcher and cache settings in the running server, and reverts changes without benefit."""

    enabled: bool = setting(False, "Tune while serving. Test it before you enable it in production.")
    observation_window_seconds: int = setting(300, "Length of the past that a decision uses.", unit="s", ge=1)
    tuning_interval_seconds: int = setting(60, "Time between two adjustments.", unit="s", ge=1)
    enable_batch_size_tuning: bool = setting(True, "The tuner may change the batch size.")
    enable_timeout_tuning: bool = setting(True, "The tuner may change the batch timeout.")
    enable_cache_size_tuning: bool = setting(True, "The tuner may change the cache size.")
    ttft_target_ms: float | None = setting(
        None,
        "Longest time to first token of a good request, queueing included. With a target, the tuner maximises good "
        "requests per second (goodput); without any, output tokens per second.",
        unit="ms",
        extension=True,
        gt=0,
    )
    tpot_target_ms: float | None = setting(
        None, "Longest time per output token after the first of a good request.", unit="ms", extension=True, gt=0
    )
    cache_max_memory_mb: int | None = setting(
        None,
        "Limit to which the tuner may raise cache.max_memory_mb; null is its configured value.",
        unit="MB",
        extension=True,
        ge=0,
    )
    state_directory: Name | None = setting(
        None,
        "Directory of the tuner's last good values, which it keeps across restarts: one file for each model, engine "
        "and configuration. null is `tuner` in the user's cache directory.",
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
    """Serving of requests: engines, batching, cache, tuner."""

    enabled: bool = setting(
        True,
        "Master switch. Off means plain PyTorch inference: no batching across requests, no prefix cache, no tuner.",
    )
    engine_preference: Annotated[tuple[EngineName, ...], AnySequence, Unique] = setting(
        ENGINE_NAMES,
        "Engines in order of preference; the first that is available and supports the model serves it.",
        min_length=1,
    )
    fallback_on_error: bool = setting(
        True, "Continue on the next engine if one fails; if off, the engine's own error reaches the caller."
    )
    step_timeout_s: float | None = setting(
        60.0,
        "Timeout of one engine step. After it the engine counts as dead: the next one takes over, or the server is no "
        "longer ready. null for no limit. vLLM watches its own steps.",
        unit="s",
        extension=True,
        gt=0,
    )
    models: dict[str, Name] = setting(
        {},
        "Checkpoint of each model name: a hub id or a local directory. Other names are embedded models.",
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
