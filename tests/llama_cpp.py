"""Stock llama.cpp (the prebuilt xllamacpp package) as tests use it."""

from pathlib import Path
from typing import Any

import numpy as np


class Runtime:
    """One loaded GGUF file, with a LoRA adapter in another one if `lora` names it."""

    def __init__(self, path: Path, context: int = 512, lora: Path | None = None) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = 2
        params.warmup = False
        # Keys and values are kept in F16 unless told otherwise, which hides small differences.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self._server = xllamacpp.Server(params)

    def complete(self, prompt: str | list[int], n_tokens: int, **more: Any) -> dict[str, Any]:
        """The first choice of a greedy completion."""
        request = {"prompt": prompt, "n_predict": n_tokens, "temperature": 0.0, **more}
        return self._server.handle_completions(request)["choices"][0]

    def next_log_probabilities(self, ids: list[int], vocabulary: int) -> np.ndarray:
        """Natural-log probabilities [vocabulary] of the token after ids."""
        choice = self.complete(ids, 1, n_probs=vocabulary)
        found = np.full(vocabulary, -np.inf)
        for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        return found


def embedding(path: Path, ids: list[int], *, mean: bool) -> np.ndarray:
    """What the model of a file embeds the tokens as, float32 [n_embd].

    mean: pool by the mean, as the file of a model that does not say how needs.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = 2
    params.warmup = False
    params.embedding = True
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if mean:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    answer = xllamacpp.Server(params).handle_embeddings({"input": ids})
    return np.array(answer["data"][0]["embedding"], np.float32)
