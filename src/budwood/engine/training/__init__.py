"""Training at a fixed mask through the engine: `accelerate` makes the module, docs/explain/training.md tells how."""
