"""How good a model is, and where its error comes from."""
