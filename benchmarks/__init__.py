"""Side by side with peers: ``python -m benchmarks.<name> [--quick]`` prints one JSON object."""
