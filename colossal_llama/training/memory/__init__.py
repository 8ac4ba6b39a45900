"""Memory of a training step: estimate, recomputation policy, allocator setting, sizing model."""
