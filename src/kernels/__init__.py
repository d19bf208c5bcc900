"""Kernels: what `models.network` computes, in C for CPUs, where it is the same; `door.py` decides.

In: a network and tensors. Out: the same tensors as the modules give, sooner.
May import: the plain modules of models (network, dropout, losses).
"""
