"""Answers that keep to a format: which tokens may come next, by a grammar over bytes."""
