"""Pooling methods and heads as torch modules, traced together with the backbone."""
