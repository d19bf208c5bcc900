"""The slowest parts of a training step in C, compiled on the machine that they run on, for its very processor.

They are `encoder.c`, embeddings and blocks, and `cross_entropy.c`, the loss over all items. Each does what the modules
and functions of `src.models` do, which are its specification and stand in for it where there is no compiler.
"""
