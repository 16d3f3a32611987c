"""The vocabulary: masks, checkpoints, tasks, methods, run specs, results. Imports nothing else of ours."""
