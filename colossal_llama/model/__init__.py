"""LLaMA: loading, new embedding rows, attention, kernels, checkpointing, LoRA and NEFTune."""
