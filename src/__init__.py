"""BERT4Rec for sequential recommendation (Sun et al., 2019, arXiv 1904.06690) on PyTorch Lightning and Hydra."""
