"""transformers' continuous batching, set up for us: cache size, sampler, outputs."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens

from promptmill.errors import InvalidSettingError, ModelLoadError
from promptmill_worker.attention import use_attention_by_request
from promptmill_worker.cache_size import cache_tokens
from promptmill_worker.checkpoint import Checkpoint
from promptmill_worker.continuous_support import NotContinuousError
from promptmill_worker.out_of_memory import is_out_of_memory
from promptmill_worker.paged_reads import read_by_pages
from promptmill_worker.placement import is_spread
from promptmill_worker.sampler import FusedSampler
from promptmill_worker.settings import EngineSettings

__all__ = ["context_length", "prepared_manager"]

#: Tokens in one page of the cache, where we choose it.
PAGE_SIZE_TOKENS = 16

#: The most tokens in one step, where we choose it: a longer prompt is prefilled in several steps.
MAX_BATCH_TOKENS = 512

#: Room in the cache for each request of a full batch, where we choose it; longer ones take from the shorter.
SENSIBLE_REQUEST_TOKENS = 256

#: How many requests may read a page in the same step, on the average of all pages of a full cache.
READERS_OF_A_PAGE = 4


def prepared_manager(checkpoint: Checkpoint, settings: EngineSettings, router: Any) -> tuple[Any, int, int]:
    """A manager that is ready to start, the context length, and the longest request its cache holds, in tokens.

    Args:
        checkpoint: The model to run.
        settings: ``max_batch`` and ``max_model_len`` count.
        router: Where the loop delivers its outputs; its ``status`` is set to the loop's.

    Raises:
        NotContinuousError: the model can't run in a continuous batch.
        ModelLoadError: its cache doesn't fit the memory.
        InvalidSettingError: ``max_model_len`` is beyond the model's context.
    """
    context_tokens = context_length(checkpoint, settings)
    config = _config(checkpoint, context_tokens, settings.max_batch)
    use_attention_by_request()
    try:
        manager = checkpoint.model.init_continuous_batching(GenerationConfig(do_sample=False, eos_token_id=-1), config)
        # Both before the warm-up, which builds the loop's parts around them.
        manager.output_router = router
        manager.logit_processor = FusedSampler(
            static_shapes=any(manager.continuous_batching_config.cuda_graph_booleans),
            vocabulary=checkpoint.model.config.get_text_config().vocab_size,
        )
        router.status = manager.background_thread_status
        manager.warmup()
        longest_tokens = infer_max_single_request_tokens(manager.batch_processor.cache)
        if checkpoint.model.device.type != "cuda" and checkpoint.model.config._attn_implementation.endswith("sdpa"):
            read_by_pages(manager.batch_processor.cache)
            _let_steps_read_more(manager)
    except (AttributeError, KeyError, MemoryError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise ModelLoadError(
                f"model {settings.model!r} is loaded, but a cache for {context_tokens:,} tokens does not fit the "
                f"memory that is left: set a smaller max_model_len or max_batch ({error})"
            ) from None
        raise NotContinuousError(
            f"model {settings.model!r} can't run in transformers' continuous batching: {error}"
        ) from error
    return manager, context_tokens, longest_tokens


def context_length(checkpoint: Checkpoint, settings: EngineSettings) -> int:
    """The longest prompt and text together that the model takes, or that the settings allow, in tokens.

    Raises:
        InvalidSettingError: ``max_model_len`` is beyond the model's context.
    """
    own = getattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", None)
    asked = settings.max_model_len
    if own is None:
        return asked or SENSIBLE_REQUEST_TOKENS * settings.max_batch
    if asked is not None and asked > own:
        raise InvalidSettingError(
            f"max_model_len: {asked:,} is more than the context of {settings.model!r}, {own:,} tokens"
        )
    return int(asked or own)


def _let_steps_read_more(manager: Any) -> None:
    """Has a step read more tokens than the cache holds: where requests share pages, transformers counts them for each.

    Only where all layers attend to all tokens: elsewhere it attends in its own way, which grows with the square of what
    a step reads.
    """
    processor = manager.batch_processor
    if any(allocator.layer_type != "full_attention" for allocator in processor.cache.cache_allocators.values()):
        return
    processor.cache.max_tokens_read *= READERS_OF_A_PAGE
    # What holds a step's inputs is made anew, as large as that.
    processor.inputs_and_outputs._setup_static_tensors(manager.logit_processor)
    processor.inputs_and_outputs.reset()


def _config(checkpoint: Checkpoint, context_tokens: int, max_batch: int) -> ContinuousBatchingConfig:
    chosen: dict[str, Any] = {
        "max_requests_per_batch": max_batch,
        # Asynchronous batching computes one step ahead: a request cancelled in that step loses its pages before
        # its token arrives, and the loop ends in a KeyError.
        "use_async_batching": False,
    }
    if checkpoint.model.device.type == "cuda":
        # transformers sizes the cache by the free memory, less than it would: our sampler needs some too.
        if is_spread(checkpoint.model):  # a CUDA graph would not see that a layer's weights come and go
            chosen["use_cuda_graph"] = False
        return ContinuousBatchingConfig(**chosen, max_memory_percent=0.8)
    step_tokens = max(MAX_BATCH_TOKENS, max_batch)
    useful_tokens = max(context_tokens, max_batch * SENSIBLE_REQUEST_TOKENS)
    tokens = cache_tokens(checkpoint.model, useful_tokens, READERS_OF_A_PAGE * step_tokens)
    return ContinuousBatchingConfig(
        **chosen,
        page_size=PAGE_SIZE_TOKENS,
        num_blocks=-(-tokens // PAGE_SIZE_TOKENS),
        max_batch_tokens=step_tokens,
        # transformers asks whether flash attention is installed, not where the model is.
        auto_switch_to_flash=False,
    )
