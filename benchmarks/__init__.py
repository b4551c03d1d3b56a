"""The study's other benchmarks: answers that are letters, tables and programs."""
