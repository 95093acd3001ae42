"""What a training step costs, and what it is compared with: ``python -m benchmarks`` in the repository's root."""
