"""A Llama on megatron-core that answers: log-likelihoods and greedy continuations, at any layout."""
