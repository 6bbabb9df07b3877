"""The numbers of docs/benchmarks.md, remade by command."""
