"""The numbers of docs/benchmarks.md, remade by command. Knows nothing of how the measured code came to be."""
