"""The network: initialising new rows, loading, attention, kernels, NEFTune, freezing."""
